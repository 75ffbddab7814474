//! The lab's kernel: Debian's stock one, unpacked into the cache and made quick to boot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use moat_initramfs::Index;

use super::modules;
use crate::cache::cache;
use crate::command;

/// Raised when what is made from a package changes.
const FORM: u32 = 1;

pub(super) struct Kernel {
    /// Holds `vmlinux`, `modules.index` and `lib/modules`.
    pub(super) folder: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    pub(super) fn index(&self) -> Result<Index> {
        let path = self.folder.join("modules.index");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Index::parse(&text, &self.folder)?)
    }
}

/// Finds the kernel in the cache, or fetches it.
pub(super) fn prepare() -> Result<Kernel> {
    let cache = cache()?;
    if let Some(folder) = cached(&cache)? {
        return Ok(Kernel { folder });
    }
    // Two runs at once would fetch twice; the second finds what the first has made.
    let path = cache.join("kernel.lock");
    let lock = std::fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    if let Some(folder) = cached(&cache)? {
        return Ok(Kernel { folder });
    }
    let package = package()?;
    eprintln!("--- lab: fetching the kernel {package}");
    let work = cache.join("kernel.part");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    std::fs::create_dir(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let version = fetch(&package, &work)?;
    let folder = cache.join(format!("kernel-{FORM}-{version}"));
    std::fs::rename(work.join("root"), &folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(Kernel { folder })
}

/// The newest kernel in the cache. The name ends with the package's version.
fn cached(cache: &Path) -> Result<Option<PathBuf>> {
    let prefix = format!("kernel-{FORM}-");
    let mut found = Vec::new();
    for entry in cache.read_dir().with_context(|| format!("cannot list {}", cache.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", cache.display()))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found.pop())
}

/// The package that stands behind `linux-image-amd64` today.
fn package() -> Result<String> {
    let ask = || command::output(Command::new("apt-cache").args(["depends", "linux-image-amd64"])).ok();
    let read = |text: String| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        line.map(str::to_owned)
    };
    if let Some(package) = ask().and_then(read) {
        return Ok(package);
    }
    // A fresh machine has no lists of packages yet.
    command::step(&mut crate::packages::apt_get("update"))?;
    ask().and_then(read).context("apt knows no linux-image-amd64; the lab needs Debian 12")
}

/// Downloads and unpacks the package into `work/root`; returns its version.
fn fetch(package: &str, work: &Path) -> Result<String> {
    let mut apt = Command::new("apt-get");
    // apt's own user cannot write to this cache; downloading as the caller is what is meant.
    let caller = ["-o", "APT::Sandbox::User=root"];
    apt.args(caller).args(["download", "-qq", package]).current_dir(work);
    if command::quiet(&mut apt).is_err() {
        // The lists may be older than the archive: it keeps only the newest of some packages.
        command::step(&mut crate::packages::apt_get("update"))?;
        command::quiet(&mut apt)?;
    }
    let entries = work.read_dir().with_context(|| format!("cannot list {}", work.display()))?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let deb = files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("`apt-get download {package}` left no package"))?;
    let version = command::output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Version"))?;
    let unpacked = work.join("unpacked");
    command::quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;

    let root = work.join("root");
    std::fs::create_dir_all(root.join("lib")).context("cannot make the kernel's folder")?;
    std::fs::rename(unpacked.join("lib/modules"), root.join("lib/modules"))
        .with_context(|| format!("{package} holds no lib/modules"))?;
    decompress(&image(&unpacked.join("boot"))?, &root.join("vmlinux"))?;
    let index = modules::scan(&root)?;
    std::fs::write(root.join("modules.index"), index.text(&root))
        .context("cannot write the index of modules")?;
    Ok(version.trim().to_owned())
}

fn image(boot: &Path) -> Result<PathBuf> {
    let entries = boot.read_dir().with_context(|| format!("cannot list {}", boot.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz")))
        .with_context(|| format!("{} holds no vmlinuz", boot.display()))
}

/// Takes the ELF kernel out of its self-extracting image. QEMU starts it directly, which saves
/// the emulated processor two seconds of decompressing.
fn decompress(image: &Path, kernel: &Path) -> Result<()> {
    const XZ: &[u8] = b"\xfd7zXZ\0";
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let starts = bytes.windows(XZ.len()).enumerate().filter(|(_, window)| *window == XZ);
    for (start, _) in starts {
        // What follows the stream is not xz, so its end is reported as an error.
        let packed = kernel.with_extension("xz");
        std::fs::write(&packed, &bytes[start..])
            .with_context(|| format!("cannot write {}", packed.display()))?;
        let input =
            std::fs::File::open(&packed).with_context(|| format!("cannot open {}", packed.display()))?;
        let mut xz = Command::new("xz");
        xz.args(["--decompress", "--stdout", "--single-stream"]);
        let done = xz.stdin(input).stderr(Stdio::null()).output().context("cannot start xz")?;
        std::fs::remove_file(&packed).with_context(|| format!("cannot remove {}", packed.display()))?;
        if done.stdout.starts_with(b"\x7fELF") {
            return std::fs::write(kernel, done.stdout)
                .with_context(|| format!("cannot write {}", kernel.display()));
        }
    }
    bail!("{} holds no kernel packed by xz", image.display())
}

/// A program without its debug information, which the lab would only carry about.
pub(super) fn stripped(program: &Path) -> Result<Vec<u8>> {
    let whole = || std::fs::read(program).with_context(|| format!("cannot read {}", program.display()));
    if command::find("objcopy").is_none() {
        return whole();
    }
    let scratch = crate::scratch::Scratch::new("lab")?;
    let target = scratch.path().join("init");
    command::quiet(Command::new("objcopy").arg("--strip-all").arg(program).arg(&target))?;
    std::fs::read(&target).with_context(|| format!("cannot read {}", target.display()))
}
