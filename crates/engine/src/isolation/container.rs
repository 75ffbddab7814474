//! Namespaces, control groups and a system call filter, built by the sandbox in this process.

use std::os::fd::AsFd;

use moat_linux::process as sys;
use moat_model::oci;
use moat_sandbox::cgroup::Oom;
use moat_sandbox::container::{self, CreateOptions, Running};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;
use moat_sandbox::state::Store;

use super::{Bundle, Isolation, Process, Streams};
use crate::{Context, Error, ErrorKind, Result};

/// A container, once it runs.
#[derive(Debug)]
pub(crate) struct Container {
    store: Store,
    host: Host,
    running: Option<Running>,
}

impl Container {
    pub(crate) fn new(store: Store, host: Host) -> Self {
        Self { store, host, running: None }
    }
}

impl Isolation for Container {
    fn run(&mut self, bundle: &Bundle<'_>, recorder: &mut Recorder) -> Result<Process> {
        let text = serde_json::to_vec(bundle.spec).map_err(|error| Error::new(error.to_string()))?;
        let options =
            CreateOptions { bundle: bundle.folder.to_owned(), init: bundle.init, ..CreateOptions::default() };
        let mut running =
            container::create(&self.store, bundle.id, bundle.spec, &text, &options, &self.host, recorder)
                .map_err(classified)?;
        let pidfd = sys::pidfd(running.pid).context(|| "watch the program")?;
        let process = Process {
            pid: running.pid,
            pidfd,
            streams: running.terminal.take().map_or(Streams::Inherited, Streams::Terminal),
            warnings: std::mem::take(&mut running.warnings),
        };
        self.running = Some(running);
        Ok(process)
    }

    fn ended(&mut self, process: &Process) -> Result<Option<i32>> {
        Ok(sys::wait(process.pid, false)?.map(sys::exit_code))
    }

    /// A frozen workload would keep the signal until it is thawed.
    fn signal(&mut self, process: &Process, number: i32, ends: bool) -> Result<()> {
        match sys::signal(process.pidfd.as_fd(), number) {
            // It has ended in this moment.
            Err(error) if error.errno() == moat_linux::Errno::SRCH => {}
            other => other?,
        }
        match self.running.as_ref().and_then(Running::cgroup) {
            Some(group) if ends => Ok(group.thaw()?),
            _ => Ok(()),
        }
    }

    fn oom(&self) -> Result<Oom> {
        match self.running.as_ref().and_then(Running::cgroup) {
            Some(group) => Ok(group.oom()?),
            None => Ok(Oom::default()),
        }
    }

    fn remove(&mut self, hooks: Option<&oci::Hooks>) -> Result<Vec<String>> {
        match self.running.take() {
            Some(running) => Ok(container::delete_ended(running, hooks, &mut Recorder::new(false, None))?),
            None => Ok(Vec::new()),
        }
    }
}

/// What of a failure decides the exit code, as Docker tells it from the runtime's words.
pub(crate) fn classified(error: moat_sandbox::Error) -> Error {
    let kind = kind(&error.to_string());
    Error::from(error).with_kind(kind)
}

/// The same of the sandbox's words alone, as a guest sends them.
pub(crate) fn kind(text: &str) -> ErrorKind {
    let of_program = text.contains("exec: \"") || text.contains("process.cwd");
    if of_program && (text.contains("not found") || text.contains("no such file")) {
        ErrorKind::ProgramNotFound
    } else if of_program {
        ErrorKind::NotExecutable
    } else {
        ErrorKind::Failed
    }
}
