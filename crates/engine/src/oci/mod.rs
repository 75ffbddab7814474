//! From what the user asked for and what the image says to the OCI configuration, as Docker makes it.
//!
//! [`config`] is pure: everything that had to be looked up comes in with [`Inputs`], so that a test can hold the
//! whole outcome as text. What is looked up, and where: the user in the image's own files ([`crate::user`]), volumes
//! and bind mounts ([`crate::volume`]), device nodes and block devices ([`devices`]), the host ([`HostFacts`]).
//!
//! An image can set what its own program starts with: environment, user, working directory, command. Its labels and
//! annotations are text; nothing here reads them, so nothing of the host can be set by them.
//!
//! The rules are Docker's where Docker has one. Where it would quietly do without (a device that is not there, a
//! limit that the kernel lacks), the wish is refused with a sentence.

mod capabilities;
pub mod devices;
mod health;
mod host;
mod labels;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;

use std::path::{Path, PathBuf};

use moat_model::oci::{self, Linux, Root, Spec};
use moat_model::workload::WorkloadSpec;

use crate::user::Identity;
use crate::{Error, Result};

pub use health::{HealthCheck, health};
pub use host::HostFacts;
pub use moat_image::{HealthCheck as ImageHealth, RunConfig};
pub use mounts::{ReadyMount, Source, tmpfs_options};
pub(crate) use mounts::{check_target, same_place};
pub use namespaces::{IdMaps, NamespacePaths, user_namespace};
pub(crate) use namespaces::{host_name, parse_map};
pub use process::{ExecWish, command, environment, exec_process, stop_signal};
pub use resources::{BlockDevices, resources};
pub use seccomp::parse_profile;

use devices::ReadyDevice;

/// What a configuration is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The workload's identifier, 64 hexadecimal digits.
    pub id: &'a str,
    /// What the user asked for.
    pub spec: &'a WorkloadSpec,
    /// What the image starts with.
    pub image: &'a RunConfig,
    /// The host.
    pub host: &'a HostFacts,
    /// The user, looked up in the image's files.
    pub identity: &'a Identity,
    /// The root file system, absolute or relative to the bundle.
    pub root: &'a Path,
    /// Volumes, bind mounts, tmpfs, and the files that the engine makes (`/etc/hosts` and so on), in any order.
    pub mounts: &'a [ReadyMount],
    /// Device nodes that were asked for; all of the host's for a privileged workload.
    pub devices: &'a [ReadyDevice],
    /// Numbers of the block devices that the limits name.
    pub block_devices: &'a BlockDevices,
    /// Id mappings of a new user namespace.
    pub id_maps: Option<&'a IdMaps>,
    /// Namespaces of others that it joins.
    pub namespaces: &'a NamespacePaths,
}

/// Paths of /proc and /sys that tell about the host or reach into it, as Docker masks them.
const MASKED: [&str; 12] = [
    "/proc/acpi",                    // power management of the host
    "/proc/asound",                  // sound cards of the host
    "/proc/interrupts",              // timing of the host's devices: a side channel
    "/proc/kcore",                   // memory of the host
    "/proc/keys",                    // names of keys of others
    "/proc/latency_stats",           // where the host's processes wait
    "/proc/timer_list",              // addresses and timers of the host's processes
    "/proc/timer_stats",             // as above, on old kernels
    "/proc/sched_debug",             // names of the host's processes, on old kernels
    "/proc/scsi",                    // commands to the host's disks
    "/sys/firmware",                 // tables of the host's firmware
    "/sys/devices/virtual/powercap", // power consumption: a side channel
];

/// Paths of /proc that configure the host, as Docker makes them read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration of a workload.
///
/// Errors: a sentence about what was asked for and can not be had.
pub fn config(inputs: &Inputs<'_>) -> Result<Spec> {
    check(inputs)?;
    let spec = inputs.spec;
    let host_name = host_name(inputs.id, spec, inputs.host);
    let mut linux = linux(inputs)?;
    let mounts = mounts::mounts(inputs, &mut linux)?;
    Ok(Spec {
        oci_version: oci::VERSION.to_owned(),
        root: Some(Root { path: inputs.root.to_owned(), readonly: spec.read_only }),
        process: Some(process::process(inputs, &host_name)?),
        // The host's UTS namespace, or that of another, has its name already.
        hostname: if namespaces::has_own_uts(spec) { host_name } else { String::new() },
        domainname: spec.domainname.clone().unwrap_or_default(),
        mounts,
        hooks: None,
        annotations: spec.annotations.clone(),
        linux: Some(linux),
    })
}

fn linux(inputs: &Inputs<'_>) -> Result<Linux> {
    let spec = inputs.spec;
    let maps = inputs.id_maps.cloned().unwrap_or_default();
    let mut resources = resources(&spec.limits, inputs.host, inputs.block_devices)?;
    let (nodes, rules) = devices::rules(spec, inputs.devices)?;
    resources.devices = rules;
    let masked = !(spec.privileged || spec.security.unmask_paths);
    let list = |paths: &[&str]| {
        if masked { paths.iter().map(|path| (*path).to_owned()).collect() } else { Vec::new() }
    };
    Ok(Linux {
        namespaces: namespaces::namespaces(inputs),
        uid_mappings: maps.uids,
        gid_mappings: maps.gids,
        devices: nodes,
        cgroups_path: cgroups_path(spec, inputs.id),
        resources: Some(resources),
        seccomp: seccomp::filter(inputs)?,
        sysctl: namespaces::sysctls(inputs)?,
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        mount_label: labels::mount(inputs)?,
        ..Linux::default()
    })
}

/// Relative: below the root of the hierarchies for root, below the own group for an ordinary user.
fn cgroups_path(spec: &WorkloadSpec, id: &str) -> String {
    let parent = spec.cgroup_parent.as_deref().unwrap_or("moat");
    PathBuf::from(parent).join(id).display().to_string()
}

/// What contradicts itself, or what only another wall has.
fn check(inputs: &Inputs<'_>) -> Result<()> {
    use moat_model::workload::NamespaceMode::Private;
    let spec = inputs.spec;
    let refuse = |sentence: &str| Err(Error::new(sentence.to_owned()));
    if spec.init && spec.pid != Private {
        return refuse("--init needs a PID namespace of the workload's own: it would not be PID 1");
    }
    if spec.uts != Private && (spec.hostname.is_some() || spec.domainname.is_some()) {
        return refuse("--hostname and --domainname need a UTS namespace of the workload's own");
    }
    if let moat_model::workload::NamespaceMode::Container(name) = &spec.cgroupns {
        return Err(Error::new(format!("--cgroupns container:{name}: it is private or host")));
    }
    if spec.ipc != Private && spec.shm_bytes.is_some() {
        return refuse("--shm-size needs an IPC namespace of the workload's own: /dev/shm is another's");
    }
    if spec.cgroup_parent.as_deref().is_some_and(|parent| parent.split('/').any(|part| part == "..")) {
        return refuse("--cgroup-parent contains \"..\"");
    }
    if spec.root_bytes == Some(0) {
        return refuse("--storage-opt size=0 leaves no room for the root file system");
    }
    match spec.limits.oom_score_adj {
        Some(value) if !(-1000..=1000).contains(&value) => {
            Err(Error::new(format!("--oom-score-adj {value} is not within -1000 to 1000")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
