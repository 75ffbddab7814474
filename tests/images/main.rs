//! Images of real tools through the store: what an overlay of Moat's layers shows is what umoci unpacks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can not go on fails, and says where")]

mod disks;
mod equal;
mod forms;
mod harm;
mod registry;
mod rootless;

use std::path::Path;

use moat_image::{Image, Ownership, Store};
use tempfile::TempDir;

/// A store in a folder of its own.
struct Scratch {
    folder: TempDir,
    store: Store,
}

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("moat-images-").tempdir().unwrap();
        let store = Store::open(&folder.path().join("images"), Ownership::detect()).unwrap();
        Self { folder, store }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the image shows.
    fn tree(&self, image: &Image) -> Vec<String> {
        moat_tests::list_overlay(&self.store.layer_paths(image))
    }

    /// Nothing is wrong with the store.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.store.check(false, true).unwrap(), []);
    }
}

/// Two lists of entries, line by line; only what differs is shown.
#[track_caller]
fn assert_same(ours: &[String], theirs: &[String]) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        let other: std::collections::BTreeSet<&String> = other.iter().collect();
        one.iter().filter(|line| !other.contains(line)).take(20).cloned().collect()
    };
    let (ours_only, theirs_only) = (only(ours, theirs), only(theirs, ours));
    assert!(ours_only.is_empty() && theirs_only.is_empty(), "ours: {ours_only:#?}\ntheirs: {theirs_only:#?}");
    assert!(ours.len() > 1, "the image shows nothing");
}
