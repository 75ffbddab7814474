//! The `linux` section of `config.json`, without resources and seccomp.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Resources, Seccomp, nullable};

/// Specification, "Linux Container Configuration".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Namespaces to make or to join; a kind that is missing is shared with the runtime.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// User id mappings of a new user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings of a new user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// Offsets of the clocks of a new time namespace, by clock name (`monotonic`, `boottime`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Devices that must exist in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Host network devices to move into the container, by their host name (1.3).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub net_devices: BTreeMap<String, NetDevice>,
    /// The cgroup, absolute from the hierarchies' root or relative to the runtime's choice.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub cgroups_path: String,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Propagation of the root mount: `shared`, `slave`, `private`, `unbindable`, each with or without `r`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub rootfs_propagation: String,
    /// The system call filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// Kernel parameters that are namespaced, name to value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    /// Paths that can not be read inside the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    /// Paths that are read-only inside the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    /// SELinux label of the mounts.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub mount_label: String,
    /// Intel resource director; refused by Moat for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<serde_json::Value>,
    /// NUMA memory policy (1.3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
    /// Execution domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
}

/// The kinds of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// user_namespaces(7)
    User,
    /// pid_namespaces(7)
    Pid,
    /// mount_namespaces(7)
    Mount,
    /// uts_namespaces(7)
    Uts,
    /// ipc_namespaces(7)
    Ipc,
    /// network_namespaces(7)
    Network,
    /// cgroup_namespaces(7)
    Cgroup,
    /// time_namespaces(7)
    Time,
}

impl NamespaceKind {
    /// Every kind.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Pid, Self::Mount, Self::Uts, Self::Ipc, Self::Network, Self::Cgroup, Self::Time];

    /// The kind that a kernel parameter belongs to; `None` where it is the whole machine's. Dots separate the parts of
    /// `name`.
    pub fn of_sysctl(name: &str) -> Option<Self> {
        const IPC: [&str; 8] = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shm_rmid_forced",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
        ];
        match name {
            "kernel.domainname" | "kernel.hostname" => Some(Self::Uts),
            _ if name.starts_with("net.") => Some(Self::Network),
            _ if name.starts_with("fs.mqueue.") || IPC.contains(&name) => Some(Self::Ipc),
            _ => None,
        }
    }
}

/// A namespace to make, or to join when a path is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// The file of the namespace to join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// One line of a `uid_map` or `gid_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// Number of ids.
    pub size: u32,
}

/// Offset of one clock: `secs` seconds plus `nanosecs` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds.
    pub nanosecs: u32,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// Absolute path inside the container.
    pub path: PathBuf,
    /// `c` or `u` (character), `b` (block), `p` (fifo).
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits; 0666 when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A host network device that is moved into the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Its name inside; the host name when empty.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub name: String,
}

/// Execution domain, personality(2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// Reserved by the specification: none is defined.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// NUMA memory policy, set_mempolicy(2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    /// `MPOL_DEFAULT`, `MPOL_BIND`, `MPOL_INTERLEAVE`, `MPOL_WEIGHTED_INTERLEAVE`, `MPOL_PREFERRED`,
    /// `MPOL_PREFERRED_MANY` or `MPOL_LOCAL`.
    pub mode: String,
    /// Nodes as a list of ranges, `0-3,7`.
    #[serde(deserialize_with = "nullable")]
    pub nodes: String,
    /// `MPOL_F_NUMA_BALANCING`, `MPOL_F_RELATIVE_NODES`, `MPOL_F_STATIC_NODES`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub flags: Vec<String>,
}
