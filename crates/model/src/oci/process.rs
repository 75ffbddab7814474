//! The `process` section of `config.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{is_false, nullable};

/// Specification, "Process".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether the process gets a terminal.
    #[serde(skip_serializing_if = "is_false")]
    pub terminal: bool,
    /// Size of that terminal in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Identity.
    pub user: User,
    /// Program and arguments.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Environment, `NAME=value` each.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// Capability sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits, setrlimit(2).
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS.
    #[serde(skip_serializing_if = "is_false")]
    pub no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// SELinux label.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub selinux_label: String,
    /// proc(5), `oom_score_adj`: -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// sched_setattr(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// ioprio_set(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// CPU affinity of `exec` (1.2).
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Identity of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// The five capability sets, as names (`CAP_CHOWN`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Limit of what execve(2) can give.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    /// What is checked.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub effective: Vec<String>,
    /// What execve(2) keeps of file capabilities.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    /// What may become effective.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    /// What a program without privileges keeps.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Ceiling.
    pub hard: u64,
    /// Value in force.
    pub soft: u64,
}

/// Scheduling policy, sched_setattr(2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_BATCH`, `SCHED_ISO`, `SCHED_IDLE`, `SCHED_DEADLINE`.
    pub policy: String,
    /// -20 to 19.
    pub nice: i32,
    /// Static priority.
    pub priority: i32,
    /// `SCHED_FLAG_RESET_ON_FORK` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub flags: Vec<String>,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(rename = "runtime")]
    pub runtime_ns: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(rename = "deadline")]
    pub deadline_ns: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    #[serde(rename = "period")]
    pub period_ns: u64,
}

/// I/O priority, ioprio_set(2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 (highest) to 7.
    pub priority: i64,
}

/// CPU lists (`0-3,7`) of a process that `exec` starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuAffinity {
    /// Before the process joins the container's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// After it has joined.
    #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}
