//! The sandbox: namespaces, cgroups, mounts, root file system, credentials and system call filter
//! around one process.
//!
//! Plan, then apply. `plan` is pure: an OCI configuration and what the host offers go
//! in, a list of steps comes out. Applying a step is one system call or one small group of them. The
//! list can be printed before (`--dry-run`) and with durations after (`--explain`).

mod error;

pub mod cgroup;
pub mod seccomp;

pub use error::{Context, Error, Result};
