//! Local forms: load, save, import, commit; and the names of images.

use std::fs::File;
use std::process::Command;

use moat_image::{
    CommitSpec, History, ImportSpec, Kind, LoadSpec, Reference, RunConfig, commit, hello, import,
    import_from, load, load_from, save, save_to_folder, silent,
};
use moat_tests::{LayerTar, TarEntry, Umoci, done, list_path, plain_layout};

use super::{Scratch, assert_same};

fn layers() -> Vec<Vec<u8>> {
    let mut low = LayerTar::new();
    low.folder("etc").file("etc/a", "a").file("etc/b", "b").folder("gone").file("gone/x", "x");
    low.entry(&TarEntry { mode: 0o4755, content: b"suid", ..TarEntry::new(b'0', "suid") });
    let mut high = LayerTar::new();
    high.file("etc/.wh.a", "").file(".wh.gone", "").link("etc/c", "etc/b");
    vec![low.finish(), high.finish()]
}

fn loaded(scratch: &Scratch) -> moat_image::Image {
    let layout = plain_layout(&scratch.path().join("layout"), &layers());
    load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0)
}

/// A hard link to a file of a layer below brings that file up, as overlayfs would.
#[test]
fn links_to_files_of_lower_layers() {
    let scratch = Scratch::new();
    let image = loaded(&scratch);
    let tree = scratch.tree(&image);
    let line = |path: &str| tree.iter().find(|line| line.starts_with(&format!("{path} "))).cloned();
    assert!(line("./etc/a").is_none() && line("./gone").is_none() && line("./gone/x").is_none(), "{tree:#?}");
    assert!(line("./etc/c").unwrap().contains(" as ./etc/b "), "{tree:#?}");
    assert!(line("./suid").unwrap().contains(" 4755 "), "{tree:#?}");
    scratch.assert_clean();
}

/// What is saved is read by skopeo in both its forms, by ourselves, and has the same digests.
#[test]
fn saved_images_are_read_by_others() {
    let scratch = Scratch::new();
    let image = loaded(&scratch);
    let archive = scratch.path().join("saved.tar");
    save(&scratch.store, &["test.example/image:1"], File::create(&archive).unwrap()).unwrap();
    for form in ["docker-archive", "oci-archive"] {
        let umoci = Umoci::of(&format!("{form}:{}", archive.display()));
        assert_same(&scratch.tree(&image), &list_path(&umoci.unpack("compared")));
    }
    let again = Scratch::new();
    let packed = scratch.path().join("saved.tar.gz");
    done(Command::new("sh").arg("-c").arg(format!("gzip -c {} > {}", archive.display(), packed.display())));
    let mut stream = File::open(&packed).unwrap();
    let images = load_from(&again.store, &mut stream, &LoadSpec::default(), &silent).unwrap();
    assert_eq!(images[0].id, image.id);
    assert_eq!(images[0].names, image.names);
    assert_same(&again.tree(&images[0]), &scratch.tree(&image));
    let folder = scratch.path().join("folder");
    save_to_folder(&scratch.store, &[&image.id.to_string()], &folder).unwrap();
    let third = Scratch::new();
    let images = load(&third.store, &folder, &LoadSpec::default(), &silent).unwrap();
    assert_eq!((images[0].id, images[0].names.len()), (image.id, 0));
    assert_eq!(images[0].layers, image.layers);
}

/// An archive of Docker's older form: layers as `ID/layer.tar`, one of them a link to another.
#[test]
fn archives_of_older_dockers_are_loaded() {
    let scratch = Scratch::new();
    let layer = layers().remove(0);
    let diff_id = moat_image::Digest::of(&layer).to_string();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [diff_id, diff_id] },
    });
    let list = serde_json::json!([{
        "Config": "c.json", "RepoTags": ["old:1", "old:2"], "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    let mut tar = LayerTar::new();
    let entry =
        |path: &'static str, content: &'static [u8]| TarEntry { content, ..TarEntry::new(b'0', path) };
    tar.folder("one").entry(&entry("one/layer.tar", layer.leak()));
    tar.folder("two").symlink("two/layer.tar", "../one/layer.tar");
    tar.file("c.json", &config.to_string()).file("manifest.json", &list.to_string());
    let archive = scratch.path().join("old.tar");
    std::fs::write(&archive, tar.finish()).unwrap();
    let image = load(&scratch.store, &archive, &LoadSpec::default(), &silent).unwrap().remove(0);
    assert_eq!(image.layers.len(), 2);
    let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["old:1", "old:2"]);
    scratch.assert_clean();
}

#[test]
fn root_file_systems_are_imported() {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/b/c"), "c").unwrap();
    std::fs::hard_link(root.join("a/b/c"), root.join("d")).unwrap();
    let long = root.join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    std::os::unix::fs::symlink("z".repeat(200), long.join("link")).unwrap();
    rustix::fs::setxattr(root.join("d"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    let config = RunConfig { cmd: Some(vec!["/d".to_owned()]), ..RunConfig::default() };
    let name: Reference = "imported".parse().unwrap();
    let spec = ImportSpec { name: Some(name.clone()), config: config.clone(), ..ImportSpec::default() };
    let image = import(&scratch.store, &root, spec.clone(), &silent).unwrap();
    assert_same(&scratch.tree(&image), &list_path(&root));
    assert_eq!((image.config.config, image.names), (config, vec![name.clone()]));
    // The same from an archive, packed, from a stream; the name moves on.
    let archive = scratch.path().join("root.tar.gz");
    let tar = format!("tar --xattrs -C {} -czf {} .", root.display(), archive.display());
    done(Command::new("sh").arg("-c").arg(tar));
    let other = import_from(&scratch.store, File::open(&archive).unwrap(), spec, &silent).unwrap();
    assert_same(&scratch.tree(&other), &list_path(&root));
    assert_eq!(scratch.store.find("imported").unwrap().id, other.id);
    assert_eq!(scratch.store.find(&image.id.to_string()).unwrap().names, []);
    scratch.assert_clean();
}

/// What a workload has changed becomes a layer: the upper folder of an overlay, with its whiteouts.
#[test]
fn changes_are_committed() {
    use std::os::fd::AsFd;
    let scratch = Scratch::new();
    let base = loaded(&scratch);
    let upper = scratch.path().join("upper");
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/new"), "new").unwrap();
    std::fs::create_dir_all(upper.join("volume/data")).unwrap();
    let dir = File::open(upper.join("etc")).unwrap();
    moat_linux::fs::mknod_at(dir.as_fd(), "b".as_ref(), rustix::fs::FileType::CharacterDevice, 0, 0, 0)
        .unwrap();
    std::fs::create_dir(upper.join("opaque")).unwrap();
    moat_linux::fs::set_xattr(
        File::open(upper.join("opaque")).unwrap().as_fd(),
        "trusted.overlay.opaque",
        b"y",
    )
    .unwrap();
    let spec = CommitSpec {
        name: Some("committed:1".parse().unwrap()),
        message: Some("why".to_owned()),
        created_by: Some("sh".to_owned()),
        ..CommitSpec::default()
    };
    let left_out = |path: &std::path::Path| path.starts_with("volume/data");
    let image = commit(&scratch.store, &base, &upper, &left_out, spec, &silent).unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.layers[..2], base.layers[..]);
    let tree = scratch.tree(&image);
    let has = |path: &str| tree.iter().any(|line| line.starts_with(&format!("{path} ")));
    assert!(
        has("./etc/new") && has("./etc/c") && !has("./etc/b") && has("./volume") && !has("./volume/data")
    );
    let History { comment, created_by, .. } = &scratch.store.history(&image)[0].entry;
    assert_eq!((comment.as_deref(), created_by.as_deref()), (Some("why"), Some("sh")));
    scratch.assert_clean();
}

#[test]
fn images_are_found_tagged_and_removed() {
    let scratch = Scratch::new();
    let (store, image) = (&scratch.store, loaded(&scratch));
    let id = image.id.to_string();
    let hex = image.id.hex();
    for name in ["test.example/image:1", &id, &hex, &hex[..12], &hex[..1]] {
        assert_eq!(store.find(name).unwrap().id, image.id, "{name}");
    }
    for name in ["test.example/image", "other", "ffffffffffff0"] {
        assert_eq!(store.find(name).unwrap_err().kind(), Kind::NotFound, "{name}");
    }
    store.tag(&image, &"second".parse().unwrap()).unwrap();
    store.hold(&image, "workload-1").unwrap();
    assert_eq!(store.remove(&id, false).unwrap_err().kind(), Kind::InUse);
    // One of several names goes although the image is held; the last does not.
    assert_eq!(store.remove("second", false).unwrap().untagged, ["second:latest"]);
    let error = store.remove("test.example/image:1", false).unwrap_err();
    assert_eq!(error.to_string(), "image test.example/image:1 is used by workload-1");
    assert!(store.remove("test.example/image:1", true).unwrap().deleted.is_empty());
    assert!(store.prune(true, &|_| true).unwrap().removed.deleted.is_empty(), "it is still held");
    assert_eq!(store.list().unwrap().len(), 1);
    store.release("workload-1").unwrap();
    // Left by somebody who is gone: nobody holds its lock.
    std::fs::create_dir(store.root().join("work/image-1-2-3")).unwrap();
    let pruned = store.prune(false, &|_| true).unwrap();
    assert_eq!(pruned.removed.deleted.len(), 1 + image.layers.len());
    assert!(pruned.reclaimed_bytes > 0);
    assert_eq!(store.list().unwrap(), []);
    for folder in ["layers", "blobs", "images", "names", "holds", "work"] {
        let left = std::fs::read_dir(store.root().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder} is not empty");
    }
}

#[test]
fn the_built_in_image_is_installed_without_a_network() {
    let scratch = Scratch::new();
    let image = moat_image::pull(
        &scratch.store,
        &"moat/hello".parse().unwrap(),
        &moat_image::PullSpec::default(),
        &silent,
    )
    .unwrap();
    assert_eq!(hello(&scratch.store).unwrap().id, image.id);
    assert_eq!(scratch.store.find("moat/hello").unwrap().id, image.id);
    let program = scratch.store.layer_paths(&image)[0].join("hello");
    let (name, value) = moat_image::hello_environment();
    let said = done(Command::new(&program).env(name, value));
    assert!(said.contains("This is a container") && said.contains("hostname"), "{said}");
    let said = done(Command::new(&program).env_remove(name));
    assert!(said.contains("can be compared"), "{said}");
    scratch.assert_clean();
}
