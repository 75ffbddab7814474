//! Where a kernel comes from: a file, the folder of a package, a package, or the host's own.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Context, Error, Result};

/// What a kernel is made of, outside of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) image: PathBuf,
    /// `lib/modules/VERSION`; `None`: everything that a guest needs is built in.
    pub(super) modules: Option<PathBuf>,
    pub(super) version: String,
}

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Elf,
    BzImage,
    Package,
}

impl Source {
    /// A kernel's file, the folder of an unpacked package, or a Debian package, which is unpacked into `work`.
    pub(super) fn find(path: &Path, modules: Option<&Path>, work: &Path) -> Result<Self> {
        let what = || format!("kernel {}", path.display());
        let mut found = if path.is_dir() {
            Self::of_folder(path)
        } else if form(path)? == Form::Package {
            let unpacked = work.join("unpacked");
            unpack(path, &unpacked).context(what)?;
            Self::of_folder(&unpacked).map_err(|error| {
                error.hint(
                    "a package such as linux-image-cloud-amd64 only names another one, which holds the kernel",
                )
            })
        } else {
            Self::of_file(path)
        }
        .context(what)?;
        if let Some(folder) = modules {
            found.modules = Some(folder.to_owned());
        }
        Ok(found)
    }

    /// The kernel that the host runs, else the newest that it has.
    pub(super) fn of_host(boot: &Path, running: &str) -> Result<Option<Self>> {
        let own = boot.join(format!("vmlinuz-{running}"));
        let newest = images(boot, &["vmlinuz-"]).unwrap_or_default().pop();
        let own = own.is_file().then_some(own);
        own.or(newest).map(|image| Self::of_file(&image).context(|| image.display().to_string())).transpose()
    }

    fn of_file(image: &Path) -> Result<Self> {
        let version = match form(image)? {
            Form::BzImage => bzimage_version(image)?,
            Form::Elf => elf_version(image)?,
            Form::Package => return Err(Error::invalid("a package where a kernel should be")),
        };
        // In a package's folder and on a host they stand side by side: boot/vmlinuz-VERSION, lib/modules/VERSION.
        let root = image.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let beside = image.parent().unwrap_or(Path::new("/"));
        let places = [root.join("lib/modules"), root.join("usr/lib/modules"), beside.join("lib/modules")];
        let modules = places.iter().map(|place| place.join(&version)).find(|folder| folder.is_dir());
        Ok(Self { image: image.to_owned(), modules, version })
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let mut found = images(&folder.join("boot"), &["vmlinuz", "vmlinux"])?;
        found.extend(images(folder, &["vmlinuz", "vmlinux"])?);
        match found.as_slice() {
            [] => Err(Error::invalid("holds no vmlinuz and no vmlinux, neither itself nor in boot")),
            [image] => Self::of_file(image),
            several => {
                let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                Err(Error::invalid(format!("holds several kernels: {}", names.join(", ")))
                    .hint("import one of the files"))
            }
        }
    }
}

/// Files of a folder that begin with one of `prefixes`, by version, the newest last. None where there is no folder.
fn images(folder: &Path, prefixes: &[&str]) -> Result<Vec<PathBuf>> {
    let mut names: Vec<String> = crate::file::names_in(folder)?
        .into_iter()
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)) && folder.join(name).is_file())
        .collect();
    names.sort_by_cached_key(|name| numbers(name));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The numbers in a name: 6.1.0-9 is older than 6.1.0-10.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|sign: char| !sign.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn form(path: &Path) -> Result<Form> {
    let what = || format!("kernel {}", path.display());
    let mut head = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(0x206).read_to_end(&mut head)).context(what)?;
    // Elf64_Ehdr.e_machine of x86-64; setup_header.header of the boot protocol; ar(5).
    if head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&[62, 0]) {
        Ok(Form::Elf)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        Ok(Form::BzImage)
    } else if head.starts_with(b"!<arch>\n") {
        Ok(Form::Package)
    } else {
        Err(Error::invalid(format!(
            "kernel {}: neither a vmlinux for x86-64, a bzImage, nor a Debian package",
            path.display()
        )))
    }
}

/// setup_header.kernel_version of the boot protocol: 0x200 before a text that begins with the version.
fn bzimage_version(image: &Path) -> Result<String> {
    let what = || image.display().to_string();
    let file = std::fs::File::open(image).context(what)?;
    let mut offset = [0; 2];
    file.read_exact_at(&mut offset, 0x20e).context(what)?;
    let mut text = [0; 256];
    let at = u64::from(u16::from_le_bytes(offset)) + 0x200;
    let count = file.read_at(&mut text, at).context(what)?;
    version(text.get(..count).unwrap_or_default()).ok_or_else(|| Error::invalid("tells no version"))
}

/// Of `Linux version VERSION (...`, which every kernel holds to print it.
fn elf_version(image: &Path) -> Result<String> {
    const BANNER: &[u8] = b"Linux version ";
    let bytes = std::fs::read(image).context(|| image.display().to_string())?;
    let starts = bytes.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
    // The format of a message of the kernel has the same beginning, and a sign that is no version.
    let mut versions = starts.filter_map(|(at, _)| version(bytes.get(at + BANNER.len()..)?));
    versions.next().ok_or_else(|| Error::invalid("tells no version"))
}

/// The version that a text begins with: digits first, and nothing that a name may not have.
fn version(text: &[u8]) -> Option<String> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-+~".contains(byte);
    let length = text.iter().take(128).position(|byte| !legal(byte))?;
    let version = std::str::from_utf8(text.get(..length)?).ok()?;
    version.starts_with(|sign: char| sign.is_ascii_digit()).then(|| version.to_owned())
}

/// Unpacks a Debian package by Debian's own program.
fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(package).arg(folder);
    let done = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::invalid("dpkg-deb, which unpacks Debian packages, is not here")
                .hint("unpack it elsewhere, and import the folder")
        }
        _ => Error::from(error),
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(Error::new(format!("dpkg-deb: {}", String::from_utf8_lossy(&done.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_stands_first() {
        assert_eq!(
            version(b"6.1.0-49-cloud-amd64 (debian-kernel@l"),
            Some("6.1.0-49-cloud-amd64".to_owned())
        );
        assert_eq!(version(b"%s (%s)\0"), None);
        assert_eq!(version(b"../etc (x)"), None);
        assert_eq!(version(b""), None);
        assert_eq!(version(&[b'1'; 300]), None);
    }

    #[test]
    fn the_running_kernel_goes_before_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot");
        std::fs::create_dir(&boot).unwrap();
        assert_eq!(Source::of_host(&boot, "6.1.0-9").unwrap(), None);
        for version in ["6.1.0-9", "6.1.0-10"] {
            std::fs::write(boot.join(format!("vmlinuz-{version}")), bzimage(version)).unwrap();
        }
        std::fs::create_dir_all(folder.path().join("lib/modules/6.1.0-10")).unwrap();
        let running = Source::of_host(&boot, "6.1.0-9").unwrap().unwrap();
        assert_eq!((running.version.as_str(), running.modules), ("6.1.0-9", None));
        let newest = Source::of_host(&boot, "5.0").unwrap().unwrap();
        assert_eq!(newest.version, "6.1.0-10");
        assert_eq!(newest.modules, Some(folder.path().join("lib/modules/6.1.0-10")));
        let both = Source::find(folder.path(), None, folder.path()).unwrap_err();
        assert!(both.to_string().contains("several"), "{both}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // Too short; an ELF file of another machine; a kernel that tells no version.
        let arm = [&b"\x7fELF\x02\x01"[..], &[0; 12], &[183, 0], &[0; 600]].concat();
        let silent = [&b"\x7fELF\x02\x01"[..], &[0; 12], &[62, 0], &[0; 600]].concat();
        for bytes in [Vec::new(), b"HdrS".to_vec(), arm, silent] {
            std::fs::write(&file, bytes).unwrap();
            assert!(Source::find(&file, None, folder.path()).is_err());
        }
        assert!(Source::find(&folder.path().join("none"), None, folder.path()).is_err());
    }

    fn bzimage(version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{version} (somebody)");
        bytes[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        bytes
    }
}
