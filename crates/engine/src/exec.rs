//! A further process in a workload that runs.
//!
//! It is built by the caller's own process, which is its parent and whose standard streams it gets: nothing stands
//! between the two. The caller must have a single thread, and its later children would be born in the workload's PID
//! namespace, so a program that goes on to do other things forks first.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::mount;
use moat_linux::process::{self as sys, Clone3, Forked};
use moat_model::agent::Request;
use moat_sandbox::container::{self, ExecOptions, Running};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;

use crate::events::Action;
use crate::guest::{Agent, Relay};
use crate::isolation::classified;
use crate::launch::sandbox_id;
use crate::oci::{self, ExecWish, HostFacts};
use crate::prepare::identity_in;
use crate::view::View;
use crate::{Context, Error, Result, Workload};

/// The code where nobody saw how it ended.
const UNSEEN: i32 = 255;

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
    of: Of,
    workload: Workload,
    name: String,
}

/// Where it runs.
#[derive(Debug)]
enum Of {
    Container(Box<Running>),
    /// A child of this process copies its streams, and ends as it does.
    Guest {
        agent: Agent,
        process: u32,
        child: i32,
        pidfd: OwnedFd,
        terminal: Option<OwnedFd>,
    },
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
        if self.is_microvm() {
            let started = self.exec_in_guest(process, spec);
            streams.restore()?;
            let of = started.context(|| format!("exec in workload {}", self.name()))?;
            self.tell(Action::ExecStart, &[("execCommand", name.clone())])?;
            return Ok(ExecProcess { of, workload: self.clone(), name });
        }
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
        Ok(ExecProcess { of: Of::Container(Box::new(running)), workload: self.clone(), name })
    }

    fn exec_in_guest(&self, process: moat_model::oci::Process, spec: &ExecSpec) -> Result<Of> {
        let (agent, _) = self.guest()?;
        let (relay, terminal) = Relay::start(&agent, process, spec.stdin && !spec.detach)?;
        let process = relay.process();
        match sys::fork(Clone3::default()).context(|| "start what copies its streams")? {
            Forked::Parent(child, pidfd) => Ok(Of::Guest { agent, process, child, pidfd, terminal }),
            Forked::Child => {
                // The terminal is the parent's.
                drop(terminal);
                let copied = sys::block_signals().map_err(Error::from).and_then(|()| {
                    if spec.detach {
                        sys::new_session()?;
                    }
                    relay.run()
                });
                std::process::exit(copied.unwrap_or(UNSEEN))
            }
        }
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
        let first = if self.is_microvm() {
            self.guest()?.1.config
        } else {
            let (folder, _) = container::load(&self.engine().sandbox(), &sandbox_id(self)?)?;
            folder.config()?.process.ok_or_else(|| Error::new("the configuration has no process"))?
        };
        let identity = match &spec.user {
            // The host does not look into the guest: names are those of the image.
            Some(user) if self.is_microvm() => {
                let image = View::of_image(self.engine(), self.image()?)?;
                Some(crate::user::look_up(image.root(), user, &self.spec().group_add)?)
            }
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
    /// As the host sees it; of one in a guest, the process that copies its streams.
    pub fn pid(&self) -> i32 {
        match &self.of {
            Of::Container(running) => running.pid,
            Of::Guest { child, .. } => *child,
        }
    }

    /// Becomes readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        match &self.of {
            Of::Container(running) => running.pidfd.as_fd(),
            Of::Guest { pidfd, .. } => pidfd.as_fd(),
        }
    }

    /// What its terminal writes and reads, which is the caller's from then on.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        match &mut self.of {
            Of::Container(running) => running.terminal.take(),
            Of::Guest { terminal, .. } => terminal.take(),
        }
    }

    /// Whether the terminal's bytes come to an end when all were read. Those of a terminal on this host do not, as
    /// long as a background process has it open.
    pub fn terminal_ends(&self) -> bool {
        matches!(self.of, Of::Guest { .. })
    }

    /// Gives its terminal, which was taken, a size.
    pub fn resize(&self, terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
        match &self.of {
            Of::Container(_) => Ok(moat_linux::tty::set_size(terminal, rows, columns)?),
            Of::Guest { agent, process, .. } => {
                agent.ask(&Request::Resize { process: *process, rows, columns }).map(drop)
            }
        }
    }

    /// What stopped nothing but should be told.
    pub fn warnings(&self) -> &[String] {
        match &self.of {
            Of::Container(running) => &running.warnings,
            Of::Guest { .. } => &[],
        }
    }

    /// Sends it a signal; one that has ended is fine.
    pub fn signal(&self, number: i32) -> Result<()> {
        let running = match &self.of {
            Of::Container(running) => running,
            Of::Guest { agent, process, .. } => {
                return agent
                    .ask(&Request::Signal { process: *process, signal: number, all: false })
                    .map(drop);
            }
        };
        match sys::signal(running.pidfd.as_fd(), number) {
            Err(error) if error.errno() != moat_linux::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended: its exit code, 128 plus the signal for one that was killed.
    pub fn wait(self) -> Result<i32> {
        let code = match &self.of {
            Of::Container(running) => container::wait(running)?,
            Of::Guest { child, .. } => sys::wait(*child, true)?.map_or(UNSEEN, sys::exit_code),
        };
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
