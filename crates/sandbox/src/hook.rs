//! Hooks: programs that the configuration has run at points of the container's life (specification,
//! "POSIX-platform Hooks").

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use moat_linux::process as sys;
use moat_model::oci::{Hook, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Context, Error, Result};

/// Runs hooks in order, the container's state on standard input of each. The first failure ends it.
pub(crate) fn run(kind: &str, hooks: &[Hook], state: &State) -> Result<()> {
    let state = serde_json::to_vec(state).map_err(|error| Error::new(error.to_string()))?;
    for (index, hook) in hooks.iter().enumerate() {
        let path = hook.path.display();
        run_one(hook, &state).context(|| format!("hooks.{kind}[{index}] {path}"))?;
    }
    Ok(())
}

/// Runs hooks whose failure does not stop the container: each failure is a warning.
pub(crate) fn run_lenient(kind: &str, hooks: &[Hook], state: &State) -> Vec<String> {
    hooks
        .iter()
        .filter_map(|hook| run(kind, std::slice::from_ref(hook), state).err())
        .map(|error| error.to_string())
        .collect()
}

fn run_one(hook: &Hook, state: &[u8]) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env.iter().filter_map(|entry| entry.split_once('='));
    let mut child =
        command.env_clear().envs(variables).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(state) {
            // A hook need not read what it is told.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    let status = wait(&mut child, hook.timeout_s)?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Error::new(format!("exit code {code}"))),
        (None, signal) => Err(Error::new(format!("killed by signal {}", signal.unwrap_or(0)))),
    }
}

fn wait(child: &mut Child, timeout_s: Option<i64>) -> Result<ExitStatus> {
    if let Some(seconds) = timeout_s {
        let pidfd = sys::pidfd(child.id().cast_signed())?;
        let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
        if poll(&mut ready, Some(&limit)).map_err(std::io::Error::from)? == 0 {
            sys::signal(pidfd.as_fd(), rustix::process::Signal::KILL.as_raw())?;
            child.wait()?;
            return Err(Error::new(format!("killed after its timeout of {seconds} s")));
        }
    }
    Ok(child.wait()?)
}
