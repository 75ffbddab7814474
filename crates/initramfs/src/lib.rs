//! An initial file system for a distribution's kernel: what is a module there goes in, in the order of
//! loading, with an init that loads it.
//!
//! `/modules/NNN-name.ko` is the form: whoever is `/init` loads the files in the order of their names.

mod archive;
mod modules;

use std::io::{Error, Result};
use std::path::{Path, PathBuf};

pub use archive::Archive;
pub use modules::{Index, Module};

/// What a workload needs, where it is not built in. What these need comes with them.
pub const WANTED: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "vmgenid",
    "erofs",
    "overlay",
    "ext4",
];

/// What goes into an initial file system.
#[derive(Clone, Debug, Default)]
pub struct InitramfsSpec {
    /// The kernel's folder of modules, `lib/modules/VERSION`.
    pub modules: Option<PathBuf>,
    /// Further modules beside [`WANTED`].
    pub further: Vec<String>,
    /// A static program that becomes `/init`.
    pub init: PathBuf,
    /// Further files: of the host, and where they go.
    pub files: Vec<(PathBuf, String)>,
}

/// Builds the archive, in the form that every kernel unpacks.
pub fn build(spec: &InitramfsSpec) -> Result<Vec<u8>> {
    let mut archive = base(&read(&spec.init)?);
    if let Some(folder) = &spec.modules {
        add_modules(&mut archive, folder, &spec.further)
            .map_err(|error| named("modules of", folder, &error))?;
    }
    for (source, target) in &spec.files {
        let target = target.trim_start_matches('/');
        if target.is_empty() || target.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Error::other(format!("{target:?} is no place for a file")));
        }
        archive.folders_of(target);
        archive.file(target, mode(source)?, &read(source)?);
    }
    Ok(archive.finish())
}

/// An archive of the modules alone, for who adds an init later: a kernel takes several archives as one.
///
/// `folder` is the kernel's `lib/modules/VERSION`.
pub fn modules(folder: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    add_modules(&mut archive, folder, &[]).map_err(|error| named("modules of", folder, &error))?;
    Ok(archive.finish())
}

/// An archive with the folders that a first process mounts on, and that process.
pub fn base(init: &[u8]) -> Archive {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp"] {
        archive.folder(folder);
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, init);
    archive
}

fn add_modules(archive: &mut Archive, folder: &Path, further: &[String]) -> Result<()> {
    let index = Index::scan(folder)?;
    for name in further {
        if !index.knows(name) {
            return Err(Error::other(format!("there is no module {name}")));
        }
    }
    let wanted: Vec<&str> = WANTED.iter().copied().chain(further.iter().map(String::as_str)).collect();
    archive.folder("modules");
    for (place, module) in index.closure(&wanted).into_iter().enumerate() {
        archive.file(&module_place(place, module), 0o644, &module.read()?);
    }
    Ok(())
}

/// Where the module that is loaded in this place lies in the archive.
fn module_place(place: usize, module: &Module) -> String {
    format!("modules/{place:03}-{}.ko", module.name)
}

/// An error of the system with the object that it is about.
fn named(what: &str, path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| named("file", path, &error))
}

fn mode(path: &Path) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path).map_err(|error| named("file", path, &error))?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_folders_and_no_way_out() {
        // Small, because a program may hold any name that is looked for below.
        let init = PathBuf::from("/proc/self/comm");
        let spec = |target: &str| InitramfsSpec {
            init: init.clone(),
            files: vec![(PathBuf::from("/proc/self/status"), target.to_owned())],
            ..InitramfsSpec::default()
        };
        let bytes = build(&spec("/etc/a/status")).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let place = |name: &str| text.find(name).unwrap();
        assert!(place("etc\0") < place("etc/a\0") && place("etc/a\0") < place("etc/a/status\0"));
        assert!(text.contains("TRAILER!!!"));
        for target in ["", "/", "../x", "a//b", "a/./b"] {
            assert!(build(&spec(target)).is_err(), "{target:?}");
        }
    }
}
