//! The wall around a workload. What a wall may know is an OCI bundle, and nothing of images, names or networks.

mod container;

use std::os::fd::OwnedFd;
use std::path::Path;

use moat_model::id::ContainerId;
use moat_model::oci;
use moat_sandbox::cgroup::Oom;
use moat_sandbox::record::Recorder;

pub(crate) use container::{Container, classified};

use crate::Result;

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
}

/// A program that runs behind a wall.
#[derive(Debug)]
pub(crate) struct Process {
    /// As the host sees it. The caller is its parent.
    pub(crate) pid: i32,
    /// Becomes readable when it ends.
    pub(crate) pidfd: OwnedFd,
    /// The terminal's master.
    pub(crate) terminal: Option<OwnedFd>,
    /// What stopped nothing but should be told.
    pub(crate) warnings: Vec<String>,
}

/// A kind of wall: as many as there are values of `--isolation`.
pub(crate) trait Isolation {
    /// Builds the wall and lets the bundle's program run, with the caller's descriptors 0, 1 and 2.
    ///
    /// Errors: a sentence about what could not be had; nothing is left behind.
    fn run(&mut self, bundle: &Bundle<'_>, recorder: &mut Recorder) -> Result<Process>;

    /// What the kernel killed in it for lack of memory so far.
    fn oom(&self) -> Result<Oom>;

    /// Takes the wall down, once its program has ended. Gives what should be told.
    fn remove(&mut self, hooks: Option<&oci::Hooks>) -> Result<Vec<String>>;
}
