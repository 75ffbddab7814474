//! A further process in a workload that runs.
//!
//! It is built by the caller's own process, which is its parent and whose standard streams it gets: nothing stands
//! between the two. The caller must have a single thread, and its later children would be born in the workload's PID
//! namespace, so a program that goes on to do other things forks first.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{mount, process as sys};
use moat_sandbox::container::{self, ExecOptions, Running};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;

use crate::events::Action;
use crate::isolation::classified;
use crate::launch::sandbox_id;
use crate::oci::{self, ExecWish, HostFacts};
use crate::prepare::identity_in;
use crate::{Context, Error, Result, Workload};

/// A further process as it is wished for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, over the workload's own; a name alone removes one.
    pub env: Vec<String>,
    /// `user[:group]` in place of the workload's.
    pub user: Option<String>,
    /// Working directory in place of the workload's.
    pub workdir: Option<String>,
    /// It gets a terminal of its own.
    pub tty: bool,
    /// Rows and columns of that terminal.
    pub size: Option<(u16, u16)>,
    /// All capabilities that the host can give.
    pub privileged: bool,
    /// It gets the caller's standard input, else an empty one.
    pub stdin: bool,
    /// Nobody waits for it: it gets empty standard streams.
    pub detach: bool,
}

/// A further process that runs.
#[derive(Debug)]
pub struct ExecProcess {
    running: Running,
    workload: Workload,
    name: String,
}

impl Workload {
    /// Runs a further process in it.
    ///
    /// Errors: it does not run; the program can not be run ([`crate::ErrorKind`] says why).
    pub fn exec(&self, spec: &ExecSpec) -> Result<ExecProcess> {
        let name = spec.command.join(" ");
        let facts = HostFacts::detect(Host::detect()?)?;
        let process = self.exec_config(spec, &facts)?;
        self.tell(Action::ExecCreate, &[("execCommand", name.clone())])?;
        let streams = Streams::replace(spec)?;
        let built = container::exec(
            &self.engine().sandbox(),
            &sandbox_id(self)?,
            &process,
            &ExecOptions::default(),
            &facts.sandbox,
            false,
            &mut Recorder::new(false, None),
        );
        streams.restore()?;
        let running = built.map_err(classified).context(|| format!("exec in workload {}", self.name()))?;
        self.tell(Action::ExecStart, &[("execCommand", name.clone())])?;
        Ok(ExecProcess { running, workload: self.clone(), name })
    }

    fn exec_config(&self, spec: &ExecSpec, facts: &HostFacts) -> Result<moat_model::oci::Process> {
        let state = self.state()?;
        match state.status {
            moat_model::workload::Status::Running => {}
            moat_model::workload::Status::Paused => {
                return Err(Error::conflict(format!(
                    "can not exec in workload {}: it is paused",
                    self.name()
                ))
                .hint(format!("let it go on with `moat unpause {}`", self.name())));
            }
            _ => {
                return Err(Error::conflict(format!(
                    "can not exec in workload {}: it is not running",
                    self.name()
                ))
                .hint(format!("start it with `moat start {}`", self.name())));
            }
        }
        let (folder, _) = container::load(&self.engine().sandbox(), &sandbox_id(self)?)?;
        let first = folder.config()?.process.ok_or_else(|| Error::new("the configuration has no process"))?;
        let identity = match &spec.user {
            Some(user) => Some(identity_in(state.process.pid, user, &self.spec().group_add)?),
            None => None,
        };
        let wish = ExecWish {
            command: spec.command.clone(),
            env: spec.env.clone(),
            workdir: spec.workdir.clone(),
            tty: spec.tty,
            privileged: spec.privileged,
        };
        let image = &self.image()?.config.config;
        let mut process = oci::exec_process(&wish, &first, (self.spec(), image), facts, identity.as_ref())?;
        if let (true, Some((height, width))) = (spec.tty, spec.size) {
            process.console_size = Some(moat_model::oci::ConsoleSize { height, width });
        }
        Ok(process)
    }
}

impl ExecProcess {
    /// As the host sees it.
    pub fn pid(&self) -> i32 {
        self.running.pid
    }

    /// Becomes readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.running.pidfd.as_fd()
    }

    /// The master of its terminal, which is the caller's from then on.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.running.terminal.take()
    }

    /// What stopped nothing but should be told.
    pub fn warnings(&self) -> &[String] {
        &self.running.warnings
    }

    /// Sends it a signal; one that has ended is fine.
    pub fn signal(&self, number: i32) -> Result<()> {
        match sys::signal(self.running.pidfd.as_fd(), number) {
            Err(error) if error.errno() != moat_linux::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended: its exit code, 128 plus the signal for one that was killed.
    pub fn wait(self) -> Result<i32> {
        let code = container::wait(&self.running)?;
        let more = [("execCommand", self.name.clone()), ("exitCode", code.to_string())];
        // A workload that was removed meanwhile has no more to tell.
        if !self.workload.is_gone() {
            self.workload.tell(Action::ExecDie, &more)?;
        }
        Ok(code)
    }
}

/// The caller's standard streams, as long as others stand in their place.
struct Streams(Vec<(i32, OwnedFd)>);

impl Streams {
    /// Puts empty ones where the process is not to have the caller's.
    fn replace(spec: &ExecSpec) -> Result<Self> {
        let numbers = match (spec.detach, spec.stdin || spec.tty) {
            (true, _) => 0..3,
            (false, false) => 0..1,
            (false, true) => 0..0,
        };
        if numbers.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let null =
            OpenOptions::new().read(true).write(true).open("/dev/null").context(|| "open /dev/null")?;
        let mut kept = Vec::new();
        for number in numbers {
            let own = match number {
                0 => mount::duplicate(rustix::stdio::stdin()),
                1 => mount::duplicate(rustix::stdio::stdout()),
                _ => mount::duplicate(rustix::stdio::stderr()),
            };
            match own {
                Ok(own) => kept.push((number, own)),
                // It was closed: then it stays an empty one.
                Err(error) if error.errno() == moat_linux::Errno::BADF => {}
                Err(error) => return Err(error.into()),
            }
            sys::duplicate_to(null.as_fd(), number)?;
        }
        Ok(Self(kept))
    }

    fn restore(self) -> Result<()> {
        for (number, own) in self.0 {
            sys::duplicate_to(own.as_fd(), number)?;
        }
        Ok(())
    }
}
