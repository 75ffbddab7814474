//! The store of kernels, with files that have a kernel's head and nothing behind it.

use std::os::unix::fs::MetadataExt;

use super::*;

struct House {
    folder: tempfile::TempDir,
    kernels: Kernels,
}

fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let boot = folder.path().join("host/boot");
    std::fs::create_dir_all(&boot).unwrap();
    let kernels = Kernels { folder: folder.path().join("kernels"), boot };
    House { folder, kernels }
}

impl House {
    fn vmlinux(&self, name: &str, version: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let head = [&b"\x7fELF\x02\x01"[..], &[0; 12], &[62, 0], &[0; 600]].concat();
        let banner = format!("Linux version %s (%s)\0Linux version {version} (somebody@somewhere)\0");
        std::fs::write(&path, [&head, banner.as_bytes()].concat()).unwrap();
        path
    }

    fn import(&self, source: &Path, name: Option<&str>) -> Result<Kernel> {
        let name = name.map(str::to_owned);
        self.kernels.import(&ImportSpec { source: source.to_owned(), name, modules: None })
    }

    fn names(&self) -> Vec<String> {
        self.kernels.list().unwrap().into_iter().map(|kernel| kernel.name).collect()
    }

    fn leftovers(&self) -> Vec<String> {
        let names = file::names_in(&self.kernels.folder).unwrap();
        names.into_iter().filter(|name| name.ends_with(WORK)).collect()
    }
}

#[test]
fn kernels_come_are_chosen_and_go() {
    let house = house();
    let none = house.kernels.choose(None).unwrap_err();
    assert!(none.hint_text().unwrap().contains("moat kernel import"), "{none:?}");
    let small = house.vmlinux("vmlinux", "6.1.99+");
    let kernel = house.import(&small, None).unwrap();
    assert_eq!((kernel.name.as_str(), kernel.state.version.as_str()), ("6.1.99-", "6.1.99+"));
    assert!(!kernel.state.modules);
    assert_eq!(std::fs::read(&kernel.image).unwrap(), std::fs::read(&small).unwrap());
    house.import(&small, Some("small")).unwrap();
    let taken = house.import(&small, Some("small")).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    for name in [DEFAULT, HOST, "../up", "x.work"] {
        assert!(house.import(&small, Some(name)).is_err(), "{name}");
    }
    assert_eq!(house.names(), ["6.1.99-", "small"]);
    assert_eq!(house.kernels.choose(None).unwrap().name, "small", "the one that came last");

    house.kernels.set_default(Some("6.1.99-")).unwrap();
    assert_eq!(house.kernels.choose(None).unwrap().name, "6.1.99-");
    assert_eq!(house.kernels.choose(Some("small")).unwrap().name, "small");
    assert!(house.kernels.set_default(Some("none")).is_err());
    house.kernels.remove("6.1.99-").unwrap();
    assert_eq!(house.kernels.default_name().unwrap(), None);
    assert_eq!(house.names(), ["small"]);
    assert_eq!(house.leftovers(), [""; 0]);
    assert_eq!(house.kernels.check(false).unwrap(), []);
}

/// The host's own goes before what was imported, and is imported once for each version.
#[test]
fn the_hosts_own_kernel_is_imported_when_it_is_wanted() {
    let house = house();
    house.import(&house.vmlinux("vmlinux", "6.9"), Some("other")).unwrap();
    for version in ["6.1.1", "6.1.2"] {
        let made = house.vmlinux("made", version);
        std::fs::rename(made, house.kernels.boot.join(format!("vmlinuz-{version}"))).unwrap();
        let chosen = house.kernels.choose(None).unwrap();
        assert_eq!(chosen.name, version);
        let again = house.kernels.choose(None).unwrap();
        assert_eq!(again.state.imported, chosen.state.imported);
    }
    assert_eq!(house.names(), ["6.1.1", "6.1.2", "other"]);
}

#[test]
fn an_initial_file_system_is_made_once_for_each_agent() {
    let house = house();
    let kernel = house.import(&house.vmlinux("vmlinux", "6.1"), Some("small")).unwrap();
    let agent = house.folder.path().join("agent");
    let boot = |content: &str| {
        std::fs::write(&agent, content).unwrap();
        house.kernels.boot_files_with(&kernel, &agent).unwrap().initramfs
    };
    let first = boot("the first agent");
    let inode = |file: &File| file.metadata().unwrap().ino();
    assert_eq!(inode(&first), inode(&boot("the first agent")));
    let second = boot("the second agent");
    assert_ne!(inode(&first), inode(&second));
    assert_eq!(first.metadata().unwrap().nlink(), 0, "the old one goes, and who has it open keeps it");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &second, &mut bytes).unwrap();
    assert!(bytes.windows(16).any(|part| part == b"the second agent"));
}

#[test]
fn what_a_killed_import_leaves_is_found() {
    let house = house();
    house.import(&house.vmlinux("vmlinux", "6.1.1"), None).unwrap();
    let kernels = &house.kernels.folder;
    // No process has this id: it is beyond the largest that the kernel gives.
    std::fs::create_dir_all(kernels.join("4194305-0.work/kernel")).unwrap();
    std::fs::create_dir(kernels.join("half")).unwrap();
    std::os::unix::fs::symlink("gone", kernels.join(DEFAULT)).unwrap();
    assert_eq!(house.kernels.check(true).unwrap().len(), 3);
    assert_eq!(house.kernels.check(false).unwrap(), []);
    assert_eq!(house.names(), ["6.1.1"]);
}
