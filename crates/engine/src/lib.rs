//! The engine: the life of a workload, from an image and a wish to a process that is watched over.
//!
//! There is no daemon. What the engine knows are files below two [`Roots`]; each workload that runs has a small
//! monitor process of its own, which is a fork of whoever started it. A command line that is killed harms no
//! workload, and a monitor that is killed harms no other.
//!
//! ```text
//!  image + WorkloadSpec --create--> folder, name, hold on the image
//!                          |
//!                        start --fork--> monitor: overlay root, network, OCI configuration
//!                          |               |  isolation builds the wall and runs the program
//!                          |<--- started --'  stdio, log, attach socket, restart, health, exit
//! ```
//!
//! No lock is global: a workload has a lock of its own, a name is claimed by making a link, and what others read
//! is replaced by rename. What a SIGKILL at any moment leaves behind is found by `system check`.

mod error;
mod file;
mod roots;
mod timestamp;
mod workload;

pub mod files;
pub mod oci;
pub mod rootless;
pub mod user;
pub mod volume;

pub use error::{Context, Error, ErrorKind, Result};
pub use roots::Roots;
pub use timestamp::Timestamp;
pub use workload::{
    ExitStatus, Health, HealthResult, HealthState, OomVictim, ProcessState, Workload, WorkloadId,
    WorkloadRecord, WorkloadState, check_name,
};

/// The engine of one pair of roots.
#[derive(Clone, Debug)]
pub struct Engine {
    roots: Roots,
}

impl Engine {
    /// Opens the engine; the roots are made where they are missing.
    pub fn open(roots: &Roots) -> Result<Self> {
        roots.prepare()?;
        Ok(Self { roots: roots.clone() })
    }

    /// Where it keeps what it knows.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }
}
