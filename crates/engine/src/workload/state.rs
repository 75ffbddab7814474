//! What is saved of a workload, and what the kernel says of it.

use moat_model::workload::{Status, WorkloadSpec};
use moat_sandbox::cgroup::Victim;
use moat_sandbox::state::process_start;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What stays the same from `create` on, but for a new name or new limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// Id of the image that it was created from, as a digest.
    pub image: String,
    /// What was asked for.
    pub spec: WorkloadSpec,
}

/// A process that is told from a later one of its number by when it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// As the host sees it; 0 is none.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessState {
    /// A process that lives now.
    pub fn of(pid: i32) -> Self {
        Self { pid, start_ticks: process_start(pid).unwrap_or(0) }
    }

    /// Whether it still lives; a zombie does not.
    pub fn is_alive(self) -> bool {
        self.pid > 0 && process_start(self.pid) == Some(self.start_ticks)
    }
}

/// A process that the kernel killed for lack of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomVictim {
    /// Its id on the host.
    pub pid: i32,
    /// Its name; the process chose it.
    pub name: String,
    /// The control group whose limit was hit; empty when the whole machine was out of memory.
    pub limit_of: String,
}

impl From<&Victim> for OomVictim {
    fn from(victim: &Victim) -> Self {
        Self { pid: victim.pid, name: victim.name.clone(), limit_of: victim.limit_of.clone() }
    }
}

/// Whether a workload with a health check does its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known yet.
    #[default]
    Starting,
    /// The last check succeeded.
    Healthy,
    /// As many checks in a row as allowed have failed.
    Unhealthy,
}

impl Health {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One health check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// 0 is healthy; -1 when it took too long.
    pub exit_code: i32,
    /// What it printed, at most 4 KiB.
    pub output: String,
}

/// What is known of the health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthState {
    /// The verdict.
    pub status: Health,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last five checks, oldest first.
    pub log: Vec<HealthResult>,
}

/// How a workload ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The program's, or 128 plus the signal; 255 where nobody saw it.
    pub code: i32,
    /// Whether the kernel killed a process of it for lack of memory.
    pub oom_killed: bool,
    /// Why it is not what it seems, as of a program that could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What changes in the life of a workload. Its monitor writes it; without one, whoever holds the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadState {
    /// Where it is in its life. Saved is never `Paused`: that is asked of the kernel.
    pub status: Status,
    /// The first process.
    pub process: ProcessState,
    /// Its monitor.
    pub monitor: ProcessState,
    /// When it was started last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// How it ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Whom the kernel killed for lack of memory in the last run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oom_victims: Vec<OomVictim>,
    /// How often its restart policy has started it again.
    pub restart_count: u32,
    /// The user stopped it: it is not started again by `unless-stopped`.
    pub stopped_by_user: bool,
    /// What the health checks say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthState>,
    /// What went wrong beside the program, as of a log that could not be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl WorkloadState {
    /// Whether its program runs, frozen or not.
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }

    /// Whether a monitor watches over it, or should.
    pub fn monitor_expected(&self) -> bool {
        self.monitor.pid != 0
    }

    /// Whether a monitor that should be there is gone: nobody keeps its output or will see it end.
    pub fn lost_monitor(&self) -> bool {
        self.monitor.pid != 0 && !self.monitor.is_alive()
    }
}
