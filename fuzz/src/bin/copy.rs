//! Any bytes as an archive that `cp` unpacks onto the host, into a folder with links that lead out of it: nothing
//! outside is touched, and without `--archive` nothing is made that gives somebody a right.
#![no_main]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moat_engine::{CopyOptions, unpack_onto_host};

/// A folder that holds a canary, and beside it the folder `in` to unpack into. `cargo xtask fuzz` removes it.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let place = std::env::temp_dir().join(format!("moat-fuzz-copy-{}", std::process::id()));
    fs::create_dir_all(&place).expect("a folder");
    place
});

fn prepare(place: &Path) {
    let _ = fs::remove_dir_all(place.join("in"));
    fs::create_dir(place.join("in")).expect("a folder");
    fs::write(place.join("canary"), "safe").expect("a file");
    symlink("..", place.join("in/up")).expect("a link");
    symlink("../canary", place.join("in/song")).expect("a link");
    fs::write(place.join("in/f"), "here before").expect("a file");
    fs::create_dir(place.join("in/d")).expect("a folder");
}

/// Nothing below gives a right, and no more is stored than the archive holds.
fn harmless(folder: &Path, left: &mut u64) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let metadata = entry.path().symlink_metadata().expect("a file");
        let kind = metadata.file_type();
        let device = kind.is_char_device() || kind.is_block_device();
        assert!(!device || metadata.mode() & 0o077 == 0, "{entry:?}");
        // What was there before belongs to the caller as well.
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{entry:?}");
        assert!(kind.is_symlink() || metadata.mode() & 0o6000 == 0, "{entry:?}");
        if kind.is_file() {
            let stored = metadata.blocks() * 512;
            *left =
                left.checked_sub(stored.min(metadata.len()) / metadata.nlink()).expect("more than there was");
        }
        if kind.is_dir() {
            harmless(&entry.path(), left);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, archive)) = bytes.split_first() else { return };
    let options = CopyOptions { archive: flags & 1 != 0, follow: false };
    let place = PLACE.as_path();
    prepare(place);
    let folder = fs::File::open(place.join("in")).expect("a folder");
    let outcome = unpack_onto_host(folder.as_fd(), &options, archive);
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(fs::read(place.join("canary")).expect("the canary"), b"safe");
    assert_eq!(fs::metadata(place.join("canary")).expect("the canary").nlink(), 1, "it has another name");
    let mut outside: Vec<_> =
        fs::read_dir(place).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    outside.sort_unstable();
    assert_eq!(outside, ["canary", "in"]);
    if !options.archive {
        // A file with holes can begin a block of 4096 bytes for each byte, and has to name each of them.
        harmless(&place.join("in"), &mut (archive.len() as u64 * 4096 + 4096));
    }
});
