//! A snapshot that somebody has changed between being written and being restored.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use moat_vmm::snapshot::{Check, Key, decode, open};
use vm_memory::{Bytes, GuestAddress};

use super::hands::{FREE, Folder, Machine, program};

const KEY: Key = *b"a key of thirty-two bytes, 32!!!";

/// A snapshot of a real machine, with a key or without.
fn snapshot(folder: &Folder, key: Option<&str>) -> PathBuf {
    let (api, shelf) = (folder.text("api"), folder.text("shelf"));
    std::fs::create_dir(&shelf).unwrap();
    let disk = folder.disk("disk", 1 << 20);
    let mut arguments = vec!["--disk", &disk, "--api", &api, "--snapshots", &shelf];
    arguments.extend(key.iter().flat_map(|key| ["--key", key]));
    let machine = Machine::new(folder, &arguments);
    machine.memory.write_slice(b"what the guest knows", GuestAddress(FREE)).unwrap();
    for further in [&["pause"][..], &["snapshot", "--name", "one"], &["stop"]] {
        let output = program(&[further, &["--api", &api]].concat()).output().unwrap();
        assert!(output.status.success(), "{further:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(machine.end().0.code(), Some(0));
    folder.join("shelf").join("one")
}

fn with_key(folder: &Folder) -> String {
    std::fs::write(folder.join("key"), KEY).unwrap();
    folder.text("key")
}

fn open_at(path: &PathBuf, key: Option<&Key>) -> Result<(), String> {
    let folder = OwnedFd::from(File::open(path).unwrap());
    open(&folder, key, Check::First).map(drop).map_err(|error| error.to_string())
}

#[test]
fn nobody_else_can_read_it() {
    let folder = Folder::new();
    let path = snapshot(&folder, None);
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(path.clone()), 0o700);
    assert_eq!((mode(path.join("state")), mode(path.join("memory"))), (0o600, 0o600));
}

#[test]
fn every_bit_of_the_state_counts() {
    for key in [false, true] {
        let folder = Folder::new();
        let file = key.then(|| with_key(&folder));
        let path = snapshot(&folder, file.as_deref());
        let key = key.then_some(&KEY);
        let whole = std::fs::read(path.join("state")).unwrap();
        decode(&whole, key).unwrap();
        // Every bit of the head, and bits all over the rest.
        let bits = (0..64 * 8).chain((64 * 8..whole.len() * 8).step_by(97));
        for bit in bits {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = decode(&bytes, key).unwrap_err().to_string();
            let reasons = [
                "no snapshot of",
                "version",
                "authenticated",
                "unknown kind",
                "cut short",
                "its sum is wrong",
            ];
            assert!(reasons.iter().any(|reason| error.contains(reason)), "bit {bit}: {error}");
        }
        for size in (0..64).chain((64..whole.len()).step_by(61)) {
            let error = decode(&whole[..size], key).unwrap_err().to_string();
            assert!(error.contains("cut short"), "{size}: {error}");
        }
        assert!(decode(&[&whole[..], &[0]].concat(), key).is_err());
    }
}

#[test]
fn every_page_of_the_memory_counts() {
    for key in [false, true] {
        let folder = Folder::new();
        let file = key.then(|| with_key(&folder));
        let path = snapshot(&folder, file.as_deref());
        let key = key.then_some(&KEY);
        open_at(&path, key).unwrap();
        let memory = File::options().read(true).write(true).open(path.join("memory")).unwrap();
        // What was written, what was zero, the last byte.
        for at in [FREE, FREE + 19, 0x9000, 40 << 20, (64 << 20) - 1] {
            let mut byte = [0];
            memory.read_exact_at(&mut byte, at).unwrap();
            memory.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            let error = open_at(&path, key).unwrap_err();
            assert!(error.contains("its file memory") && error.contains("changed"), "{at:#x}: {error}");
            memory.write_all_at(&byte, at).unwrap();
            open_at(&path, key).unwrap();
        }
        memory.set_len(63 << 20).unwrap();
        let error = open_at(&path, key).unwrap_err();
        assert!(error.contains("bytes long"), "{error}");
    }
}

/// Whoever has no key can not make a snapshot that is taken for one of the key's owner.
#[test]
fn a_snapshot_of_another_key_is_refused() {
    let (ours, theirs) = (Folder::new(), Folder::new());
    let (own, foreign) = (snapshot(&ours, Some(&with_key(&ours))), snapshot(&theirs, None));
    let error = |path, key| open_at(path, key).unwrap_err();
    assert!(error(&foreign, Some(&KEY)).contains("not authenticated"), "{}", error(&foreign, Some(&KEY)));
    assert!(error(&own, None).contains("no key was given"), "{}", error(&own, None));
    let other = [7; 32];
    assert!(error(&own, Some(&other)).contains("with another key"), "{}", error(&own, Some(&other)));
    // The memory of another machine beneath a state that is right.
    std::fs::copy(foreign.join("memory"), own.join("memory")).unwrap();
    let swapped = open_at(&own, Some(&KEY));
    assert!(swapped.is_err_and(|error| error.contains("changed")) || same(&own, &foreign));
    // A link in place of a file leads nowhere.
    std::fs::remove_file(own.join("state")).unwrap();
    std::os::unix::fs::symlink(foreign.join("state"), own.join("state")).unwrap();
    assert!(error(&own, Some(&KEY)).contains("ELOOP"), "{}", error(&own, Some(&KEY)));
}

fn same(one: &std::path::Path, other: &std::path::Path) -> bool {
    std::fs::read(one.join("memory")).unwrap() == std::fs::read(other.join("memory")).unwrap()
}
