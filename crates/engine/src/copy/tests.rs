//! Endings of paths, entries of archives, and hostile archives; what needs a workload is tested with one.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use moat_image::{EntryType, Metadata, TarWriter};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("in")).unwrap();
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn folder(&self) -> OwnedFd {
        fs::open(&self.path("in"), OFlags::PATH | OFlags::DIRECTORY).unwrap()
    }

    /// Unpacks into `in` as onto the host.
    fn unpack(&self, archive: &[u8], options: CopyOptions) -> Result<()> {
        unpack(self.folder().as_fd(), archive, &Unpack::host(&options))
    }
}

type Line<'a> = (EntryType, &'a str, &'a str, &'a str);

/// An archive of lines: kind, path, link, content.
fn archive(lines: &[Line<'_>]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    let metadata = Metadata { mode: 0o6755, ..Metadata::default() };
    for (kind, path, link, content) in lines {
        let path = Path::new(path);
        if *kind == EntryType::Regular {
            writer.file(path, &metadata, content.len() as u64, content.as_bytes()).unwrap();
        } else {
            let link = (!link.is_empty()).then(|| Path::new(link));
            writer.entry(*kind, path, &metadata, link, 0).unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn the_end_of_a_path_says_what_is_meant() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("in/dots./x")).unwrap();
    let folder = place.folder();
    let find = |path: &str| {
        let source = Source::find(folder.as_fd(), path, false).unwrap();
        (source.name.display().to_string(), source.archive_name().display().to_string())
    };
    for (path, name, archived) in [
        ("/dots./x", "x", "x"),
        ("dots./x/", "x", "x"),
        ("/dots./.", "dots.", "."),
        ("dots.", "dots.", "dots."),
        ("/", ".", "."),
        (".", ".", "."),
        ("/dots./x/..", ".", "."),
    ] {
        assert_eq!(find(path), (name.to_owned(), archived.to_owned()), "{path}");
    }
}

#[test]
fn nothing_leaves_the_folder() {
    let place = Place::new();
    std::fs::write(place.path("canary"), "safe").unwrap();
    symlink(place.path(""), place.path("in/out")).unwrap();
    let (regular, link) = (EntryType::Regular, EntryType::Link);
    for lines in [
        vec![(regular, "../canary", "", "evil")],
        vec![(regular, "a/../../canary", "", "evil")],
        vec![(regular, "out/canary", "", "evil")],
        vec![(EntryType::Symlink, "made", "..", ""), (regular, "made/canary", "", "evil")],
        vec![(link, "x", "../canary", "")],
        vec![(link, "x", "out/canary", "")],
        vec![(EntryType::Directory, "out", "", "")],
        vec![(EntryType::Directory, "d", "", ""), (regular, "d", "", "evil")],
        vec![(regular, "f", "", "x"), (regular, "f/g", "", "evil")],
    ] {
        assert!(place.unpack(&archive(&lines), CopyOptions::default()).is_err(), "{lines:?}");
        assert_eq!(std::fs::read_to_string(place.path("canary")).unwrap(), "safe", "{lines:?}");
    }
    assert_eq!(std::fs::metadata(place.path("canary")).unwrap().nlink(), 1);
}

/// Docker makes the node as it is in the workload.
#[test]
fn a_device_node_is_for_its_owner_alone() {
    let place = Place::new();
    let node = archive(&[(EntryType::Char, "node", "", "")]);
    place.unpack(&node, CopyOptions::default()).unwrap();
    let mode = |options| {
        place.unpack(&node, options).unwrap();
        std::fs::metadata(place.path("in/node")).unwrap().mode()
    };
    assert_eq!(mode(CopyOptions::default()) & 0o7777, 0o700);
    assert_eq!(mode(CopyOptions { archive: true, follow: false }) & 0o7777, 0o6755);
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
    let place = Place::new();
    std::fs::write(place.path("canary"), "safe").unwrap();
    symlink(place.path("canary"), place.path("in/f")).unwrap();
    place.unpack(&archive(&[(EntryType::Regular, "/f", "", "new")]), CopyOptions::default()).unwrap();
    assert_eq!(std::fs::read_to_string(place.path("canary")).unwrap(), "safe");
    let found = std::fs::symlink_metadata(place.path("in/f")).unwrap();
    assert!(found.is_file());
    assert_eq!(found.mode() & 0o7777, 0o755, "and gives no rights");
}

#[test]
fn hard_links_can_be_unpacked_again() {
    let place = Place::new();
    let lines = [(EntryType::Regular, "d/f", "", "x"), (EntryType::Link, "d/g", "d/f", "")];
    for _ in 0..2 {
        place.unpack(&archive(&lines), CopyOptions::default()).unwrap();
        assert_eq!(std::fs::metadata(place.path("in/d/g")).unwrap().nlink(), 2);
    }
}

#[test]
fn every_cut_of_an_archive_is_an_error_or_a_part_of_it() {
    let whole = archive(&[(EntryType::Regular, "f", "", "content"), (EntryType::Symlink, "l", "f", "")]);
    for end in (0..whole.len()).step_by(37) {
        let place = Place::new();
        if place.unpack(&whole[..end], CopyOptions::default()).is_ok() && place.path("in/f").exists() {
            assert_eq!(std::fs::read_to_string(place.path("in/f")).unwrap(), "content", "{end}");
        }
    }
}
