//! Any bytes as the archive of a layer: each entry that comes out of the door stays in the layer and within the
//! limits.
#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use moat_image::{Action, LayerLimits, LayerPath, LayerReader};

const LIMITS: LayerLimits = LayerLimits { bytes: 1 << 20, inodes: 64, depth: 16 };

fn within(path: &LayerPath) {
    let path = path.as_path();
    assert!(
        path.components().all(|component| matches!(component, Component::Normal(_))),
        "{}",
        path.display()
    );
    assert!(path.components().count() <= LIMITS.depth && path.as_os_str().len() <= 4095);
    assert!(path.iter().all(|name| name.len() <= 255 && !name.as_encoded_bytes().contains(&0)));
}

fuzz_target!(|bytes: &[u8]| {
    let mut reader = LayerReader::new(bytes, LIMITS);
    let (mut entries, mut sum) = (0, 0);
    while let Ok(Some(entry)) = reader.next_entry() {
        entries += 1;
        within(&entry.path);
        let name = entry.path.split().map(|(_, name)| name.as_encoded_bytes().to_vec()).unwrap_or_default();
        assert!(
            !name.starts_with(b".wh.") || entry.action == Action::Whiteout || entry.action == Action::Opaque
        );
        assert!(entry.metadata.mode <= 0o7777);
        assert!(entry.metadata.uid != u32::MAX && entry.metadata.gid != u32::MAX);
        for (name, value) in &entry.metadata.xattrs {
            assert!(
                !name.contains("overlay.") || name.starts_with("user.") && !name.starts_with("user.overlay.")
            );
            assert!(
                !name.starts_with("trusted.") && !name.starts_with("security.s") && value.len() <= 1 << 16
            );
        }
        match entry.action {
            Action::HardLink(target) => {
                within(&target);
                assert!(target != entry.path && !target.is_root());
            }
            Action::Symlink(target) => assert!(!target.is_empty() && !target.contains(&0)),
            Action::File { size, sparse } => {
                sum += size;
                let mut end = 0;
                for (offset, length) in sparse.iter().flatten() {
                    assert!(*offset >= end && offset + length <= size);
                    end = offset + length;
                }
            }
            Action::Device { block, major, minor } => assert!(block || (major, minor) != (0, 0)),
            Action::Whiteout => assert!(!entry.path.is_root()),
            Action::Directory | Action::Fifo | Action::Opaque => {}
        }
    }
    assert!(entries <= LIMITS.inodes && sum <= LIMITS.bytes);
});
