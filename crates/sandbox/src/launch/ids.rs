//! Writing the id maps of a user namespace, of a process or of a mount.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use moat_linux::process::{self as sys, Clone3, Forked, namespace};
use moat_linux::{mount, net};
use moat_model::oci::IdMapping;

use super::Building;
use crate::step::MountIdMapping;
use crate::{Context, Error, Result};

/// Writes the id maps of a process that is in a new user namespace: by newuidmap(1) and newgidmap(1) with `helpers`,
/// which map what /etc/subuid and /etc/subgid grant. `deny_setgroups` is what user_namespaces(7) demands of who maps
/// a group without privilege.
///
/// Errors: a map that is refused; a helper that is missing.
pub fn map_ids(
    pid: i32,
    uids: &[IdMapping],
    gids: &[IdMapping],
    helpers: bool,
    deny_setgroups: bool,
) -> Result<()> {
    if helpers {
        run_helper("newuidmap", pid, uids)?;
        return run_helper("newgidmap", pid, gids);
    }
    if deny_setgroups {
        let path = format!("/proc/{pid}/setgroups");
        std::fs::write(&path, "deny").context(|| path)?;
    }
    write_map(pid, "uid_map", uids).context(|| "uidMappings")?;
    write_map(pid, "gid_map", gids).context(|| "gidMappings")
}

fn write_map(pid: i32, file: &str, maps: &[IdMapping]) -> Result<()> {
    let line = |map: &IdMapping| format!("{} {} {}\n", map.container_id, map.host_id, map.size);
    let text: String = maps.iter().map(line).collect();
    std::fs::write(format!("/proc/{pid}/{file}"), &text)
        .context(|| format!("write {:?} to {file}", text.trim()))
}

/// newuidmap(1) and newgidmap(1) map the ranges that /etc/subuid and /etc/subgid grant a user.
fn run_helper(program: &str, pid: i32, maps: &[IdMapping]) -> Result<()> {
    let numbers = maps.iter().flat_map(|map| [map.container_id, map.host_id, map.size]);
    let output =
        Command::new(program).arg(pid.to_string()).args(numbers.map(|number| number.to_string())).output();
    let output = output.map_err(|error| {
        Error::new(format!("{program}: {error}")).hint(
            "mapping ranges of ids without root needs the package uidmap (Debian), shadow-utils elsewhere",
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{program}: {}", said.trim()))
        .hint("the ranges granted to this user are in /etc/subuid and /etc/subgid"))
}

/// Maps the ids of a detached mount by a user namespace that lives only as long as it takes.
pub(super) fn map_mount(tree: &OwnedFd, mapping: &MountIdMapping) -> Result<()> {
    let (ours, theirs) = net::packet_pair()?;
    match sys::fork(Clone3 { namespaces: namespace::USER, ..Clone3::default() })? {
        Forked::Child => {
            drop(ours);
            // Lives until it hears that it is no longer needed.
            let _ = net::receive(theirs.as_fd(), &mut [0]);
            sys::exit_now(0)
        }
        Forked::Parent(pid, pidfd) => {
            drop(theirs);
            let holder = Building { pid, pidfd, done: false };
            map_ids(pid, &mapping.uids, &mapping.gids, false, false)?;
            let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
            let mapped = mount::set_id_mapping(tree.as_fd(), namespace.as_fd(), mapping.recursive);
            drop(holder);
            drop(ours);
            Ok(mapped?)
        }
    }
}
