//! `system check`: what a SIGKILL, a full disk or a crash has left behind, and mending it.
//!
//! | what is found | how it came | what mends it |
//! |---|---|---|
//! | a folder without `spec.json` that nobody has locked | `create` was killed | it is removed, with its hold and name |
//! | a folder below `removing` | `rm` was killed | it is deleted, its volumes are released, and go where that was asked for |
//! | a workload that was running, and whose monitor is gone | the monitor was killed | its program is ended, its end written down |
//! | a workload without its name, or marked dead | `rm` was killed before the folder was moved | the removal is finished |
//! | a name that leads nowhere, or to a workload of another name | `rename` was killed | it is given back |
//! | a socket folder, or the sandbox's state, without a workload that runs | the monitor was killed | both are removed, with the control groups |
//! | a hold of a workload that does not exist | `rm` was killed | it is released |
//! | a volume that is half made or half removed, or is held for a workload that does not exist | `create`, `rm` or `volume rm` was killed | folder or hold are removed, an anonymous volume with its last hold |
//! | a kernel that is half there, or a chosen one that is not | `kernel import` or `kernel rm` was killed | it is removed |
//! | a place on a network without a workload that runs, a network without its bridge, a packet filter without our rules | a monitor was killed; somebody flushed or changed what is ours | places are released, the rest is put up again |
//! | half-written files `*.PID` | a writer was killed | they are deleted |
//!
//! What is being worked on in this moment is never touched: its lock is held, or its process lives. Mounts are not in
//! this list, since those of a monitor are in a mount namespace that goes with it.

use std::path::{Path, PathBuf};

use moat_model::id::ContainerId;
use moat_model::workload::Status;
use moat_sandbox::container;
use moat_sandbox::record::Recorder;

use crate::workload::{
    Folder, Lock, ProcessState, Workload, WorkloadId, WorkloadState, holder, removal, remove_files,
};
use crate::{Context, Engine, Result, file};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: String,
    /// What was done; `None`: nothing, because that was not asked for or not possible.
    pub repair: Option<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.fault)?;
        self.repair.as_ref().map_or(Ok(()), |repair| write!(f, "; {repair}"))
    }
}

/// Collects what is found, and mends when it is asked to.
struct Check<'a> {
    engine: &'a Engine,
    repair: bool,
    findings: Vec<Finding>,
}

impl Engine {
    /// Looks at everything below the roots; with `repair` mends it. With `deep` every blob of every image is read.
    ///
    /// Errors: what can not even be looked at. A repair that fails is told in its finding.
    pub fn check(&self, repair: bool, deep: bool) -> Result<Vec<Finding>> {
        let mut check = Check { engine: self, repair, findings: Vec::new() };
        check.workloads()?;
        check.removed()?;
        check.names()?;
        check.run_folders()?;
        check.sandboxes()?;
        check.holds()?;
        check.volumes()?;
        check.kernels()?;
        check.networks()?;
        let images = self.images().check(repair, deep)?;
        check.findings.extend(images.into_iter().map(|found| Finding {
            path: found.path,
            fault: found.fault,
            repair: found.repair,
        }));
        Ok(check.findings)
    }
}

impl Check<'_> {
    /// Notes a fault; `mend` does something about it, which `done` says.
    fn found(
        &mut self,
        path: &Path,
        fault: impl Into<String>,
        done: &str,
        mend: impl FnOnce() -> Result<()>,
    ) {
        let repair = self.repair.then(|| match mend() {
            Ok(()) => done.to_owned(),
            Err(error) => format!("could not be mended: {error}"),
        });
        self.findings.push(Finding { path: path.to_owned(), fault: fault.into(), repair });
    }

    /// What volumes hold: a workload that is being made or removed in this moment has its folder, here or there.
    fn volumes(&mut self) -> Result<()> {
        let roots = self.engine.roots();
        let exists =
            |id: &str| [roots.workloads(), roots.removing()].iter().any(|folder| folder.join(id).is_dir());
        for found in self.engine.volumes().check(self.repair, &exists)? {
            self.findings.push(Finding {
                path: found.path,
                fault: found.fault,
                repair: self.repair.then(|| "removed".to_owned()),
            });
        }
        Ok(())
    }

    fn kernels(&mut self) -> Result<()> {
        for (path, fault) in self.engine.kernels().check(self.repair)? {
            let repair = self.repair.then(|| "removed".to_owned());
            self.findings.push(Finding { path, fault: fault.to_owned(), repair });
        }
        Ok(())
    }

    /// Places on networks, and what carries them. An ordinary user has none.
    fn networks(&mut self) -> Result<()> {
        if crate::rootless::is_inside() || moat_linux::credentials::effective_user() != 0 {
            return Ok(());
        }
        let (engine, repair) = (self.engine, self.repair);
        let idle = |id: &str| match WorkloadId::parse(id) {
            None => Some(Box::new(()) as Box<dyn std::any::Any>),
            Some(id) => self.idle(&id).map(|lock| Box::new(lock) as Box<dyn std::any::Any>),
        };
        let found = engine.networks().check(&idle, repair)?;
        let path = engine.roots().data.join("networks");
        self.findings.extend(found.into_iter().map(|found| {
            let hint = found.hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            Finding {
                path: path.clone(),
                fault: format!("{}: {}{hint}", found.object, found.problem),
                repair: match (found.repaired, repair) {
                    (true, _) => Some("mended".to_owned()),
                    (false, true) => Some("could not be mended".to_owned()),
                    (false, false) => None,
                },
            }
        }));
        Ok(())
    }

    fn workloads(&mut self) -> Result<()> {
        let (engine, workloads) = (self.engine, self.engine.roots().workloads());
        for name in file::names_in(&workloads)? {
            let path = workloads.join(&name);
            let Some(id) = WorkloadId::parse(&name) else {
                self.found(&path, "is none of the engine's", "moved nowhere: look at it yourself", || Ok(()));
                continue;
            };
            let folder = Folder::new(engine.roots(), id);
            // Who holds the lock, or lives as its monitor, knows better.
            let Ok(Some(lock)) = folder.try_lock() else { continue };
            let state = match folder.state() {
                Ok(state) => state,
                Err(error) => {
                    let anew =
                        || folder.save_state(&WorkloadState { status: Status::Exited, ..Default::default() });
                    self.found(&path, error.to_string(), "its state begins anew", anew);
                    continue;
                }
            };
            if state.monitor.is_alive() {
                continue;
            }
            match folder.record() {
                Ok(Some(record)) => self.workload(&Workload::new(engine, folder, record), &state)?,
                Ok(None) => self.found(&path, "was not created completely", "removed", || {
                    remove_files(engine, &folder, &Default::default(), true)
                }),
                // What it was is not known any more: its volumes are kept.
                Err(error) => self.found(&path, error.to_string(), "removed", || {
                    remove_files(engine, &folder, &Default::default(), false)
                }),
            }
            drop(lock);
        }
        Ok(())
    }

    /// A workload whose lock this process holds and which has no monitor.
    fn workload(&mut self, workload: &Workload, state: &WorkloadState) -> Result<()> {
        let (engine, folder) = (self.engine, workload.folder());
        let named = holder(engine.roots(), workload.name())?.as_ref() == Some(workload.id());
        let auto_remove = workload.spec().auto_remove;
        if !named || state.status == Status::Dead {
            let again = || workload.end_if_abandoned(state).and_then(|()| workload.remove_now(auto_remove));
            self.found(&folder.data, "was not removed completely", "removed", again);
            return Ok(());
        }
        if state.monitor != ProcessState::default() {
            let what = if state.process.is_alive() {
                "its program runs without it"
            } else {
                "its program has ended"
            };
            let fault = format!("its monitor (process {}) was killed; {what}", state.monitor.pid);
            let done = if auto_remove { "ended and removed" } else { "ended, and marked as exited" };
            self.found(&folder.data, fault, done, || {
                workload.end_if_abandoned(state)?;
                if auto_remove { workload.remove_now(true) } else { Ok(()) }
            });
        }
        for name in file::names_in(&folder.data)? {
            if is_half_written(&name) {
                let path = folder.data.join(&name);
                self.found(&path, "was not written completely", "deleted", || file::remove_if_there(&path));
            }
        }
        Ok(())
    }

    fn removed(&mut self) -> Result<()> {
        let removing = self.engine.roots().removing();
        for name in file::names_in(&removing)? {
            let path = removing.join(&name);
            let state: Option<WorkloadState> = file::read(&path.join("state.json")).unwrap_or_default();
            if state.is_some_and(|state| state.monitor.is_alive()) || is_locked(&path.join("lock")) {
                continue;
            }
            let engine = self.engine;
            self.found(&path, "was not deleted completely", "deleted", || {
                engine.images().release(&name)?;
                let (mounts, volumes) = removal(&path)?;
                engine.volumes().release(&mounts, &name, volumes)?;
                file::remove_tree(&path)
            });
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        let names = self.engine.roots().names();
        for name in file::names_in(&names)? {
            let path = names.join(&name);
            let fault = match holder(self.engine.roots(), &name)? {
                None => "is no name of a workload",
                Some(id) => {
                    let folder = Folder::new(self.engine.roots(), id);
                    // One that is being created or renamed is locked.
                    match folder.try_lock() {
                        Ok(None) => continue,
                        Err(_) => "leads to a workload that does not exist",
                        Ok(Some(_lock)) => match folder.record() {
                            Ok(Some(record)) if record.name == name => continue,
                            Ok(Some(_)) => "leads to a workload of another name",
                            // Told of already; it goes with its workload.
                            _ => continue,
                        },
                    }
                }
            };
            self.found(&path, fault, "given back", || file::remove_if_there(&path));
        }
        Ok(())
    }

    /// Whether nobody is at work with the workload of an id.
    fn is_idle(&self, id: &WorkloadId) -> bool {
        self.idle(id).is_some()
    }

    /// The lock of a workload that nobody is at work with, where it exists: it has no monitor.
    fn idle(&self, id: &WorkloadId) -> Option<Option<Lock>> {
        let folder = Folder::new(self.engine.roots(), id.clone());
        match folder.try_lock() {
            Ok(None) => None,
            Err(_) => (!self.is_being_removed(id)).then_some(None),
            Ok(Some(lock)) => (!folder.state().unwrap_or_default().monitor.is_alive()).then_some(Some(lock)),
        }
    }

    fn is_being_removed(&self, id: &WorkloadId) -> bool {
        let path = self.engine.roots().removing().join(id.as_str());
        let state: Option<WorkloadState> = file::read(&path.join("state.json")).unwrap_or_default();
        state.is_some_and(|state| state.monitor.is_alive()) || is_locked(&path.join("lock"))
    }

    fn run_folders(&mut self) -> Result<()> {
        let running = self.engine.roots().running();
        for name in file::names_in(&running)? {
            let path = running.join(&name);
            let idle = WorkloadId::parse(&name).is_none_or(|id| self.is_idle(&id));
            if idle && path.exists() {
                let fault = "is the socket of a workload that does not run";
                self.found(&path, fault, "deleted", || file::remove_tree(&path));
            }
        }
        Ok(())
    }

    fn sandboxes(&mut self) -> Result<()> {
        let store = self.engine.sandbox();
        for id in store.list().context(|| "the sandbox's state")? {
            if WorkloadId::parse(id.as_str()).is_none_or(|id| self.is_idle(&id)) {
                self.sandbox(&id);
            }
        }
        Ok(())
    }

    fn sandbox(&mut self, id: &ContainerId) {
        let store = self.engine.sandbox();
        let path = self.engine.roots().sandbox().join(id.as_str());
        let fault = "is the sandbox of a workload that does not run";
        self.found(&path, fault, "removed, with its control groups", || {
            container::delete(&store, id, true, &mut Recorder::new(false, None))?;
            Ok(())
        });
    }

    fn holds(&mut self) -> Result<()> {
        for hold in self.engine.images().holds()? {
            let exists = |id: &WorkloadId| Folder::new(self.engine.roots(), id.clone()).data.is_dir();
            let stale =
                WorkloadId::parse(&hold.holder).is_some_and(|id| !exists(&id) && !self.is_being_removed(&id));
            if stale {
                let path = self.engine.images().root().join("holds").join(&hold.holder);
                let images = self.engine.images();
                self.found(&path, "holds an image for a workload that does not exist", "released", || {
                    Ok(images.release(&hold.holder)?)
                });
            }
        }
        Ok(())
    }
}

/// `state.json.PID` of a process that does not live any more.
fn is_half_written(name: &str) -> bool {
    let pid = name.rsplit_once(".json.").and_then(|(_, pid)| pid.parse::<i32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Whether somebody has locked a file.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}
