//! `cargo xtask kernel`: the small kernel of microVMs, built from Debian's linux-source package.
//!
//! It takes a quarter of an hour of a processor, so it is kept outside the checkout, by the hash of
//! everything that it is made from. No ordinary test waits for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::cache;
use crate::{command, packages};

/// Raised when this file makes something else of the same configuration and source.
const FORM: u32 = 1;
const SOURCE: &str = "linux-source-6.1";

/// Builds the kernel where the cache has none, and prints its file.
pub(crate) fn run() -> Result<()> {
    println!("{}", ensure()?.display());
    Ok(())
}

/// The kernel as an ELF file; `System.map` and the whole configuration stand beside it.
pub(crate) fn ensure() -> Result<PathBuf> {
    packages::ensure(packages::KERNEL)?;
    let folder = cache()?.join(format!("guest-kernel-{}", key()?));
    let image = folder.join("vmlinux");
    if image.is_file() {
        return Ok(image);
    }
    // Two runs at once would build twice; the second finds what the first has made.
    let path = cache()?.join("guest-kernel.lock");
    let lock = std::fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    if !image.is_file() {
        build(&folder)?;
    }
    Ok(image)
}

/// The kernel where it was built before; nothing is installed or built for the answer.
pub(crate) fn built() -> Result<Option<PathBuf>> {
    if !packages::all_installed(packages::KERNEL)? {
        return Ok(None);
    }
    let image = cache()?.join(format!("guest-kernel-{}", key()?)).join("vmlinux");
    Ok(image.is_file().then_some(image))
}

fn wishes() -> PathBuf {
    command::root().join("guest-kernel/config")
}

/// What the kernel is made from, as a short hash.
fn key() -> Result<String> {
    let version =
        command::output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", SOURCE]))?;
    let compiler = command::output(Command::new("gcc").arg("-dumpfullversion"))?;
    let config = std::fs::read_to_string(wishes()).context("cannot read guest-kernel/config")?;
    let whole = format!("{FORM} {version} {compiler} {config}");
    let scratch = crate::scratch::Scratch::new("kernel")?;
    let file = scratch.path().join("key");
    std::fs::write(&file, whole).with_context(|| format!("cannot write {}", file.display()))?;
    let hash = command::output(Command::new("sha256sum").arg(&file))?;
    Ok(hash.chars().take(16).collect())
}

fn build(folder: &Path) -> Result<()> {
    let work = folder.with_extension("part");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let archive = format!("/usr/src/{SOURCE}.tar.xz");
    command::step(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file", &archive, "--directory"])
            .arg(&work),
    )?;
    let make = |target: &str| {
        let mut make = Command::new("make");
        // The same inputs give the same bytes.
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01").env("KBUILD_BUILD_USER", "moat");
        make.env("KBUILD_BUILD_HOST", "moat").env("KBUILD_BUILD_VERSION", "1");
        make.env("KCONFIG_ALLCONFIG", wishes());
        make.current_dir(&work).args(["--silent", target]);
        make
    };
    command::step(&mut make("allnoconfig"))?;
    check_wishes(&work.join(".config"))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    command::step(make("vmlinux").arg(format!("--jobs={jobs}")))?;
    command::step(Command::new("strip").arg("--strip-debug").arg(work.join("vmlinux")))?;
    let made = folder.with_extension("made");
    if made.exists() {
        std::fs::remove_dir_all(&made).with_context(|| format!("cannot remove {}", made.display()))?;
    }
    std::fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    for (from, to) in [("vmlinux", "vmlinux"), ("System.map", "System.map"), (".config", "config")] {
        std::fs::rename(work.join(from), made.join(to))
            .with_context(|| format!("the build left no {from}"))?;
    }
    std::fs::rename(&made, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

/// A wish whose dependencies are missing is dropped by Kconfig without a word.
fn check_wishes(config: &Path) -> Result<()> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (wanted, got) = (read(&wishes())?, read(config)?);
    let missing: Vec<&str> = wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !got.lines().any(|have| have == *line))
        .collect();
    if !missing.is_empty() {
        bail!("the kernel's configuration does not take {}", missing.join(", "));
    }
    Ok(())
}
