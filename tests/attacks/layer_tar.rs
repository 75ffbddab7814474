//! layer-tar (CVE-2017-14992 and many): a layer that reaches out of its folder, or takes more than it may.
//!
//! The layers are written by hand and loaded; beside the store lies what they are after.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use moat_image::{Error, Image, Kind, LayerLimits, LoadSpec, Ownership, Store, load, silent};
use moat_tests::{LayerTar, TarEntry, header, oci_layout, plain_layout};
use tempfile::TempDir;

/// A store, and beside it a folder with a file that nobody may touch.
struct Scene {
    folder: TempDir,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        Self::of(Ownership::detect())
    }

    fn of(ownership: Ownership) -> Self {
        let folder = tempfile::Builder::new().prefix("moat-layer-tar-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("outside")).unwrap();
        std::fs::write(folder.path().join("outside/canary"), "untouched").unwrap();
        let store = Store::open(&folder.path().join("images"), ownership).unwrap();
        Self { folder, store }
    }

    /// Host path of what lies outside.
    fn outside(&self) -> String {
        self.folder.path().join("outside").to_str().unwrap().to_owned()
    }

    fn load(&self, layers: &[&LayerTar]) -> Result<Image, Error> {
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.finish()).collect();
        self.load_layout(&plain_layout(&self.folder.path().join("layout"), &layers))
    }

    fn load_layout(&self, layout: &Path) -> Result<Image, Error> {
        load(&self.store, layout, &LoadSpec::default(), &silent).map(|mut images| images.remove(0))
    }

    /// The folder of the topmost layer.
    fn top(&self, image: &Image) -> PathBuf {
        self.store.layer_paths(image).remove(0)
    }

    /// Outside, all is as it was.
    #[track_caller]
    fn assert_untouched(&self) {
        let outside = self.folder.path().join("outside");
        let names: Vec<_> =
            std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["canary"]);
        assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "untouched");
        let (folder, file) = (outside.metadata().unwrap(), outside.join("canary").metadata().unwrap());
        assert_eq!((folder.mode() & 0o7777, file.mode() & 0o7777, file.nlink()), (0o755, 0o644, 1));
        assert!(folder.mtime() > 1_600_000_000 && file.mtime() > 1_600_000_000);
    }

    /// The layer is refused with a sentence that holds `words`, and leaves nothing.
    #[track_caller]
    fn assert_refused(&self, layers: &[&LayerTar], words: &str) {
        let error = self.load(layers).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        self.assert_nothing();
    }

    #[track_caller]
    fn assert_nothing(&self) {
        self.assert_untouched();
        assert_eq!(self.store.list().unwrap(), []);
        let findings = self.store.check(true, true).unwrap();
        assert!(findings.iter().all(|finding| finding.repair.is_some()), "{findings:?}");
        assert_eq!(self.store.check(false, true).unwrap(), []);
    }
}

#[test]
fn paths_that_lead_up_are_refused() {
    for path in ["../outside/x", "a/../../../../outside/x", "/../x", "..", "./.."] {
        Scene::new().assert_refused(&[LayerTar::new().file(path, "x")], "leads out of the layer");
    }
    let scene = Scene::new();
    scene.assert_refused(&[LayerTar::new().file("a", "x").link("b", "../../outside/canary")], "leads out");
}

#[test]
fn absolute_paths_are_the_layers_own() {
    let scene = Scene::new();
    let path = format!("{}/canary", scene.outside());
    let image = scene.load(&[LayerTar::new().file(&path, "inside")]).unwrap();
    let inside = scene.top(&image).join(path.trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(inside).unwrap(), "inside");
    scene.assert_untouched();
}

/// Whatever is written through a symbolic link of the layer stays within the layer.
#[test]
fn nothing_is_written_through_links() {
    let scene = Scene::new();
    let outside = scene.outside();
    let mut tar = LayerTar::new();
    tar.symlink("absolute", &outside).file("absolute/canary", "evil").file("absolute/new", "evil");
    let up = format!("{}{}", "../".repeat(30), outside.trim_start_matches('/'));
    tar.symlink("relative", &up).file("relative/canary", "evil").folder("relative/folder");
    tar.symlink("first", "second").symlink("second", &outside).file("first/deep/er", "evil");
    tar.entry(&TarEntry::new(b'6', "first/fifo")).file("first/.wh.canary", "").file("first/.wh..wh..opq", "");
    let image = scene.load(&[&tar]).unwrap();
    scene.assert_untouched();
    // It went where the link leads to in the layer.
    let inside = scene.top(&image).join(outside.trim_start_matches('/'));
    assert!(inside.join("new").is_file() && inside.join("deep/er").is_file());
}

/// A link as the last name is replaced, not followed; modes, owners and times of what it leads to stay.
#[test]
fn links_are_replaced() {
    let scene = Scene::new();
    let (outside, canary) = (scene.outside(), format!("{}/canary", scene.outside()));
    let mut tar = LayerTar::new();
    tar.symlink("file", &canary).file("file", "evil");
    tar.symlink("folder", &outside).entry(&TarEntry {
        mode: 0o777,
        owner: (7, 7),
        ..TarEntry::new(b'5', "folder")
    });
    tar.symlink("link", &canary).link("hard", "link").file("hard", "evil");
    // A folder of the archive becomes a link before its mode and time are set, and while it is the last one opened.
    tar.entry(&TarEntry { mode: 0o700, owner: (7, 7), ..TarEntry::new(b'5', "late") });
    tar.file("late/a", "a").symlink("late", &outside).file("late/b", "evil");
    let image = scene.load(&[&tar]).unwrap();
    scene.assert_untouched();
    let top = scene.top(&image);
    for name in ["file", "hard"] {
        assert!(top.join(name).symlink_metadata().unwrap().is_file(), "{name}");
    }
    assert!(top.join("folder").symlink_metadata().unwrap().is_dir());
    assert!(top.join("late").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn hard_links_reach_no_file_of_the_host() {
    let canary = |scene: &Scene| format!("{}/canary", scene.outside());
    let scene = Scene::new();
    scene.assert_refused(&[LayerTar::new().link("x", &canary(&scene))], "is no file of this layer");
    let scene = Scene::new();
    let mut tar = LayerTar::new();
    tar.symlink("dir", &scene.outside()).link("x", "dir/canary");
    scene.assert_refused(&[&tar], "is no file of this layer");
    // Nor through a link of the layer below.
    let scene = Scene::new();
    let mut below = LayerTar::new();
    below.symlink("dir", &scene.outside()).symlink("file", &canary(&scene));
    for target in ["dir/canary", "file"] {
        scene.assert_refused(&[&below, LayerTar::new().link("x", target)], "is no file of this layer");
    }
    // A link that leads to a link of the host's name is that link.
    let scene = Scene::new();
    let mut tar = LayerTar::new();
    tar.symlink("a", &canary(&scene)).link("b", "a");
    let image = scene.load(&[&tar]).unwrap();
    assert!(scene.top(&image).join("b").symlink_metadata().unwrap().is_symlink());
    scene.assert_untouched();
}

#[test]
fn whiteouts_hide_names_only() {
    for path in [".wh...", "a/.wh..", ".wh.", "a/.wh..."] {
        Scene::new().assert_refused(&[LayerTar::new().file(path, "")], "hides");
    }
    let scene = Scene::new();
    let mut below = LayerTar::new();
    below.folder("dir").file("dir/a", "a").symlink("link", &scene.outside());
    let mut above = LayerTar::new();
    above.file("link/.wh.canary", "").file(".wh.dir", "").file("dir/b", "b");
    let image = scene.load(&[&below, &above]).unwrap();
    scene.assert_untouched();
    let tree = moat_tests::list_overlay(&scene.store.layer_paths(&image));
    assert!(tree.iter().any(|line| line.starts_with("./dir/b ")), "{tree:?}");
    assert!(!tree.iter().any(|line| line.starts_with("./dir/a ")), "{tree:?}");
}

#[test]
fn the_last_of_several_entries_holds() {
    let scene = Scene::new();
    let mut tar = LayerTar::new();
    tar.file("x", "file").folder("x").file("x/y", "y").folder("x/z").symlink("x", "y").file("x", "last");
    tar.folder("d").file("d/a", "a").folder("d").link("l", "x").file("l", "other");
    let image = scene.load(&[&tar]).unwrap();
    let top = scene.top(&image);
    assert_eq!(std::fs::read_to_string(top.join("x")).unwrap(), "last");
    assert_eq!(std::fs::read_to_string(top.join("l")).unwrap(), "other");
    assert_eq!(std::fs::read_to_string(top.join("d/a")).unwrap(), "a");
}

/// A layer may take so much and no more, whatever it claims.
#[test]
fn bombs_are_defused() {
    let limits = LayerLimits { bytes: 1 << 20, inodes: 100, depth: 20 };
    let limited = || {
        let mut scene = Scene::new();
        scene.store = scene.store.clone().with_limits(limits);
        scene
    };
    #[track_caller]
    fn too_large(scene: &Scene, tar: &LayerTar) {
        assert_eq!(scene.load(&[tar]).unwrap_err().kind(), Kind::TooLarge);
        scene.assert_nothing();
    }
    // Many files; deep ones; a large one; one whose holes are large.
    let mut tar = LayerTar::new();
    for number in 0..101 {
        tar.file(&format!("f{number}"), "");
    }
    too_large(&limited(), &tar);
    too_large(&limited(), LayerTar::new().file(&"d/".repeat(21), ""));
    too_large(&limited(), LayerTar::new().file("large", &"x".repeat(1 << 20).repeat(2)));
    let mut tar = LayerTar::new();
    let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n39 GNU.sparse.realsize=123456789012345\n";
    tar.raw(&header(&TarEntry { size: Some(records.len() as u64), ..TarEntry::new(b'x', "pax") }), records);
    let mut map = b"0\n".to_vec();
    map.resize(512, 0);
    tar.entry(&TarEntry { content: &map, ..TarEntry::new(b'0', "holes") });
    too_large(&limited(), &tar);
    // An extended header that claims to be larger than any.
    let mut tar = LayerTar::new();
    tar.raw(&header(&TarEntry { size: Some(1 << 32), ..TarEntry::new(b'x', "pax") }), b"");
    too_large(&limited(), &tar);
    let mut tar = LayerTar::new();
    tar.raw(&header(&TarEntry { size: Some(1 << 32), ..TarEntry::new(b'L', "long") }), b"");
    too_large(&limited(), &tar);
}

/// A few kilobytes that decompress to hundreds of megabytes stop at the limit.
#[test]
fn packed_bombs_are_defused() {
    let mut tar = LayerTar::new();
    tar.file("small", "x");
    let mut plain = tar.finish();
    plain.resize(256 << 20, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    let packed = gzip.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let scene = Scene::new();
    let diff_id = moat_image::Digest::of(&plain).to_string();
    let layout = oci_layout(&scene.folder.path().join("layout"), &[packed], &[diff_id]);
    let limits = LayerLimits { bytes: 16 << 20, ..LayerLimits::default() };
    let store = scene.store.clone().with_limits(limits);
    let error = load(&store, &layout, &LoadSpec::default(), &silent).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge, "{error}");
    scene.assert_nothing();
    // The same bytes within the limit are an image.
    assert!(scene.load_layout(&layout).is_ok());
}

#[test]
fn malformed_archives_are_refused() {
    let cut = |size| {
        let mut tar = LayerTar::new();
        tar.raw(&header(&TarEntry { size: Some(size), ..TarEntry::new(b'0', "cut") }), b"short");
        tar
    };
    Scene::new().assert_refused(&[&cut(100_000)], "ends within a file");
    let mut wrong = header(&TarEntry::new(b'0', "sum"));
    wrong[0] ^= 1;
    Scene::new().assert_refused(&[LayerTar::new().raw(&wrong, b"")], "wrong checksum");
    let strange = TarEntry::new(b'V', "volume");
    Scene::new().assert_refused(&[LayerTar::new().entry(&strange)], "none of a file system's");
    let huge = TarEntry { size: Some(0o77_777_777_777), ..TarEntry::new(b'0', "huge") };
    Scene::new().assert_refused(&[LayerTar::new().raw(&header(&huge), b"")], "ends within a file");
    Scene::new().assert_refused(&[LayerTar::new().file("a", "x").file("a/b", "y")], "in another");
}

/// What a layer says to overlayfs and to security modules is not passed on.
#[test]
fn attributes_of_the_hosts_are_left_out() {
    let scene = Scene::new();
    let xattrs: [(&str, &[u8]); 6] = [
        ("trusted.overlay.redirect", b"/outside"),
        ("trusted.overlay.opaque", b"y"),
        ("user.overlay.opaque", b"y"),
        ("security.selinux", b"unconfined_u"),
        ("trusted.other", b"x"),
        ("user.kept", b"x"),
    ];
    let mut tar = LayerTar::new();
    tar.entry(&TarEntry { xattrs: &xattrs, ..TarEntry::new(b'5', "folder") });
    tar.entry(&TarEntry { xattrs: &xattrs, ..TarEntry::new(b'0', "file") });
    let image = scene.load(&[&tar]).unwrap();
    for name in ["folder", "file"] {
        use std::os::fd::AsFd;
        let opened = std::fs::File::open(scene.top(&image).join(name)).unwrap();
        assert_eq!(moat_linux::fs::list_xattrs(opened.as_fd()).unwrap(), ["user.kept"], "{name}");
    }
}

/// Device nodes are made for root only, whose store nobody else may enter.
#[test]
fn devices_are_left_out_where_they_could_be_opened() {
    use std::os::unix::fs::PermissionsExt;
    let mut tar = LayerTar::new();
    tar.entry(&TarEntry { device: (1, 1), mode: 0o666, ..TarEntry::new(b'3', "mem") });
    tar.entry(&TarEntry { device: (8, 0), mode: 0o666, ..TarEntry::new(b'4', "sda") });
    tar.file("file", "");
    for ownership in [Ownership::Caller, Ownership::Privileged] {
        let scene = Scene::of(ownership);
        let image = scene.load(&[&tar]).unwrap();
        let top = scene.top(&image);
        let is_device = |name: &str| {
            let kind = top.join(name).symlink_metadata().map(|found| found.file_type());
            kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
        };
        let expected = ownership == Ownership::Privileged;
        assert_eq!((is_device("mem"), is_device("sda")), (expected, expected));
        let mode = scene.store.root().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

/// The digest of the archive before compression is held against the configuration's.
#[test]
fn another_archive_than_promised_is_refused() {
    let scene = Scene::new();
    let layer = LayerTar::new().file("a", "a").finish();
    let other = moat_image::Digest::of(b"something else").to_string();
    let layout = oci_layout(&scene.folder.path().join("layout"), &[layer], &[other]);
    let error = scene.load_layout(&layout).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    scene.assert_nothing();
}
