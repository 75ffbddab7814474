//! A mount namespace and a network namespace for the benchmark alone.
//!
//! crun refuses a host that mounts cgroup v2 beside cgroup v1. Here, and only here, that mount is
//! taken away, so that all contenders run under the same conditions. Bridges, addresses and packet filters
//! that they make are in a network of the benchmark's own.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::command;

/// Set in the process that already lives in the namespace.
const MARK: &str = "MOAT_BENCH_PRIVATE";

pub(super) fn inside() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs this program once more, in new namespaces. `program` is what is measured, and `flag` says so.
pub(super) fn enter(arguments: &[String], flag: &str, program: &Path) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("this benchmark needs root: it makes namespaces and cgroups");
    }
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    let mut again = Command::new("unshare");
    again.args(["--mount", "--net", "--propagation", "private", "--"]).arg(me).arg("bench");
    again.args(arguments).arg(flag).arg(program).env(MARK, "1");
    let status = command::status(&mut again)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings loopback up, as on any host, and hides the second hierarchy on a hybrid host.
pub(super) fn settle() -> Result<()> {
    command::quiet(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    if !mounts.lines().any(|line| line.split(' ').nth(4) == Some(UNIFIED)) {
        return Ok(());
    }
    unmount(UNIFIED, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {UNIFIED}"))?;
    // crun makes its folder there all the same, and it must not stay in the host's tmpfs.
    cover(UNIFIED)
}

/// Puts an empty file system over a folder in which programs leave things under names that they share.
pub(super) fn cover(folder: &str) -> Result<()> {
    mount("none", folder, "tmpfs", MountFlags::empty(), c"mode=755")
        .with_context(|| format!("cannot cover {folder}"))
}

/// Puts the state of every contender in memory, as /run is on most hosts: what is measured is then no disk.
pub(super) fn state_in_memory(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    mount("state", folder, "tmpfs", MountFlags::empty(), c"mode=700")
        .with_context(|| format!("cannot mount a tmpfs on {}", folder.display()))
}

/// Removes the groups whose names begin with the mark, directly beneath each hierarchy's root, with those in them.
pub(super) fn remove_cgroups(mark: &str) {
    let folder = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = folder(base).map(|entry| entry.path()).filter(|path| path.is_dir());
    for hierarchy in hierarchies.chain([base.to_owned()]) {
        for group in folder(&hierarchy) {
            if group.file_name().to_string_lossy().starts_with(mark) {
                remove_group(&group.path());
            }
        }
    }
}

/// Removes a group, those in it first. One that is in use stays, and its name says whose it is.
fn remove_group(group: &Path) {
    let within = std::fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    within.filter(|path| path.is_dir()).for_each(|path| remove_group(&path));
    let _ = std::fs::remove_dir(group);
}
