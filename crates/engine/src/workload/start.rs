//! Starting a workload, being attached to it, and waiting for its end.

use moat_model::workload::{Status, WorkloadSpec};

use super::Workload;
use super::folder::Lock;
use crate::attach::{AttachSpec, Attached};
use crate::events::Action;
use crate::frame::Request;
use crate::launch::Launch;
use crate::monitor::{self, First};
use crate::{Context, Engine, Error, ExitStatus, Result};

/// How a workload is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// The streams that whoever starts it gets from the first byte on.
    pub attach: Option<AttachSpec>,
    /// The steps of building the wall are told with their durations.
    pub explain: bool,
}

/// A workload whose program runs.
#[derive(Debug)]
pub struct Started {
    /// Its first process.
    pub pid: i32,
    /// What stopped nothing but should be told.
    pub warnings: Vec<String>,
    /// The steps of building the wall, as text.
    pub waterfall: Option<String>,
    /// The streams that were asked for.
    pub attached: Option<Attached>,
}

impl Engine {
    /// [`Engine::create`] and [`Workload::start`] in one.
    ///
    /// With auto-remove nothing is left of a workload that could not be started.
    pub fn run(&self, spec: WorkloadSpec, options: &StartOptions) -> Result<(Workload, Started)> {
        let (workload, lock) = self.create_locked(spec)?;
        match workload.start_locked(options, lock) {
            Ok(started) => Ok((workload, started)),
            Err(error) => Err(error),
        }
    }
}

impl Workload {
    /// Starts it: returns when its program runs.
    ///
    /// The caller must have a single thread, since it forks the workload's monitor. Errors: it runs already; its
    /// program can not be run ([`crate::ErrorKind`] says why).
    pub fn start(&self, options: &StartOptions) -> Result<Started> {
        let lock = self.folder().lock()?;
        self.start_locked(options, lock)
    }

    fn start_locked(&self, options: &StartOptions, lock: Lock) -> Result<Started> {
        let state = self.folder().state()?;
        if state.monitor.is_alive() {
            return Err(Error::conflict(format!("workload {} is running already", self.name())));
        }
        if state.monitor.pid != 0 {
            self.end_abandoned(&state)?;
        }
        if state.status == Status::Dead {
            return Err(Error::conflict(format!(
                "workload {} was not removed whole and can not be started",
                self.name()
            ))
            .hint("`moat system check --repair` finishes its removal"));
        }
        single_thread()?;
        let launch = Launch::new(self)?;
        let attach = options.attach.unwrap_or_default();
        let first =
            First { stdin: attach.stdin, outputs: [attach.stdout, attach.stderr], explain: options.explain };
        let mut attached = Attached::new(monitor::fork(&launch, first)?);
        let started = attached.hear_start().context(|| format!("start workload {}", self.name()))?;
        drop(lock);
        Ok(Started {
            pid: started.pid,
            warnings: started.warnings,
            waterfall: started.waterfall,
            attached: options.attach.map(|_| attached),
        })
    }

    /// Attaches to its streams.
    ///
    /// Errors: it does not run.
    pub fn attach(&self, spec: &AttachSpec) -> Result<Attached> {
        let attached = Attached::attach(self.folder(), spec)?;
        let attached = attached.ok_or_else(|| self.no_monitor("attach to"))?;
        self.tell(Action::Attach, &[])?;
        Ok(attached)
    }

    /// Gives its terminal a size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match Attached::ask(self.folder(), Request::Resize { rows, columns })? {
            Some(_) => Ok(()),
            None => Err(self.no_monitor("resize the terminal of")),
        }
    }

    /// What to say when nobody answers.
    pub(super) fn no_monitor(&self, what: &str) -> Error {
        match self.state() {
            Ok(state) if state.is_running() => {
                Error::conflict(format!("can not {what} workload {}: its monitor was killed", self.name()))
                    .hint("its program still runs: `moat stop` or `moat restart` it")
            }
            _ => Error::conflict(format!("can not {what} workload {}: it is not running", self.name())),
        }
    }

    /// Waits until it does not run: gives at once how one ended that does not run.
    pub fn wait(&self) -> Result<ExitStatus> {
        if let Some(Some(status)) = Attached::ask(self.folder(), Request::Wait)? {
            return Ok(status);
        }
        self.last_exit()
    }

    /// Waits for its next end, also of one that does not run yet.
    pub fn wait_next(&self) -> Result<ExitStatus> {
        loop {
            if let Some(Some(status)) = Attached::ask(self.folder(), Request::Wait)? {
                return Ok(status);
            }
            let before = self.folder().state()?.finished;
            self.wait_for_change()?;
            let state = self.folder().state()?;
            if state.finished != before {
                return Ok(state.exit.unwrap_or_default());
            }
        }
    }

    /// Waits until it is removed, and gives how it ended.
    pub fn wait_removed(&self) -> Result<ExitStatus> {
        let mut last = ExitStatus::default();
        loop {
            match Attached::ask(self.folder(), Request::Wait)? {
                Some(Some(status)) => last = status,
                _ if self.is_gone() => return Ok(last),
                _ => {
                    last = self.last_exit()?;
                    self.wait_for_change()?;
                }
            }
            if self.is_gone() {
                return Ok(last);
            }
        }
    }

    /// How it ended last; 255 where nobody saw it.
    fn last_exit(&self) -> Result<ExitStatus> {
        Ok(self.state()?.exit.unwrap_or_default())
    }
}

/// A fork of a process with several threads could wait for ever for what one of them has locked.
fn single_thread() -> Result<()> {
    // A thread that was joined may still be at its last steps in the kernel.
    const PATIENCE: u32 = 1000;
    let mut threads = 0;
    for _ in 0..PATIENCE {
        threads = std::fs::read_dir("/proc/self/task").context(|| "/proc/self/task")?.count();
        if threads == 1 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(Error::new(format!("a process with {threads} threads can not start a workload")))
}
