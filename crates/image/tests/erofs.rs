//! What the EROFS writer writes, held against Debian's fsck.erofs and the kernel's own reading of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that can not go on fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use moat_image::{Ownership, erofs};
use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags};

/// Everything of an inode that a program can see, and its data.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    links: u64,
    modified: (i64, i64),
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Vec<u8>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let found = path.symlink_metadata().unwrap();
        let data = if found.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if found.is_file() {
            fs::read(&path).unwrap()
        } else if found.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let device = if found.file_type().is_char_device() || found.file_type().is_block_device() {
            found.rdev()
        } else {
            0
        };
        let one = Seen {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            device,
            links: found.nlink(),
            modified: (found.mtime(), found.mtime_nsec()),
            attributes: attributes(&path),
            data,
        };
        seen.insert(path.strip_prefix(root).unwrap().to_path_buf(), one);
    }
    seen
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, std::str::from_utf8(name).unwrap(), &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| (name.to_vec(), value(name)))
        .collect()
}

/// Everything that a layer may hold, with sizes around the borders of blocks.
fn fill(root: &Path) {
    for size in [0, 1, 31, 32, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12345, 3 << 20] {
        let data: Vec<u8> = (0..size).map(|byte: usize| (byte * 7 + byte / 256) as u8).collect();
        fs::write(root.join(format!("file-{size}")), data).unwrap();
    }
    let holes = File::create(root.join("holes")).unwrap();
    holes.set_len(5 << 20).unwrap();
    holes.write_all_at(b"in the middle", 2 << 20).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("deep/er/still")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..3000 {
        fs::write(root.join(format!("many/a-name-of-some-length-{number:05}")), number.to_string()).unwrap();
    }
    for name in ["-", "!", "...", "..a", "~", "\u{e4}", &"n".repeat(255)] {
        fs::write(root.join("deep").join(name), name).unwrap();
    }
    fs::hard_link(root.join("file-4097"), root.join("deep/er/same")).unwrap();
    fs::hard_link(root.join("file-4097"), root.join("many/same")).unwrap();
    symlink("../nowhere", root.join("deep/link")).unwrap();
    symlink("x".repeat(4095), root.join("long-link")).unwrap();
    fs::set_permissions(root.join("file-1"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    rustix::fs::chown(
        root.join("file-32"),
        Some(rustix::fs::Uid::from_raw(70_000)),
        Some(rustix::fs::Gid::from_raw(4_000_000_000)),
    )
    .unwrap();
    let here = File::open(root).unwrap();
    let make =
        |name: &str, kind, device| mknodat(&here, name, kind, Mode::from_raw_mode(0o640), device).unwrap();
    make("whiteout", FileType::CharacterDevice, 0);
    make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    make("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    let set = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    set("empty", "trusted.overlay.opaque", b"y");
    set("file-4000", "user.a", b"");
    set("file-4000", "user.of.some.length", &[7; 201]);
    set("file-4096", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("file-12345", "user.large", &[9; 3000]);
    set("long-link", "trusted.of-a-link", b"value");
}

fn succeed(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Writes the tree to a file, and has fsck.erofs check it.
fn written(root: &Path, image: &Path) -> erofs::Written {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    let done =
        erofs::write(File::open(root).unwrap().as_fd(), &file, [3; 16], Ownership::Privileged).unwrap();
    assert_eq!(file.metadata().unwrap().len(), done.bytes);
    succeed(Command::new("fsck.erofs").arg(image));
    done
}

#[test]
fn the_kernel_sees_what_the_tree_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    written(&root, &image);
    let mount = folder.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let expected = look(&root);
    let compared = mounted(&image, &mount, || look(&mount));
    for (path, expected) in &expected {
        let found = compared.get(path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        let short = |seen: &Seen| {
            format!(
                "{:?} and {} bytes",
                (seen.mode, seen.owner, seen.device, seen.links, seen.modified, &seen.attributes),
                seen.data.len()
            )
        };
        assert!(found == expected, "{}: {} is not {}", path.display(), short(found), short(expected));
    }
    assert_eq!(compared.len(), expected.len());
}

/// Mounts the image in a thread that has mounts of its own, so that the machine's stay as they are.
fn mounted<T: Send>(image: &Path, mount: &Path, work: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        moat_linux::process::unshare(moat_linux::process::namespace::MOUNT).unwrap();
        let quiet = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", quiet).unwrap();
        rustix::mount::mount(image, mount, "erofs", MountFlags::RDONLY, None).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap())
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fill(&root);
    let copy = folder.path().join("copy");
    succeed(Command::new("cp").arg("-a").arg(&root).arg(&copy));
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    assert_eq!(written(&root, &one), written(&copy, &other));
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap());
}

#[test]
fn the_smallest_tree_and_a_hole_cost_little() {
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    fs::create_dir(&root).unwrap();
    assert_eq!(written(&root, &image), erofs::Written { bytes: 4096, inodes: 1 });
    File::create(root.join("holes")).unwrap().set_len(64 << 20).unwrap();
    assert_eq!(written(&root, &image).inodes, 2);
    assert!(image.metadata().unwrap().blocks() * 512 < 1 << 20);
}
