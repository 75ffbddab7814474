//! Health checks.

use serde::{Deserialize, Serialize};

/// What is asked to tell whether a workload does its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum HealthProbe {
    /// No check, though the image has one (`--no-healthcheck`).
    None,
    /// As the image says; only the times below differ.
    Image,
    /// A program in the workload; exit code 0 is healthy.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// A line for the workload's shell.
    Shell {
        /// The line.
        line: String,
    },
    /// An HTTP request that the monitor makes itself; a status below 400 is healthy.
    Http {
        /// Port in the workload's network.
        port: u16,
        /// Path, with a leading slash.
        path: String,
    },
    /// A connection that the monitor makes itself.
    Tcp {
        /// Port in the workload's network.
        port: u16,
    },
}

/// A health check; absent times are Docker's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// What is asked.
    pub probe: HealthProbe,
    /// Time between two checks; 30 s.
    pub interval_ms: Option<u64>,
    /// A check that takes longer has failed; 30 s.
    pub timeout_ms: Option<u64>,
    /// Failures within this time after the start do not count; 0.
    pub start_period_ms: Option<u64>,
    /// Time between two checks within the start period; 5 s.
    pub start_interval_ms: Option<u64>,
    /// So many failures in a row make it unhealthy; 3.
    pub retries: Option<u32>,
}
