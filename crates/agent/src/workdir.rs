//! The working directory, where the image has none: made as on a host, but on what the guest writes to.

use std::os::fd::AsFd;
use std::path::Path;

use moat_linux::fs::{self, Follow};
use moat_model::agent::ROOT;
use moat_model::oci;
use moat_sandbox::tree::{self, Kind};
use moat_sandbox::{Context, Result};
use rustix::fs::OFlags;

/// Makes it. What lies within a mount, only that can have.
pub(crate) fn make(config: &oci::Spec) -> Result<()> {
    let Some(path) = config.process.as_ref().map(|process| &process.cwd) else { return Ok(()) };
    if config.mounts.iter().any(|mount| path.starts_with(&mount.destination)) {
        return Ok(());
    }
    let what = || format!("working directory {}", path.display());
    let root = fs::open(Path::new(ROOT), OFlags::PATH | OFlags::DIRECTORY).context(what)?;
    if fs::open_in_root(root.as_fd(), path, OFlags::PATH, 0, Follow::InRoot).is_ok() {
        return Ok(());
    }
    tree::make(root.as_fd(), path, Kind::Directory).map(drop).context(what)
}
