//! The wall around a workload. What a wall may know is an OCI bundle, and nothing of images, names or networks.

mod container;
mod microvm;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use moat_model::id::ContainerId;
use moat_model::oci;
use moat_sandbox::cgroup::Oom;
use moat_sandbox::record::Recorder;

pub(crate) use container::{Container, classified, kind};
pub use microvm::JailState;
pub(crate) use microvm::{MicroVm, check as check_microvm};

use crate::Result;
use crate::network::Tap;

/// A configuration and the folder that its relative paths begin at.
#[derive(Debug)]
pub(crate) struct Bundle<'a> {
    /// The name that the wall gives to what it makes.
    pub(crate) id: &'a ContainerId,
    /// Absolute.
    pub(crate) folder: &'a Path,
    /// The configuration.
    pub(crate) spec: &'a oci::Spec,
    /// PID 1 is Moat's own init.
    pub(crate) init: bool,
    /// The network cards of a machine. A container has its network by the configuration.
    pub(crate) taps: &'a [Tap],
}

/// A program that runs behind a wall.
#[derive(Debug)]
pub(crate) struct Process {
    /// As the host sees it. The caller is its parent.
    pub(crate) pid: i32,
    /// Becomes readable when it ends.
    pub(crate) pidfd: OwnedFd,
    /// Its standard streams.
    pub(crate) streams: Streams,
    /// What stopped nothing but should be told.
    pub(crate) warnings: Vec<String>,
}

/// The standard streams of a program behind a wall.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Those of who built the wall.
    Inherited,
    /// The master of a terminal.
    Terminal(OwnedFd),
    /// Connections, one for each stream; of a terminal the same one in both directions.
    Connected {
        /// What is written to.
        input: Option<OwnedFd>,
        /// What is read from.
        outputs: [Option<OwnedFd>; 2],
    },
}

/// A kind of wall: as many as there are values of `--isolation`.
pub(crate) trait Isolation {
    /// Builds the wall and lets the bundle's program run, with the caller's descriptors 0, 1 and 2.
    ///
    /// Errors: a sentence about what could not be had; nothing is left behind.
    fn run(&mut self, bundle: &Bundle<'_>, recorder: &mut Recorder) -> Result<Process>;

    /// Whether the program's streams come from behind the wall, in place of the caller's descriptors.
    fn brings_streams(&self) -> bool {
        false
    }

    /// Whether the root file system is put together behind the wall.
    fn brings_root(&self) -> bool {
        false
    }

    /// Its exit code, once the program has ended: 128 plus the signal for one that was killed.
    fn ended(&mut self, process: &Process) -> Result<Option<i32>>;

    /// Why the program ended, where it was not its own doing.
    fn reason(&self) -> Option<String> {
        None
    }

    /// Sends the program a signal; one that has ended is fine. With `ends` it is meant to end, also when it is frozen.
    fn signal(&mut self, process: &Process, number: i32, ends: bool) -> Result<()>;

    /// Gives a terminal behind the wall its size.
    fn resize(&self, _rows: u16, _columns: u16) -> Result<()> {
        Ok(())
    }

    /// Becomes readable when the wall itself has something to say.
    fn console(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes what it has to say.
    fn hear_console(&mut self) {}

    /// What the kernel killed in it for lack of memory so far.
    fn oom(&self) -> Result<Oom>;

    /// Takes the wall down, once its program has ended. Gives what should be told.
    fn remove(&mut self, hooks: Option<&oci::Hooks>) -> Result<Vec<String>>;
}
