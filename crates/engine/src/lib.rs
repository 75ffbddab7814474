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

use std::ffi::OsString;

mod attach;
mod check;
mod copy;
mod diff;
mod error;
mod events;
mod exec;
mod export;
mod file;
mod guest;
mod health;
mod isolation;
mod launch;
mod log;
mod monitor;
mod network;
mod overlay;
mod perspective;
mod plan;
mod prepare;
mod roots;
mod stats;
mod timestamp;
mod update;
mod usage;
mod view;
mod workload;

pub mod files;
pub mod frame;
pub mod kernel;
pub mod oci;
pub mod program;
pub mod rootless;
pub mod user;
pub mod volume;

pub use moat_image as image;
pub use moat_net as net;
pub use moat_sandbox::self_exe::protect;

pub use attach::{AttachSpec, Attached, Received};
pub use check::Finding;
pub use copy::{CopyOptions, PathStat, unpack_onto_host};
pub use diff::{Change, ChangeKind};
pub use error::{Context, Error, ErrorKind, Result};
pub use events::{Action, Event, EventQuery, EventType, Events};
pub use exec::{ExecProcess, ExecSpec};
pub use frame::Stream;
pub use isolation::JailState;
pub use log::{LogLine, LogQuery, Logs};
pub use network::{is_on, network_names};
pub use roots::Roots;
pub use stats::{InterfaceStats, ProcessInfo, WorkloadStats};
pub use timestamp::Timestamp;
pub use usage::{DiskUsage, Info, PruneSpec, Pruned, WorkloadUsage, older_than};
pub use workload::{
    ExitStatus, Health, HealthResult, HealthState, OomVictim, ProcessState, RemoveOptions, StartOptions,
    Started, StopOptions, Workload, WorkloadId, WorkloadRecord, WorkloadState, check_name,
};

/// The engine of one pair of roots.
#[derive(Clone, Debug)]
pub struct Engine {
    roots: Roots,
    images: moat_image::Store,
    resolver: Option<Vec<OsString>>,
}

impl Engine {
    /// Opens the engine; the roots are made where they are missing.
    pub fn open(roots: &Roots) -> Result<Self> {
        roots.prepare()?;
        let ownership = if rootless::is_inside() {
            moat_image::Ownership::Mapped
        } else {
            moat_image::Ownership::Privileged
        };
        let images = moat_image::Store::open(&roots.images(), ownership)?;
        Ok(Self { images, roots: roots.clone(), resolver: None })
    }

    /// Sets the program and arguments that end in [`net::resolver::serve`]. Without it workloads do not know each
    /// other's names.
    #[must_use]
    pub fn with_resolver(mut self, command: Vec<OsString>) -> Self {
        self.resolver = Some(command);
        self
    }

    /// The networks.
    pub fn networks(&self) -> moat_net::Networks {
        let networks = moat_net::Networks::open(&self.roots.data, &self.roots.run);
        match &self.resolver {
            Some(command) => networks.with_resolver(command.clone()),
            None => networks,
        }
    }

    /// Where it keeps what it knows.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The images.
    pub fn images(&self) -> &moat_image::Store {
        &self.images
    }

    /// The volumes.
    pub fn volumes(&self) -> volume::Volumes {
        volume::Volumes::new(self.roots.volumes())
    }

    /// What happens to workloads, images and volumes.
    pub fn events(&self, query: EventQuery) -> Result<Events> {
        Events::open(self.roots.events(), query)
    }

    pub(crate) fn sandbox(&self) -> moat_sandbox::state::Store {
        moat_sandbox::state::Store::new(self.roots.sandbox())
    }
}
