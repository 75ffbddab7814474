//! Namespaces, control groups and a system call filter, built by the sandbox in this process.

use moat_linux::process as sys;
use moat_model::oci;
use moat_sandbox::cgroup::Oom;
use moat_sandbox::container::{self, CreateOptions, Running};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;
use moat_sandbox::state::Store;

use super::{Bundle, Isolation, Process};
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
            terminal: running.terminal.take(),
            warnings: std::mem::take(&mut running.warnings),
        };
        self.running = Some(running);
        Ok(process)
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
    let text = error.to_string();
    let error = Error::from(error);
    let of_program = text.contains("exec: \"") || text.contains("process.cwd");
    if of_program && (text.contains("not found") || text.contains("no such file")) {
        error.with_kind(ErrorKind::ProgramNotFound)
    } else if of_program {
        error.with_kind(ErrorKind::NotExecutable)
    } else {
        error
    }
}
