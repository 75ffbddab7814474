//! Layers as disks: the kernel's EROFS shows what their folders show, and the store keeps them as it keeps layers.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use moat_image::{Image, LoadSpec, load, silent};
use moat_tests::{LayerTar, TarEntry, done, list_overlay, plain_layout};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::{Scratch, assert_same};

/// Two layers; the upper one hides a file, a whole folder, and what was in a folder.
fn loaded(scratch: &Scratch) -> Image {
    let mut low = LayerTar::new();
    low.folder("etc").file("etc/a", "a").file("etc/b", "b").folder("gone").file("gone/x", "x");
    low.folder("other").file("other/old", "old").symlink("link", "etc/a");
    low.entry(&TarEntry { mode: 0o4755, content: b"suid", ..TarEntry::new(b'0', "suid") });
    low.file("large", &"many bytes ".repeat(100_000));
    let mut high = LayerTar::new();
    high.file("etc/.wh.a", "").file(".wh.gone", "").link("etc/c", "etc/b");
    high.folder("other").file("other/.wh..wh..opq", "").file("other/new", "new");
    let layout = plain_layout(&scratch.path().join("layout"), &[low.finish(), high.finish()]);
    load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0)
}

fn paths(scratch: &Scratch, image: &Image) -> Vec<PathBuf> {
    scratch.store.layer_paths(image).iter().map(|folder| folder.with_file_name("erofs")).collect()
}

#[test]
fn a_stack_of_disks_shows_what_a_stack_of_folders_shows() {
    let scratch = Scratch::new();
    let image = loaded(&scratch);
    let expected = scratch.tree(&image);
    for layer in &image.layers {
        scratch.store.erofs(layer).unwrap();
    }
    let disks = paths(&scratch, &image);
    for disk in &disks {
        done(Command::new("fsck.erofs").arg(disk));
    }
    let found = std::thread::scope(|scope| {
        // Mounts of its own, so that the machine's stay as they are.
        let thread = scope.spawn(|| {
            moat_linux::process::unshare(moat_linux::process::namespace::MOUNT).unwrap();
            let quiet = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", quiet).unwrap();
            let mounted = |(number, disk): (usize, &PathBuf)| {
                let point = scratch.path().join(format!("mounted-{number}"));
                std::fs::create_dir(&point).unwrap();
                rustix::mount::mount(disk, &point, "erofs", MountFlags::RDONLY, None).unwrap();
                point
            };
            let points: Vec<PathBuf> = disks.iter().enumerate().map(mounted).collect();
            list_overlay(&points)
        });
        thread.join().unwrap()
    });
    assert_same(&found, &expected);
    scratch.assert_clean();
}

/// Fifty who ask at once get one file; it is counted, and goes with its layer.
#[test]
fn a_disk_is_made_once_and_goes_with_its_layer() {
    let scratch = Scratch::new();
    let image = loaded(&scratch);
    let before = scratch.store.disk_usage().unwrap();
    assert_eq!(before.erofs_bytes, 0);
    let inodes: std::collections::BTreeSet<u64> = std::thread::scope(|scope| {
        let ask = || scratch.store.erofs(&image.layers[0]).unwrap().metadata().unwrap().ino();
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
    let usage = scratch.store.disk_usage().unwrap();
    let disk = scratch.store.erofs(&image.layers[0]).unwrap();
    assert_eq!(usage.erofs_bytes, disk.metadata().unwrap().blocks() * 512);
    assert!(usage.erofs_bytes > 1_100_000, "{usage:?}");
    assert_eq!(usage.reclaimable_bytes, before.reclaimable_bytes + usage.erofs_bytes);
    let pruned = scratch.store.prune(true, &|_| true).unwrap();
    assert!(pruned.reclaimed_bytes > usage.erofs_bytes);
    assert_eq!(disk.metadata().unwrap().nlink(), 0, "the file is removed, and who has it open keeps it");
    let gone = scratch.store.erofs(&image.layers[0]).unwrap_err();
    assert_eq!(gone.kind(), moat_image::Kind::NotFound, "{gone}");
    scratch.assert_clean();
}

/// A file that is cut short is found at once, one that has other bytes by a deep check; it is made again.
#[test]
fn a_damaged_disk_is_found_and_made_again() {
    let scratch = Scratch::new();
    let image = loaded(&scratch);
    let whole = scratch.store.erofs(&image.layers[0]).unwrap();
    let path = paths(&scratch, &image).pop().unwrap();
    let good = std::fs::read(&path).unwrap();
    for (damage, deep) in [(1, false), (2, true)] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        match damage {
            1 => file.set_len(4096).unwrap(),
            _ => file.write_all_at(b"other", good.len() as u64 - 4096).unwrap(),
        }
        if deep {
            assert_eq!(scratch.store.check(false, false).unwrap(), [], "only a deep check reads disks");
        }
        let findings = scratch.store.check(true, deep).unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].path, path);
        scratch.assert_clean();
        scratch.store.erofs(&image.layers[0]).unwrap();
        assert!(std::fs::read(&path).unwrap() == good);
    }
    drop(whole);
}
