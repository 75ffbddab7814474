//! What an image says that its own program starts with.

use std::collections::{BTreeMap, BTreeSet};

/// What a workload of an image starts with, in Docker's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers of the image's own.
    pub user: String,
    /// `PORT[/PROTOCOL]`.
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// What stands before `cmd`.
    pub entrypoint: Option<Vec<String>>,
    /// The program and its arguments.
    pub cmd: Option<Vec<String>>,
    /// How to see whether it is well.
    pub healthcheck: Option<ImageHealth>,
    /// Folders that outlive the workload's root file system.
    pub volumes: BTreeSet<String>,
    /// The working directory.
    pub working_dir: String,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it: a name or a number.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL.
    pub stop_timeout: Option<i64>,
    /// The shell of the shell form of a Dockerfile's instructions.
    pub shell: Option<Vec<String>>,
    /// Instructions for a build on top of this image.
    pub on_build: Option<Vec<String>>,
}

/// Docker's health check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageHealth {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", LINE]`; empty: as the image below has it.
    pub test: Vec<String>,
    /// Nanoseconds between two checks; 0: 30 s.
    pub interval_ns: i64,
    /// Nanoseconds that one may take; 0: 30 s.
    pub timeout_ns: i64,
    /// Nanoseconds during which a failure does not count.
    pub start_period_ns: i64,
    /// Nanoseconds between two checks in that period; 0: 5 s.
    pub start_interval_ns: i64,
    /// Failures in a row that make it unhealthy; 0: 3.
    pub retries: i64,
}
