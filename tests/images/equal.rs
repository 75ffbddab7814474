//! The merged view, entry by entry.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use moat_image::{LoadSpec, Progress, PullSpec, load, pull, silent};
use moat_tests::{LayerTar, Registry, TarEntry, Umoci, debian, done, list_path};

use super::{Scratch, assert_same};

fn quiet() -> PullSpec {
    PullSpec { credentials: moat_image::Credentials::none(), ..PullSpec::default() }
}

/// Pulls what is in the layout by way of a registry, and compares it with what umoci unpacks.
#[track_caller]
fn compare(umoci: &Umoci, layers: usize) {
    let registry = Registry::start();
    registry.fill(&umoci.name(), "test/image:1");
    let scratch = Scratch::new();
    let name = registry.name("test/image:1").parse().unwrap();
    let image = pull(&scratch.store, &name, &quiet(), &silent).unwrap();
    assert_eq!(image.layers.len(), layers);
    let theirs = umoci.unpack("compared");
    assert_same(&scratch.tree(&image), &list_path(&theirs));
    scratch.assert_clean();
    // The layout itself, without a registry, is the same image.
    let again = Scratch::new();
    let loaded = load(&again.store, &umoci.layout(), &LoadSpec::default(), &silent).unwrap();
    assert_eq!(loaded[0].id, image.id);
    assert_same(&again.tree(&loaded[0]), &list_path(&theirs));
}

fn busybox_root(root: &Path) {
    for folder in ["bin", "etc", "tmp", "usr/share/deep/er", "var/empty"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    std::fs::copy(busybox.unwrap(), root.join("bin/busybox")).unwrap();
    std::fs::set_permissions(root.join("bin/busybox"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    for applet in ["sh", "ls", "cat"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::hard_link(root.join("bin/busybox"), root.join("bin/other-name")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(root.join("usr/share/deep/er/file"), "deep").unwrap();
    std::os::unix::fs::chown(root.join("etc/passwd"), Some(1000), Some(2000)).unwrap();
    rustix::fs::setxattr(root.join("etc/passwd"), "user.note", b"kept", rustix::fs::XattrFlags::empty())
        .unwrap();
}

#[test]
fn busybox_of_one_layer() {
    let umoci = Umoci::new();
    let root = umoci.unpack("bundle");
    busybox_root(&root);
    umoci.repack("bundle");
    compare(&umoci, 1);
}

/// Twelve layers as umoci makes them of what was changed: files and folders come, change, go, and come as something else.
#[test]
fn twelve_layers_of_changes() {
    let umoci = Umoci::new();
    let root = umoci.unpack("bundle");
    busybox_root(&root);
    umoci.repack("bundle");
    let change: [&dyn Fn(); 11] = [
        &|| std::fs::remove_file(root.join("bin/other-name")).unwrap(),
        &|| std::fs::write(root.join("usr/share/deep/er/file"), "changed, the folders are not").unwrap(),
        &|| std::fs::remove_dir_all(root.join("usr/share/deep")).unwrap(),
        &|| std::fs::write(root.join("usr/share/deep"), "a file where a folder was").unwrap(),
        &|| {
            std::fs::remove_file(root.join("usr/share/deep")).unwrap();
            std::fs::create_dir(root.join("usr/share/deep")).unwrap();
            std::fs::write(root.join("usr/share/deep/new"), "a folder again").unwrap();
        },
        &|| {
            std::fs::set_permissions(root.join("var/empty"), std::fs::Permissions::from_mode(0o2750))
                .unwrap();
        },
        &|| symlink("../etc/passwd", root.join("var/link")).unwrap(),
        &|| {
            std::fs::remove_dir_all(root.join("etc")).unwrap();
            symlink("usr/share/deep", root.join("etc")).unwrap();
        },
        &|| std::fs::hard_link(root.join("bin/busybox"), root.join("bin/third")).unwrap(),
        &|| std::fs::remove_file(root.join("bin/sh")).unwrap(),
        &|| std::fs::write(root.join("last"), vec![0; 100_000]).unwrap(),
    ];
    for change in change {
        change();
        umoci.repack("bundle");
    }
    compare(&umoci, 12);
}

/// Debian, and eleven archives that tell everything that layers may: whiteouts, opaque folders, all kinds of files.
#[test]
fn debian_of_twelve_layers() {
    let umoci = Umoci::new();
    umoci.add(&debian());
    for number in 0..11 {
        let mut tar = LayerTar::new();
        let own = format!("srv/layer-{number}");
        tar.folder("srv/").folder(&own);
        tar.file(&format!("{own}/file"), "content").link(&format!("{own}/name"), &format!("{own}/file"));
        tar.symlink(&format!("{own}/link"), "../../etc/passwd");
        tar.entry(&TarEntry {
            mode: 0o6755,
            owner: (7, 8),
            content: b"x",
            ..TarEntry::new(b'0', "srv/setuid")
        });
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let xattrs: [(&str, &[u8]); 2] = [("security.capability", &capability), ("user.a", b"b\n\0c")];
        tar.entry(&TarEntry { xattrs: &xattrs, content: b"ping", ..TarEntry::new(b'0', "srv/ping") });
        tar.entry(&TarEntry::new(b'6', &format!("{own}/fifo")));
        tar.entry(&TarEntry { device: (1, 3), mode: 0o666, ..TarEntry::new(b'3', &format!("{own}/null")) });
        match number {
            3 => drop(tar.file("usr/share/doc/.wh..wh..opq", "").file("usr/share/doc/only", "one")),
            5 => drop(tar.file("etc/.wh.passwd", "").file("usr/share/.wh.zoneinfo", "")),
            7 => drop(tar.file("etc/passwd", "root:x:0:0::/:/bin/sh\n")),
            // Neither the folder nor its parents have an entry: they look as before.
            9 => drop(tar.file("var/cache/apt/new", "x").file("tmp/x", "y")),
            _ => {}
        }
        let archive = umoci.place(&format!("{number}.tar"));
        std::fs::write(&archive, tar.finish()).unwrap();
        umoci.add(&archive);
    }
    compare(&umoci, 12);
}

#[test]
fn one_hundred_and_twenty_layers() {
    let umoci = Umoci::new();
    for number in 0..120 {
        let mut tar = LayerTar::new();
        let own = format!("d{}", number % 10);
        tar.folder(&own).file(&format!("{own}/f{number}"), &number.to_string());
        if number >= 10 {
            tar.file(&format!("{own}/.wh.f{}", number - 10), "");
        }
        if number % 7 == 0 {
            tar.folder("opaque").file("opaque/.wh..wh..opq", "").file(&format!("opaque/{number}"), "");
        }
        let archive = umoci.place("layer.tar");
        std::fs::write(&archive, tar.finish()).unwrap();
        umoci.add(&archive);
    }
    compare(&umoci, 120);
}

/// Layers that buildah makes by comparing root file systems.
#[test]
fn layers_of_buildah() {
    let scratch = Scratch::new();
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        let place = |name: &str| scratch.path().join(name);
        command.arg("--root").arg(place("root")).arg("--runroot").arg(place("run"));
        done(command.args(["--storage-driver", "vfs"]).args(arguments)).trim().to_owned()
    };
    let first = buildah(&["from", "scratch"]);
    busybox_root(Path::new(&buildah(&["mount", &first])));
    buildah(&["umount", &first]);
    buildah(&["commit", "-q", &first, "one"]);
    let second = buildah(&["from", "--pull-never", "localhost/one"]);
    let root = buildah(&["mount", &second]);
    std::fs::remove_dir_all(Path::new(&root).join("usr/share/deep")).unwrap();
    std::fs::remove_file(Path::new(&root).join("etc/passwd")).unwrap();
    std::fs::write(Path::new(&root).join("etc/added"), "x").unwrap();
    buildah(&["umount", &second]);
    let archive = scratch.path().join("two.tar");
    buildah(&["commit", "-q", &second, &format!("oci-archive:{}", archive.display())]);
    let umoci = Umoci::of(&format!("oci-archive:{}", archive.display()));
    buildah(&["rm", "--all"]);
    compare(&umoci, 2);
}

/// zstd layers, which skopeo makes.
#[test]
fn layers_packed_by_zstd() {
    let umoci = Umoci::new();
    let root = umoci.unpack("bundle");
    busybox_root(&root);
    umoci.repack("bundle");
    let registry = Registry::start();
    let to = format!("docker://{}", registry.name("zstd:1"));
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-compress-format",
        "zstd",
        "--dest-compress",
    ]);
    done(skopeo.args([&umoci.name(), &to]));
    let scratch = Scratch::new();
    let notes = std::sync::Mutex::new(Vec::new());
    let listen = |progress| {
        if let Progress::Note(note) = progress {
            notes.lock().unwrap().push(note);
        }
    };
    let name = registry.name("zstd:1").parse().unwrap();
    let image = pull(&scratch.store, &name, &quiet(), &listen).unwrap();
    assert_eq!(image.layers[0].blob.media_type, moat_image::media_type::OCI_LAYER_ZSTD);
    assert_same(&scratch.tree(&image), &list_path(&umoci.unpack("compared")));
    assert_eq!(*notes.lock().unwrap(), Vec::<String>::new());
}
