//! Volumes, bind mounts, tmpfs and devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum MountSource {
    /// A volume; without a name an anonymous one is made.
    Volume {
        /// The volume's name.
        name: Option<String>,
        /// Do not copy what the image has there into an empty volume.
        no_copy: bool,
        /// A folder within the volume.
        subpath: Option<String>,
        /// Driver options, used when the volume is made.
        options: BTreeMap<String, String>,
        /// Labels, used when the volume is made.
        labels: BTreeMap<String, String>,
    },
    /// A file or folder of the host.
    Bind {
        /// Absolute path.
        path: String,
        /// Make the folder where nothing is there (`-v`; `--mount` refuses).
        create: bool,
        /// shared, rshared, slave, rslave, private or rprivate; rprivate where absent.
        propagation: Option<String>,
        /// Only this mount, not those below it.
        non_recursive: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Its size; half of the memory where absent.
        size_bytes: Option<u64>,
        /// Mode of its root; 1777 where absent.
        mode: Option<u32>,
        /// Further options of tmpfs(5) and mount(2), as in `noexec`.
        options: Vec<String>,
    },
}

/// A mount beside the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the workload.
    pub target: String,
    /// No writing through this mount; mounts below it too.
    pub read_only: bool,
    /// Owners are mapped: empty maps as the workload's user namespace does, else `CONTAINER:HOST:SIZE`
    /// for users and groups alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idmap: Option<Vec<String>>,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Path on the host; a folder means every node below it.
    pub host: String,
    /// Path in the workload.
    pub path: String,
    /// Of `rwm`.
    pub access: String,
}
