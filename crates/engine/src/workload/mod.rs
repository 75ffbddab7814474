//! Workloads: finding them, and what can be done with one.

mod create;
mod end;
mod folder;
mod name;
mod remove;
mod rename;
mod start;
mod state;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use moat_image::Image;
use moat_linux::process as sys;
use moat_model::workload::{MountSpec, Status, WorkloadSpec};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use crate::events::Action;
use crate::log::{LogQuery, Logs};
use crate::{Context, Engine, Error, Result, file};

pub use end::StopOptions;
pub use name::{WorkloadId, check_name};
pub use remove::RemoveOptions;
pub use start::{StartOptions, Started};
pub use state::{
    ExitStatus, Health, HealthResult, HealthState, OomVictim, ProcessState, WorkloadRecord, WorkloadState,
};

pub(crate) use create::check_wish;
pub(crate) use folder::{Folder, Lock, removal};
pub(crate) use name::holder;
pub(crate) use remove::remove_files;

/// A workload that exists.
#[derive(Clone, Debug)]
pub struct Workload {
    engine: Engine,
    folder: Folder,
    record: WorkloadRecord,
    image: OnceLock<Image>,
}

impl Engine {
    /// All workloads, the newest first. One that is being created or removed in this moment is left out.
    pub fn list(&self) -> Result<Vec<Workload>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.roots().workloads())? {
            if let Some(id) = WorkloadId::parse(&name) {
                found.extend(self.load(id)?);
            }
        }
        found.sort_by_key(|workload: &Workload| std::cmp::Reverse(workload.record.created));
        Ok(found)
    }

    /// The workload of a name, an id, or the beginning of an id.
    ///
    /// Errors: there is none; the beginning fits several.
    pub fn find(&self, name_or_id: &str) -> Result<Workload> {
        let missing = || {
            Error::not_found(format!("workload {name_or_id:?} does not exist"))
                .hint("`moat ps -a` lists those that do")
        };
        let text = name_or_id.strip_prefix('/').unwrap_or(name_or_id);
        if let Some(id) = WorkloadId::parse(text) {
            return self.load(id)?.ok_or_else(missing);
        }
        if let Some(id) = holder(self.roots(), text)? {
            return self.load(id)?.ok_or_else(missing);
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.is_empty() || !digits {
            return Err(missing());
        }
        let names = file::names_in(&self.roots().workloads())?;
        let fitting = names.iter().filter(|name| name.starts_with(text));
        let mut fitting = fitting.filter_map(|name| WorkloadId::parse(name));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => self.load(id)?.ok_or_else(missing),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("{text:?} is the beginning of several workloads' ids"))
                    .hint("give more digits"))
            }
            _ => Err(missing()),
        }
    }

    fn load(&self, id: WorkloadId) -> Result<Option<Workload>> {
        let folder = Folder::new(self.roots(), id);
        Ok(folder.record()?.map(|record| Workload::new(self, folder, record)))
    }
}

impl Workload {
    pub(crate) fn new(engine: &Engine, folder: Folder, record: WorkloadRecord) -> Self {
        Self { engine: engine.clone(), folder, record, image: OnceLock::new() }
    }

    /// Its id.
    pub fn id(&self) -> &WorkloadId {
        &self.folder.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What was asked for.
    pub fn spec(&self) -> &WorkloadSpec {
        &self.record.spec
    }

    /// What is saved of it beside its state.
    pub fn record(&self) -> &WorkloadRecord {
        &self.record
    }

    /// The engine that it belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its mounts: what was asked for, what other workloads gave, and the image's volumes, every volume named.
    pub fn mounts(&self) -> Result<Vec<MountSpec>> {
        self.folder.mounts()
    }

    /// Where its files are.
    pub fn folder_path(&self) -> &Path {
        &self.folder.data
    }

    /// The image that it was created from.
    pub fn image(&self) -> Result<&Image> {
        if let Some(image) = self.image.get() {
            return Ok(image);
        }
        let image = self.engine.images().find(&self.record.image)?;
        Ok(self.image.get_or_init(|| image))
    }

    fn remember_image(&self, image: Image) {
        self.image.get_or_init(|| image);
    }

    /// Where it is in its life. What was saved is held against the kernel: a monitor or a program that was killed is
    /// told as such.
    pub fn state(&self) -> Result<WorkloadState> {
        let mut state = self.folder.state()?;
        if !state.is_running() {
            return Ok(state);
        }
        if !state.process.is_alive() {
            if state.lost_monitor() {
                state.status = Status::Exited;
                let error = Some(end::UNSEEN_WHY.to_owned());
                state.exit = Some(ExitStatus { code: end::UNSEEN, oom_killed: false, error });
            }
            // Else the monitor is about to write down how it ended.
            return Ok(state);
        }
        if state.lost_monitor() {
            state.trouble = Some(format!(
                "its monitor (process {}) was killed: its output is lost, and nobody will see how it ends",
                state.monitor.pid
            ));
        }
        if self.is_microvm() {
            if crate::guest::is_frozen(&self.folder.run) {
                state.status = Status::Paused;
            }
            return Ok(state);
        }
        let id = crate::launch::sandbox_id(self)?;
        if let Ok((_, sandbox)) = moat_sandbox::container::load(&self.engine.sandbox(), &id)
            && sandbox.cgroup.is_frozen()?
        {
            state.status = Status::Paused;
        }
        Ok(state)
    }

    /// The namespace file of its first process, as `net` or `ipc`.
    ///
    /// Errors: it does not run.
    pub fn namespace(&self, kind: &str) -> Result<PathBuf> {
        self.refuse_microvm("can not join")?;
        let state = self.state()?;
        if state.is_running() && state.process.is_alive() {
            return Ok(PathBuf::from(format!("/proc/{}/ns/{kind}", state.process.pid)));
        }
        Err(Error::conflict(format!("can not join workload {}: it is not running", self.name()))
            .hint(format!("start it with `moat start {}`", self.name())))
    }

    /// Its output.
    pub fn logs(&self, query: LogQuery) -> Result<Logs> {
        let monitor = self.folder.state()?.monitor;
        let writer = if query.follow && monitor.is_alive() { sys::pidfd(monitor.pid).ok() } else { None };
        Logs::open(self.folder.log(), query, writer)
    }

    /// Whether it was removed.
    pub fn is_gone(&self) -> bool {
        !self.folder.data.is_dir()
    }

    pub(crate) fn tell(&self, action: Action, more: &[(&str, String)]) -> Result<()> {
        crate::launch::tell(&self.engine, &self.record, action, more)
    }

    /// Waits until something in its folder has changed, or it is gone.
    fn wait_for_change(&self) -> Result<()> {
        let what = || format!("watch workload {}", self.id().short());
        let watch: OwnedFd = inotify::init(inotify::CreateFlags::CLOEXEC).context(what)?;
        let wanted =
            inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVE_SELF | inotify::WatchFlags::DELETE_SELF;
        match inotify::add_watch(watch.as_fd(), &self.folder.data, wanted) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other.context(what)?,
        };
        loop {
            match poll(&mut [PollFd::new(&watch, PollFlags::IN)], None) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(drop).context(what),
            }
        }
    }
}
