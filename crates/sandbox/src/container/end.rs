//! Signals to a container, and its end.

use std::os::fd::AsFd;

use moat_linux::{Errno, process as sys};
use moat_model::id::ContainerId;
use moat_model::oci::{self, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::{Running, load};
use crate::record::Recorder;
use crate::state::{ContainerState, Folder, Status, Store};
use crate::{Context, Error, Result, hook};

/// Sends a signal to the first process, or with `all` to every process of the container.
pub fn kill(store: &Store, id: &ContainerId, number: i32, all: bool) -> Result<()> {
    let (folder, state) = load(store, id)?;
    let status = state.status(&folder)?;
    if all {
        return signal_all(&state, number);
    }
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(Error::new(format!("cannot kill container {id}: container not running")));
    }
    let pidfd = sys::pidfd(state.pid)?;
    if !state.is_alive() {
        return Err(Error::new(format!("cannot kill container {id}: container not running")));
    }
    sys::signal(pidfd.as_fd(), number).context(|| format!("kill container {id}"))?;
    if number == Signal::KILL.as_raw() && status == Status::Paused {
        // A v1 freezer keeps the signal until the group is thawed.
        state.cgroup.thaw()?;
    }
    Ok(())
}

fn signal_all(state: &ContainerState, number: i32) -> Result<()> {
    if number == Signal::KILL.as_raw() {
        return state.cgroup.kill_all();
    }
    for pid in state.cgroup.pids()? {
        match sys::kill(pid, number) {
            Err(error) if error.errno() != Errno::SRCH => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Deletes a container that has stopped, or with `force` whatever is left of it.
///
/// Gives warnings of poststop hooks. With `force` a container that does not exist is no error.
pub fn delete(store: &Store, id: &ContainerId, force: bool, recorder: &mut Recorder) -> Result<Vec<String>> {
    let mut folder = match store.open(id) {
        Err(_) if force => return Ok(Vec::new()),
        other => other?,
    };
    folder.lock()?;
    let state = match folder.load() {
        Ok(Some(state)) if state.pid == 0 && force => {
            return recorder
                .step("remove what a killed create has left", "", || remove_unfinished(folder, &state));
        }
        Ok(Some(state)) => state,
        Ok(None) if !force => return load(store, id).map(|_| Vec::new()),
        Err(error) if !force => return Err(error),
        _ => {
            recorder.step("remove the state folder", "rm -r STATE/ID", || folder.remove())?;
            return Ok(Vec::new());
        }
    };
    let status = state.status(&folder)?;
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::new(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        )));
    }
    let hooks = folder.config().ok().and_then(|spec| spec.hooks).unwrap_or_default();
    remove(folder, &state, status, &hooks, recorder)
}

/// Deletes a container that [`create`] has just built and whose first process has ended: what `run` does at
/// its end, without reading again what is known.
pub fn delete_ended(
    running: Running,
    hooks: Option<&oci::Hooks>,
    recorder: &mut Recorder,
) -> Result<Vec<String>> {
    let Some((mut folder, state)) = running.container else { return Ok(Vec::new()) };
    folder.lock()?;
    remove(folder, &state, Status::Stopped, &hooks.cloned().unwrap_or_default(), recorder)
}

fn remove(
    folder: Folder,
    state: &ContainerState,
    status: Status,
    hooks: &oci::Hooks,
    recorder: &mut Recorder,
) -> Result<Vec<String>> {
    let idle = status == Status::Stopped
        && recorder.step("remove the cgroup", "rmdir CGROUP", || state.cgroup.remove_idle())?;
    if !idle {
        recorder.step("kill what is left", "kill -9 $PID", || end_all(state))?;
        recorder.step("remove the cgroup", "rmdir CGROUP", || state.cgroup.remove())?;
    }
    let warnings = hook::run_lenient("poststop", &hooks.poststop, &state.to_oci(Status::Stopped));
    recorder.step("remove the state folder", "rm -r STATE/ID", || folder.remove())?;
    Ok(warnings)
}

/// Removes what is left of a create that was killed. Init has seen that death and ends by itself. Until all
/// groups were made nobody knows whether they are the container's own, so those are only removed where
/// nothing is in them.
fn remove_unfinished(folder: Folder, state: &ContainerState) -> Result<Vec<String>> {
    match folder.load_staged() {
        Some(built) => {
            end_all(&built)?;
            built.cgroup.remove()?;
        }
        None => state.cgroup.remove_empty()?,
    }
    folder.remove()?;
    Ok(Vec::new())
}

/// Kills the first process and everything in the cgroup, and waits for the first.
fn end_all(state: &ContainerState) -> Result<()> {
    if state.is_alive()
        && let Ok(pidfd) = sys::pidfd(state.pid)
        && state.is_alive()
    {
        match sys::signal(pidfd.as_fd(), Signal::KILL.as_raw()) {
            Err(error) if error.errno() != Errno::SRCH => return Err(error.into()),
            _ => {}
        }
        state.cgroup.thaw()?;
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended =
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).map_err(std::io::Error::from)?;
        if ended == 0 {
            return Err(Error::new(format!("process {} of container {} does not end", state.pid, state.id)));
        }
    }
    state.cgroup.kill_all()
}

/// Removes what a failed `create` has made.
pub(super) fn clean(folder: Folder, state: &ContainerState, spec: &Spec) -> Result<()> {
    end_all(state)?;
    state.cgroup.remove()?;
    let hooks = spec.hooks.clone().unwrap_or_default();
    hook::run_lenient("poststop", &hooks.poststop, &state.to_oci(Status::Stopped));
    folder.remove()
}
