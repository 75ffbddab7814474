//! `moat kernel`, with the kernels that the tools of the project have brought.

use std::path::PathBuf;
use std::process::Command;

use moat_tests::{Moat, done};

/// The folder of an unpacked package, as the smallest thing that is a kernel with modules: a head that tells its
/// version, and a module that is copied from nowhere.
fn package(moat: &Moat, version: &str) -> PathBuf {
    let root = moat.path("package");
    let modules = root.join("lib/modules").join(version).join("kernel");
    std::fs::create_dir_all(root.join("boot")).unwrap();
    std::fs::create_dir_all(&modules).unwrap();
    let mut image = vec![0; 0x400];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    let text = format!("{version} (somebody)");
    image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
    std::fs::write(root.join(format!("boot/vmlinuz-{version}")), image).unwrap();
    std::fs::write(modules.join("erofs.ko"), "the module erofs").unwrap();
    std::fs::write(modules.join("unwanted.ko"), "the module of a sound card").unwrap();
    root
}

#[test]
fn kernels_are_imported_chosen_and_removed() {
    let moat = Moat::empty();
    let package = package(&moat, "6.1.0-49-cloud-amd64");
    let path = package.to_str().unwrap();
    assert_eq!(moat.call(&["kernel", "import", path]).success(), "6.1.0-49-cloud-amd64\n");
    assert!(moat.call(&["kernel", "import", path]).failure().contains("already"));
    assert_eq!(moat.call(&["kernel", "import", "--name", "cloud", path]).success(), "cloud\n");
    assert_eq!(moat.call(&["kernel", "use", "cloud"]).success(), "cloud\n");
    let format = "{{.Name}} {{.Version}} {{.Modules}} {{.Default}}";
    let listed = moat.call(&["kernel", "ls", "--format", format]);
    let expected =
        "6.1.0-49-cloud-amd64 6.1.0-49-cloud-amd64 loaded \ncloud 6.1.0-49-cloud-amd64 loaded yes\n";
    assert_eq!(listed.success(), expected);
    let archive = std::fs::read(moat.root().join("kernels/cloud/modules.cpio")).unwrap();
    let archive = String::from_utf8_lossy(&archive);
    assert!(archive.contains("modules/000-erofs.ko") && !archive.contains("sound card"), "{archive}");
    assert_eq!(moat.call(&["kernel", "rm", "cloud"]).success(), "cloud\n");
    assert!(moat.call(&["kernel", "use", "cloud"]).failure().contains("no such kernel"));
    assert_eq!(moat.call(&["kernel", "use", "host"]).success(), "host\n");
    assert_eq!(moat.call(&["kernel", "ls", "-q"]).success(), "6.1.0-49-cloud-amd64\n");
}

/// A Debian package is unpacked; one that only names another says so.
#[test]
fn a_package_is_a_kernel() {
    let moat = Moat::empty();
    let root = package(&moat, "6.1.0-1-amd64");
    let control = "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@example>\n\
                   Description: a kernel\n";
    let build = |name: &str, root: &std::path::Path| {
        std::fs::create_dir_all(root.join("DEBIAN")).unwrap();
        std::fs::write(root.join("DEBIAN/control"), control).unwrap();
        let package = moat.path(name);
        done(Command::new("dpkg-deb").args(["--build", "-Znone"]).arg(root).arg(&package));
        package.to_str().unwrap().to_owned()
    };
    let package = build("kernel.deb", &root);
    assert_eq!(moat.call(&["kernel", "import", &package]).success(), "6.1.0-1-amd64\n");
    let empty = moat.path("meta");
    std::fs::create_dir(&empty).unwrap();
    let refused = moat.call(&["kernel", "import", &build("meta.deb", &empty)]);
    let said = refused.failure();
    assert!(said.contains("holds no vmlinuz") && said.contains("only names another"), "{said}");
    std::fs::write(moat.path("text"), "no kernel").unwrap();
    let refused = moat.call(&["kernel", "import", moat.path("text").to_str().unwrap()]);
    let said = refused.failure();
    assert!(said.contains("neither a vmlinux for x86-64, a bzImage, nor a Debian package"), "{said}");
    assert!(moat.call(&["system", "check"]).stdout.contains("everything is as it should be"));
}
