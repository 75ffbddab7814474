//! The kernels of guests.
//!
//! ```text
//! DATA/kernels/NAME/kernel.json          version and where it came from; it exists when all else does
//! DATA/kernels/NAME/image                vmlinux or bzImage
//! DATA/kernels/NAME/modules.cpio         the modules that a guest needs, where they are not built in
//! DATA/kernels/NAME/agent.json           the digest of the agent that was used last
//! DATA/kernels/NAME/initramfs-DIGEST     the agent of that digest, and the modules
//! DATA/kernels/default -> NAME           what `kernel use` has chosen
//! DATA/kernels/PID-N.work                  a kernel that is coming
//! ```
//!
//! The host's own kernel is imported when the first guest wants it, and again when the host has another one: a
//! guest's kernel stays what it is while the host is updated.

mod source;
mod stamp;

use std::fs::File;
use std::io::{ErrorKind as Io, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::file::{self, Lasting};
use crate::roots::claim_folder;
use crate::{Context, Engine, Error, ErrorKind, Result, Timestamp, check_name, program};
use source::Source;

const DEFAULT: &str = "default";
/// What a user calls the host's own kernel.
pub const HOST: &str = "host";
const WORK: &str = ".work";

/// The kernels of one data root.
#[derive(Clone, Debug)]
pub struct Kernels {
    folder: PathBuf,
    boot: PathBuf,
}

/// A kernel of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it is called here.
    pub name: String,
    /// What is saved of it.
    pub state: KernelState,
    /// vmlinux or bzImage.
    pub image: PathBuf,
    /// Bytes of its files.
    pub size_bytes: u64,
    folder: PathBuf,
}

/// What is saved of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelState {
    /// As `uname -r` gives it.
    pub version: String,
    /// The file, folder or package that it was imported from.
    pub source: PathBuf,
    /// When it was imported.
    pub imported: Timestamp,
    /// Whether a guest loads modules; else all that it needs is built in.
    pub modules: bool,
}

/// What is to be imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportSpec {
    /// A vmlinux, a bzImage, a Debian package, or the folder of an unpacked one.
    pub source: PathBuf,
    /// What it is to be called; `None`: as its version.
    pub name: Option<String>,
    /// Its `lib/modules/VERSION` where that is not beside it.
    pub modules: Option<PathBuf>,
}

/// What a machine boots from, open for reading.
#[derive(Debug)]
pub struct BootFiles {
    /// vmlinux or bzImage.
    pub kernel: File,
    /// The agent and the modules.
    pub initramfs: File,
}

impl Engine {
    /// The kernels of guests.
    pub fn kernels(&self) -> Kernels {
        Kernels { folder: self.roots().kernels(), boot: PathBuf::from("/boot") }
    }
}

impl Kernels {
    /// All kernels, by name.
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.folder)? {
            if name != DEFAULT && !name.ends_with(WORK) {
                found.extend(self.read(&name)?);
            }
        }
        Ok(found)
    }

    /// The kernel of that name. Errors: there is none.
    pub fn find(&self, name: &str) -> Result<Kernel> {
        let known = if check_name(name).is_ok() && name != DEFAULT { self.read(name)? } else { None };
        known.ok_or_else(|| {
            Error::not_found(format!("no such kernel: {name}")).hint("`moat kernel ls` lists the kernels")
        })
    }

    /// The name that `kernel use` has chosen.
    pub fn default_name(&self) -> Result<Option<String>> {
        let path = self.folder.join(DEFAULT);
        match std::fs::read_link(&path) {
            Err(error) if error.kind() == Io::NotFound => Ok(None),
            other => Ok(other.context(|| path.display().to_string())?.into_os_string().into_string().ok()),
        }
    }

    /// The kernel for a guest that asks for `name`, or for none: what `kernel use` has chosen, else the host's own,
    /// which is imported where it is not yet, else the one that came last.
    ///
    /// Errors: there is no such kernel, or none at all.
    pub fn choose(&self, name: Option<&str>) -> Result<Kernel> {
        if let Some(name) = name {
            return self.find(name);
        }
        if let Some(name) = self.default_name()? {
            return self.find(&name).map_err(|error| error.hint("`moat kernel use` chooses another one"));
        }
        if let Some(host) = self.host()? {
            return Ok(host);
        }
        self.list()?.into_iter().max_by_key(|kernel| kernel.state.imported).ok_or_else(|| {
            Error::not_found("there is no kernel for guests, and none of the host's own in /boot").hint(
                "`moat kernel import FILE` takes a vmlinux, a bzImage, or a Debian package such as \
                 linux-image-6.1.0-49-cloud-amd64",
            )
        })
    }

    /// The host's own kernel, imported where it is not yet; `None`: the host shows none.
    fn host(&self) -> Result<Option<Kernel>> {
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        let Some(host) = Source::of_host(&self.boot, &running)? else { return Ok(None) };
        let is_it = |known: &Kernel| known.state.version == host.version && known.state.source == host.image;
        if let Some(known) = self.list()?.into_iter().find(is_it) {
            return Ok(Some(known));
        }
        let imported = self.import(&ImportSpec { source: host.image.clone(), ..ImportSpec::default() });
        match imported {
            // Another guest may have wanted it at the same time.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.list()?.into_iter().find(is_it).map(Some).ok_or(error)
            }
            other => other.map(Some),
        }
    }

    /// Has guests that ask for no kernel get this one; with `None`, the host's own.
    pub fn set_default(&self, name: Option<&str>) -> Result<()> {
        let path = self.folder.join(DEFAULT);
        let Some(name) = name else { return file::remove_if_there(&path) };
        let kernel = self.find(name)?;
        let work = self.work();
        std::os::unix::fs::symlink(&kernel.name, &work).context(|| work.display().to_string())?;
        std::fs::rename(&work, &path).context(|| format!("rename {} to {}", work.display(), path.display()))
    }

    /// Brings a kernel into the store.
    ///
    /// Errors: it is no kernel; one of that name is there already, with other content.
    pub fn import(&self, spec: &ImportSpec) -> Result<Kernel> {
        let work = self.work();
        claim_folder(&work).context(|| work.display().to_string())?;
        let done = self.import_by(spec, &work);
        let cleaned = file::remove_tree(&work);
        let kernel = done?;
        cleaned?;
        Ok(kernel)
    }

    fn import_by(&self, spec: &ImportSpec, work: &Path) -> Result<Kernel> {
        let source = std::path::absolute(&spec.source).context(|| spec.source.display().to_string())?;
        let found = Source::find(&source, spec.modules.as_deref(), work)?;
        // A version may have signs that a name has not.
        let name = spec.name.clone().unwrap_or_else(|| found.version.replace(['+', '~'], "-"));
        check_name(&name)?;
        if name == DEFAULT || name == HOST || name.ends_with(WORK) {
            return Err(Error::invalid(format!("a kernel can not be called {name}")));
        }
        let folder = work.join("kernel");
        claim_folder(&folder).context(|| folder.display().to_string())?;
        copy(&found.image, &folder.join("image"))?;
        if let Some(modules) = &found.modules {
            let archive = moat_initramfs::modules(modules)?;
            write(&folder.join("modules.cpio"), &[&archive])?;
        }
        let state = KernelState {
            modules: found.modules.is_some(),
            version: found.version,
            source,
            imported: Timestamp::now(),
        };
        file::write(&folder.join("kernel.json"), &state, Lasting::Synced)?;
        let to = self.folder.join(&name);
        match std::fs::rename(&folder, &to) {
            Err(error) if matches!(error.kind(), Io::DirectoryNotEmpty | Io::AlreadyExists) => {
                Err(Error::conflict(format!("there is a kernel {name} already"))
                    .hint("--name gives it another name; `moat kernel rm` removes the old one"))
            }
            other => {
                other.context(|| format!("rename {} to {}", folder.display(), to.display()))?;
                sync_folder(&self.folder)?;
                self.find(&name)
            }
        }
    }

    /// Removes a kernel. Machines that run keep what they have booted.
    ///
    /// Errors: there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        let kernel = self.find(name)?;
        if self.default_name()?.as_deref() == Some(&kernel.name) {
            self.set_default(None)?;
        }
        let work = self.work();
        std::fs::rename(&kernel.folder, &work).context(|| format!("remove the kernel {name}"))?;
        file::remove_tree(&work)
    }

    /// What a machine of this kernel boots from; the initial file system is made for an agent that is new.
    pub fn boot_files(&self, kernel: &Kernel) -> Result<BootFiles> {
        self.boot_files_with(kernel, &program::find("moat-agent")?)
    }

    /// As [`boot_files`](Self::boot_files), with another first process: a static program.
    pub fn boot_files_with(&self, kernel: &Kernel, init: &Path) -> Result<BootFiles> {
        let digest = stamp::digest(init, &kernel.folder)?;
        let path = kernel.folder.join(format!("initramfs-{}", digest.short()));
        let initramfs = match File::open(&path) {
            Err(error) if error.kind() == Io::NotFound => make_initramfs(kernel, init, &path),
            other => other.context(|| path.display().to_string()),
        };
        let image = File::open(&kernel.image).context(|| kernel.image.display().to_string())?;
        Ok(BootFiles { kernel: image, initramfs: initramfs? })
    }

    /// What a process that was killed has left; with `repair` it is removed.
    pub(crate) fn check(&self, repair: bool) -> Result<Vec<(PathBuf, &'static str)>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.folder)? {
            let path = self.folder.join(&name);
            let worker = name.strip_suffix(WORK).map(|stem| stem.split('-').next().unwrap_or(stem));
            let fault = match worker {
                Some(pid) if Path::new("/proc").join(pid).is_dir() => continue,
                Some(_) => "was left half-done by a process that is gone",
                None if name == DEFAULT && !path.exists() => "names a kernel that is not there",
                None if name != DEFAULT && self.read(&name).ok().flatten().is_none() => "is no whole kernel",
                None => continue,
            };
            if repair && path.is_symlink() {
                file::remove_if_there(&path)?;
            } else if repair {
                file::remove_tree(&path)?;
            }
            found.push((path, fault));
        }
        Ok(found)
    }

    fn work(&self) -> PathBuf {
        self.folder.join(work_name())
    }

    fn read(&self, name: &str) -> Result<Option<Kernel>> {
        let folder = self.folder.join(name);
        let Some(state) = file::read::<KernelState>(&folder.join("kernel.json"))? else { return Ok(None) };
        let mut size_bytes = 0;
        for name in file::names_in(&folder)? {
            // An initial file system may go while this looks.
            size_bytes += folder.join(name).metadata().map_or(0, |found| found.len());
        }
        Ok(Some(Kernel { name: name.to_owned(), state, image: folder.join("image"), size_bytes, folder }))
    }
}

/// The name of something that is coming, which tells whose it is.
fn work_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}{WORK}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Puts agent and modules together. Those of other agents go: whoever boots from one has it open.
fn make_initramfs(kernel: &Kernel, init: &Path, path: &Path) -> Result<File> {
    let agent = std::fs::read(init).context(|| init.display().to_string())?;
    let what = || format!("initial file system {}", path.display());
    for name in file::names_in(&kernel.folder)? {
        if name.starts_with("initramfs-") && !name.ends_with(WORK) {
            file::remove_if_there(&kernel.folder.join(name))?;
        }
    }
    let modules = if kernel.state.modules {
        let path = kernel.folder.join("modules.cpio");
        std::fs::read(&path).context(|| path.display().to_string())?
    } else {
        Vec::new()
    };
    let work = kernel.folder.join(format!("initramfs-{}", work_name()));
    write(&work, &[&moat_initramfs::base(&agent).finish(), &modules])?;
    let made = File::open(&work).context(what)?;
    std::fs::rename(&work, path).context(what)?;
    Ok(made)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    let mut source = File::open(from).context(what)?;
    let mut target = File::create_new(to).context(what)?;
    std::io::copy(&mut source, &mut target).context(what)?;
    target.sync_all().context(what)
}

fn write(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = File::create(path).context(what)?;
    parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_all()).context(what)
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).context(|| format!("sync {}", folder.display()))
}

#[cfg(test)]
mod tests;
