//! Removing a workload.
//!
//! First its name is given back, then its folder is moved away, by one rename: from then on it is gone for everybody.
//! Deleting what it wrote comes last.

use moat_model::workload::Status;

use super::folder::removal;
use super::{Folder, Workload, WorkloadRecord, name};
use crate::events::Action;
use crate::launch::tell;
use crate::{Context, Engine, Error, Result, file};

/// How a workload is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes, too.
    pub volumes: bool,
}

impl Workload {
    /// Removes it.
    ///
    /// Errors: it runs, and `force` was not asked for.
    pub fn remove(&self, options: &RemoveOptions) -> Result<()> {
        let mut state = self.state()?;
        if state.monitor_expected() {
            if !options.force {
                return Err(Error::conflict(format!(
                    "workload {} can not be removed: it is {}",
                    self.name(),
                    state.status.name()
                ))
                .hint("stop it first, or remove it with --force"));
            }
            let kill = rustix::process::Signal::KILL.as_raw();
            self.stop_for(&super::StopOptions { signal: Some(kill), timeout_ms: Some(Some(0)) }, false)?;
            if self.is_gone() {
                return Ok(());
            }
            self.wait_for_monitor()?;
        }
        let _lock = match self.folder().lock() {
            // Auto-remove, or somebody else, was faster.
            Err(error) if error.kind() == crate::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        state = self.folder().state()?;
        if state.monitor.is_alive() {
            return Err(Error::conflict(format!("workload {} was started meanwhile", self.name())));
        }
        if state.monitor.pid != 0 {
            self.end_abandoned(&state)?;
        }
        self.folder().remove_run()?;
        let removed = remove_files(self.engine(), self.folder(), self.record(), options.volumes);
        if removed.is_err() && !self.is_gone() {
            state.status = Status::Dead;
            self.folder().save_state(&state)?;
        }
        removed
    }
}

impl Workload {
    /// Removes it, with its anonymous volumes where `volumes` or who began it says so. It does not run, and the caller
    /// holds its lock.
    pub(crate) fn remove_now(&self, volumes: bool) -> Result<()> {
        self.folder().remove_run()?;
        let volumes = volumes || removal(&self.folder().data)?.1;
        remove_files(self.engine(), self.folder(), self.record(), volumes)
    }
}

/// Removes all files of a workload that does not run, whole or half-made.
pub(crate) fn remove_files(
    engine: &Engine,
    folder: &Folder,
    record: &WorkloadRecord,
    volumes: bool,
) -> Result<()> {
    let what = || format!("remove workload {}", folder.id.short());
    let mounts = folder.mounts()?;
    if volumes && !mounts.is_empty() {
        folder.note_volumes_go().context(what)?;
    }
    if !record.name.is_empty() {
        name::release(engine.roots(), &record.name, &folder.id)?;
    }
    engine.networks().release(folder.id.as_str())?;
    let removing = folder.take_away(engine.roots()).context(what)?;
    engine.images().release(folder.id.as_str()).context(what)?;
    engine.volumes().release(&mounts, folder.id.as_str(), volumes).context(what)?;
    if removing.join("spec.json").exists() {
        tell(engine, record, Action::Destroy, &[])?;
    }
    file::remove_tree(&removing).context(what)
}
