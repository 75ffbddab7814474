//! Handing the listener of SCMP_ACT_NOTIFY to the agent that answers it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use moat_linux::net;

use crate::{Context, Result};

/// Sends the listener and the container process state (the specification's JSON) to the agent's socket.
///
/// The whole state goes in one message together with the descriptor, as agents expect it.
pub fn hand_over(listener_path: &Path, state_json: &[u8], listener: BorrowedFd<'_>) -> Result<()> {
    let what = || format!("seccomp: cannot hand the listener to {}", listener_path.display());
    let socket = net::connect(listener_path).context(what)?;
    net::send(socket.as_fd(), state_json, &[listener]).context(what)
}
