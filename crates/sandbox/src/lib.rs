//! The sandbox: namespaces, cgroups, mounts, root file system, credentials and system call filter
//! around one process.
//!
//! Plan, then apply. [`plan`](plan::plan) is pure: an OCI configuration and what the host offers go
//! in, a list of steps comes out. Applying a step is one system call or one small group of them. The
//! list can be printed before (`--dry-run`) and with durations after (`--explain`).

mod apply;
mod by_hand;
mod error;
mod hook;
mod launch;
mod net_device;
mod sync;

pub mod cgroup;
pub mod change;
pub mod container;
pub mod host;
pub mod netlink;
pub mod plan;
pub mod record;
pub mod seccomp;
pub mod self_exe;
pub mod state;
pub mod step;
pub mod tree;

pub use error::{Context, Error, Result};
pub use launch::map_ids;
