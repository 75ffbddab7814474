//! The jail of a machine's monitor: a sandbox around `moat-vmm`.
//!
//! Whoever breaks out of the guest into the monitor is nobody there: a user of its own that is no one on the host,
//! without privileges, in namespaces of its own, in a root file system that holds the program, a folder for its
//! sockets and /proc, and with the descriptors that the machine is made of. The monitor's own seccomp filter and
//! landlock rules come on top. The container's limits of memory and processors hold for the machine as a whole.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::mount::{self, FsContext};
use moat_model::oci::{self, NamespaceKind};

use rustix::fs::OFlags;

use super::machine::MachinePlan;
use crate::{Context, Error, Result};

/// The program's place in the jail.
const PROGRAM: &str = "/moat-vmm";
/// The folder of the machine's sockets in the jail.
pub(super) const SOCKETS: &str = "/run";
/// The first of the ids that jails take: above what useradd(8) and systemd give away.
const FIRST_ID: u32 = 0x7000_0000;
/// How many there are.
const IDS: u32 = 0x0800_0000;
/// What the monitor takes beside the guest's memory.
const OVERHEAD_BYTES: u64 = 64 << 20;
/// Threads of the monitor: processors, event loop, io_uring's workers.
const MAX_TASKS: i64 = 256;

/// Where the parts of a jail are shown while it is built, in the mount namespace of this process alone: folders that
/// are everywhere, and that everybody may pass through, as those of the state are not.
const PLACES: [&str; 3] = ["/mnt", "/srv", "/media"];
/// The empty root on the stage.
const ROOT: &str = "/root";

/// The parts of a jail, which its user can reach.
#[derive(Debug)]
pub(super) struct Stage(PathBuf);

impl Stage {
    /// Shows the program and the folder of the sockets.
    pub(super) fn build(program: &Path, sockets: &Path) -> Result<Self> {
        let what = || "build the machine's jail";
        let place = PLACES.map(Path::new).into_iter().find(|place| place.is_dir());
        let place = place.ok_or_else(|| Error::new(format!("there is none of {}", PLACES.join(", "))));
        let stage = Self(place.context(what)?.to_owned());
        // Before anything covers them.
        let parts = [(PROGRAM, clone(program)?), (SOCKETS, clone(sockets)?)];
        crate::monitor::make_private(&stage.0)?;
        let memory = FsContext::open("tmpfs")?;
        memory.set("mode", "0755")?;
        memory.set("size", "64k")?;
        mount::attach(memory.mount(0)?.as_fd(), folder(&stage.0)?.as_fd())?;
        let built = stage.furnish(&parts).context(what);
        if built.is_err() {
            // The first error is what the caller has to know; the namespace goes with this process.
            let _ = stage.clear();
        }
        built.map(|()| stage)
    }

    fn furnish(&self, parts: &[(&str, OwnedFd)]) -> Result<()> {
        let root = self.path(ROOT);
        // Its user makes nothing there: what is mounted in the jail finds its place.
        let below = ["", "proc", "dev", SOCKETS.trim_start_matches('/')].map(|name| root.join(name));
        for folder in below.iter().chain([&self.path(SOCKETS)]) {
            std::fs::create_dir(folder).context(|| folder.display().to_string())?;
        }
        for file in [root.join(PROGRAM.trim_start_matches('/')), self.path(PROGRAM)] {
            std::fs::File::create(&file).context(|| file.display().to_string())?;
        }
        for (name, tree) in parts {
            let target = moat_linux::fs::open(&self.path(name), OFlags::PATH)?;
            mount::attach(tree.as_fd(), target.as_fd())?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name.trim_start_matches('/'))
    }

    /// The jail has what it needs.
    pub(super) fn clear(&self) -> Result<()> {
        Ok(mount::unmount(&self.0)?)
    }
}

fn clone(path: &Path) -> Result<OwnedFd> {
    Ok(mount::clone_tree(rustix::fs::CWD, path, false)?)
}

fn folder(path: &Path) -> Result<OwnedFd> {
    Ok(moat_linux::fs::open(path, OFlags::PATH | OFlags::DIRECTORY)?)
}

/// What the jail shows.
#[derive(Debug)]
pub(super) struct Jail<'a> {
    /// The workload's id, which names the control group and chooses the user.
    pub(super) id: &'a str,
    /// What it is made from.
    pub(super) stage: &'a Stage,
    /// The workload's own configuration: the limits that hold for the machine as a whole.
    pub(super) workload: &'a oci::Spec,
}

/// The user on the host that a machine's monitor is. Ids are random, so two machines hardly ever share one; if they
/// do, the other walls stand.
pub(super) fn user(id: &str) -> u32 {
    let digits = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    FIRST_ID + digits % IDS
}

impl Jail<'_> {
    /// The configuration of the sandbox around the monitor.
    pub(super) fn config(&self, plan: &MachinePlan, arguments: Vec<String>) -> oci::Spec {
        let process = oci::Process {
            args: std::iter::once(PROGRAM.to_owned()).chain(arguments).collect(),
            cwd: PathBuf::from("/"),
            no_new_privileges: true,
            capabilities: Some(oci::Capabilities::default()),
            ..oci::Process::default()
        };
        oci::Spec {
            oci_version: "1.2.0".to_owned(),
            root: Some(oci::Root { path: self.stage.path(ROOT), readonly: true }),
            process: Some(process),
            mounts: self.mounts(),
            linux: Some(self.linux(plan)),
            ..oci::Spec::default()
        }
    }

    fn mounts(&self) -> Vec<oci::Mount> {
        let mount = |destination: &str, kind: &str, source: &Path, options: &[&str]| oci::Mount {
            destination: PathBuf::from(destination),
            kind: kind.to_owned(),
            source: Some(source.to_owned()),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..oci::Mount::default()
        };
        vec![
            // /proc/self/fd leads to the folder of the sockets.
            mount("/proc", "proc", Path::new("proc"), &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", Path::new("tmpfs"), &["nosuid", "noexec", "mode=755", "size=64k"]),
            mount(PROGRAM, "bind", &self.stage.path(PROGRAM), &["bind", "ro", "nosuid", "nodev"]),
            mount(SOCKETS, "bind", &self.stage.path(SOCKETS), &["bind", "nosuid", "nodev", "noexec"]),
        ]
    }

    fn linux(&self, plan: &MachinePlan) -> oci::Linux {
        const KINDS: [NamespaceKind; 7] = [
            NamespaceKind::User,
            NamespaceKind::Mount,
            NamespaceKind::Pid,
            NamespaceKind::Network,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
            NamespaceKind::Cgroup,
        ];
        let user = user(self.id);
        let mapping = || vec![oci::IdMapping { container_id: 0, host_id: user, size: 1 }];
        let theirs = self.workload.linux.clone().unwrap_or_default();
        let limits = theirs.resources.unwrap_or_default();
        let memory = oci::Memory {
            limit_bytes: Some(i64::try_from(plan.memory_bytes + OVERHEAD_BYTES).unwrap_or(i64::MAX)),
            ..oci::Memory::default()
        };
        let resources = oci::Resources {
            // Nothing is opened there: all devices come as descriptors.
            devices: vec![oci::DeviceRule {
                allow: false,
                access: "rwm".to_owned(),
                ..oci::DeviceRule::default()
            }],
            memory: Some(memory),
            cpu: limits.cpu,
            pids: Some(oci::Pids { limit: Some(MAX_TASKS) }),
            block_io: limits.block_io,
            ..oci::Resources::default()
        };
        oci::Linux {
            namespaces: KINDS.map(|kind| oci::Namespace { kind, path: None }).to_vec(),
            uid_mappings: mapping(),
            gid_mappings: mapping(),
            cgroups_path: theirs.cgroups_path,
            resources: Some(resources),
            rootfs_propagation: "rprivate".to_owned(),
            ..oci::Linux::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_user_of_its_own_that_is_nobody_elses() {
        let (one, two) = (user("deadbeef0"), user("00000001f"));
        assert!(one != two);
        for user in [one, two, user("ffffffff"), user("")] {
            assert!((FIRST_ID..FIRST_ID + IDS).contains(&user), "{user}");
        }
    }
}
