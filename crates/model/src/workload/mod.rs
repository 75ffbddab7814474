//! A workload as it is wished for, whichever wall it gets.
//!
//! `WorkloadSpec` is what the command line, the API and a saved workload share. It holds what the
//! user said and nothing that was derived: the image's own configuration is merged when the OCI
//! configuration is made, so that a `commit` or an `inspect` can tell the two apart. An absent value
//! means "as the image says, else the default"; defaults that are promises stand here.

mod health;
mod limits;
mod network;
mod storage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use health::*;
pub use limits::*;
pub use network::*;
pub use storage::*;

/// Which wall is built around the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces, control groups and a system call filter on the host's kernel.
    #[default]
    Container,
    /// A kernel of its own under KVM.
    Microvm,
}

/// When a workload that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "policy")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After an exit code other than 0, at most `max_retries` times in a row; 0 is without a limit.
    OnFailure {
        /// How often in a row.
        max_retries: u32,
    },
    /// Always, also after `system start`, unless it was removed.
    Always,
    /// As `Always`, except when the user stopped it.
    UnlessStopped,
}

/// Which namespace a workload gets where it may share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode", content = "workload")]
pub enum NamespaceMode {
    /// One of its own.
    #[default]
    Private,
    /// The host's.
    Host,
    /// That of another workload, by name or id.
    Container(String),
}

/// Where the output of a workload goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSpec {
    /// False keeps nothing (`--log-driver none`).
    pub keep: bool,
    /// A file is rotated when it would grow beyond this.
    pub max_bytes: u64,
    /// How many files are kept, the current one among them.
    pub max_files: u32,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { keep: true, max_bytes: 10 << 20, max_files: 3 }
    }
}

/// What of `--security-opt` was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecuritySpec {
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `seccomp=unconfined`, or the text of a profile in the form that Docker reads.
    pub seccomp: SeccompChoice,
    /// `apparmor=PROFILE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    /// `label=...`: the parts of an SELinux label.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label: Vec<String>,
    /// `systempaths=unconfined`: no masked and no read-only paths.
    pub unmask_paths: bool,
}

/// Which system calls a workload may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "profile")]
pub enum SeccompChoice {
    /// The profile that Docker users know.
    #[default]
    Default,
    /// All of them.
    Unconfined,
    /// As a profile says, given as its JSON text.
    Profile(String),
}

/// A workload as it is wished for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadSpec {
    /// The name; one is made up where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image as the user wrote it.
    pub image: String,
    /// `os/arch[/variant]` of the image, where not the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The wall.
    pub isolation: Isolation,
    /// In place of the image's Cmd, where not empty.
    pub command: Vec<String>,
    /// In place of the image's Entrypoint; an empty list resets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, after those of the image. A name alone removes the image's.
    pub env: Vec<String>,
    /// Working directory in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `user[:group]`, each a name or a number, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Groups beside those of the user, each a name or a number.
    pub group_add: Vec<String>,
    /// Labels of the workload, in place of the image's of the same name.
    pub labels: BTreeMap<String, String>,
    /// OCI annotations, passed on as they are.
    pub annotations: BTreeMap<String, String>,
    /// A pseudo-terminal is the workload's standard input, output and error.
    pub tty: bool,
    /// Standard input is kept open for those who attach.
    pub open_stdin: bool,
    /// Standard input closes when the first who attached to it leaves.
    pub stdin_once: bool,
    /// PID 1 is an init that reaps and forwards signals.
    pub init: bool,
    /// The workload and what it wrote are removed when it has ended.
    pub auto_remove: bool,
    /// What happens when it has ended.
    pub restart: RestartPolicy,
    /// Signal that asks the workload to end, by name or number, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long `stop` waits before it kills; 10 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout_s: Option<u64>,
    /// Whether the workload does its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// Where its output goes.
    pub log: LogSpec,

    /// All privileges, as far as the wall has any.
    pub privileged: bool,
    /// Capabilities beside the default ones (`ALL`, with or without `CAP_`).
    pub cap_add: Vec<String>,
    /// Default capabilities that it does not get.
    pub cap_drop: Vec<String>,
    /// Labels, filters, masks.
    pub security: SecuritySpec,
    /// The root file system is read-only.
    pub read_only: bool,
    /// User namespace: absent is the engine's default, `host` none, `auto` or `UID:HOST:SIZE` maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userns: Option<String>,
    /// PID namespace.
    pub pid: NamespaceMode,
    /// IPC namespace.
    pub ipc: NamespaceMode,
    /// UTS namespace.
    pub uts: NamespaceMode,
    /// Control group namespace: private, or the host's.
    pub cgroupns: NamespaceMode,
    /// Control group below which its own is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,

    /// Volumes, bind mounts and tmpfs.
    pub mounts: Vec<MountSpec>,
    /// Workloads whose mounts it gets too: `NAME[:ro]`.
    pub volumes_from: Vec<String>,
    /// Device nodes of the host.
    pub devices: Vec<DeviceSpec>,
    /// Rules of the device control group, as in `c 1:3 rwm`.
    pub device_cgroup_rules: Vec<String>,
    /// Size of /dev/shm; 64 MiB where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Quota of the writable layer; refused where the file system has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_bytes: Option<u64>,

    /// Host name; the first 12 characters of the id where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Networks, ports and names.
    pub network: NetworkingSpec,
    /// Kernel parameters that belong to its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits and weights.
    pub limits: LimitsSpec,
}

/// Where a workload is in its life.
///
/// ```text
///            start            pause
///  created --------> running <-------> paused
///     |               |   ^    unpause
///     | rm            |   | start, restart policy
///     v        exit   v   |
///   (gone) <------- exited          dead: it could not be removed whole
///            rm
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, never started.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// Its program is frozen.
    Paused,
    /// It ended and will be started again by its restart policy.
    Restarting,
    /// Its program has ended.
    Exited,
    /// It could not be removed whole; `system check --repair` finishes that.
    Dead,
}

impl Status {
    /// The word for it, as Docker prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}
