//! Both walls in the lab: what `moat run --isolation microvm` needs is built and put into the lab's memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, bundle, command, kernel, packages};

/// Where the lab has what was copied into it.
pub(crate) const PLACE: &str = "/tmp/lab";
/// The programs, as users get them.
const PROGRAMS: [&str; 3] = ["moat", "moat-vmm", "moat-agent"];

/// What is put into the lab: `moat`, `moat-vmm`, `moat-agent`, the small kernel as `vmlinux`, the root file system of
/// busybox as `box.tar`, and this program.
pub(crate) struct Machines {
    files: Vec<PathBuf>,
    me: PathBuf,
}

impl Machines {
    /// Builds all of it but the kernel, which must be there; the root file system in `scratch`.
    pub(crate) fn build(scratch: &Path) -> Result<Self> {
        packages::ensure(packages::LAB)?;
        let kernel = kernel::built()?.context("there is no guest kernel; `cargo xtask kernel` builds it")?;
        let me = std::env::current_exe().context("cannot find this program's own file")?;
        let mut files = build::programs(&PROGRAMS, "release")?;
        files.extend([kernel, image(scratch)?, me.clone()]);
        Ok(Self { files, me })
    }

    /// The built monitor.
    pub(crate) fn monitor(&self) -> Option<&PathBuf> {
        self.files.iter().find(|file| file.ends_with("moat-vmm"))
    }

    /// The lab, in which this program is called with `words`. `flags` are the lab's own, `more` further files.
    pub(crate) fn lab(&self, flags: &[&str], more: &[&Path], words: &[&str]) -> Result<Command> {
        let mut lab = Command::new(&self.me);
        lab.arg("lab").args(flags);
        for file in self.files.iter().map(PathBuf::as_path).chain(more.iter().copied()) {
            lab.arg("--copy").arg(file);
        }
        let name = self.me.file_name().context("this program has no name")?;
        lab.arg("--").arg(Path::new(PLACE).join(name)).args(words);
        Ok(lab)
    }
}

/// The root file system of the workloads, as `moat import` takes it.
fn image(scratch: &Path) -> Result<PathBuf> {
    let (rootfs, archive) = (scratch.join("machines"), scratch.join("box.tar"));
    bundle::rootfs(&rootfs)?;
    command::quiet(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}

/// Within the lab: `moat` with a root in memory.
pub(crate) fn moat(args: &[&str]) -> Command {
    let mut command = Command::new(format!("{PLACE}/moat"));
    command.args(["--root", "/tmp/moat"]).args(args).stdin(std::process::Stdio::null());
    command
}

/// Within the lab: gives it the image `box` and the small kernel.
pub(crate) fn furnish() -> Result<()> {
    let (archive, kernel) = (format!("{PLACE}/box.tar"), format!("{PLACE}/vmlinux"));
    for words in [
        &["import", "--change", "ENV PATH=/bin", &archive, "box"][..],
        &["kernel", "import", "--name", "small", &kernel],
        &["kernel", "use", "small"],
    ] {
        command::output(&mut moat(words))?;
    }
    Ok(())
}
