//! Init: the container's first process, which builds the container around itself and then becomes the
//! user's program.
//!
//! It is a fork of the runtime or shares its memory, so it has the plan. It performs its steps in order, tells each
//! duration through a shared page, and any failure over the socket or in the shared memory. The last step is
//! execve(2).

mod devices;
mod init;
mod mounts;
mod process;
mod root;

pub(crate) use mounts::open_source;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use moat_linux::{Errno, fs, process as sys};
use moat_model::oci;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::cgroup::{CgroupState, Tasks};
use crate::hook;
use crate::record::StepTimes;
use crate::state::Status;
use crate::step::{Action, Place, StartSignal, Step};
use crate::sync::{FromInit, FromRuntime, hear_runtime, tell_runtime};
use crate::{Context, Error, Result};

/// How an init that shares the runtime's memory has fared.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What went wrong.
    pub failure: Option<Error>,
    /// Whether it came to its last step: without a failure after that its program runs, or has run.
    pub executes: bool,
}

/// What init has beside its plan when it shares the runtime's memory.
pub(crate) struct Sharing<'a> {
    /// A pidfd of the runtime, which has no other way to tell that it has ended.
    pub runtime: BorrowedFd<'a>,
    /// The groups to join.
    pub cgroup: &'a CgroupState,
    /// Where the runtime looks when it is awake again.
    pub outcome: &'a mut Outcome,
}

/// What init was given by the runtime, and what it has opened so far.
pub(crate) struct Init<'a> {
    /// The runtime's ear; gone once a container waits for `start`, and not there where memory is shared.
    pub socket: Option<OwnedFd>,
    /// Where memory is shared.
    pub sharing: Option<Sharing<'a>>,
    /// A pidfd of the container that a further process joins.
    pub container: Option<OwnedFd>,
    /// Copies of mount sources that the runtime has made.
    pub sources: Vec<Option<OwnedFd>>,
    /// The exec FIFO and the FIFO on which `start` hears of a failure.
    pub fifos: Option<(OwnedFd, OwnedFd)>,
    /// The program's environment.
    pub env: &'a [String],
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// What hooks are told.
    pub state: oci::State,
    /// When each step began and how long it took.
    pub times: &'a StepTimes,
    /// After which step to stop, for the tests that kill the runtime there.
    pub stop_after: Option<usize>,
    /// The container's root, once it is there.
    pub root: Option<OwnedFd>,
    /// Where /proc and /sys were mounted, and the mounts: masks are looked up below these, whatever the
    /// names lead to by then.
    pub kernel_mounts: Vec<(PathBuf, OwnedFd)>,
    /// The host's /dev/null.
    pub null: Option<OwnedFd>,
    /// An empty read-only directory, for masks.
    pub empty: Option<OwnedFd>,
    /// The folder of the last device node or link.
    pub parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// The program, once it was found.
    pub program: Option<std::ffi::CString>,
}

impl Init<'_> {
    /// Performs init's steps. Returns only when one has failed.
    pub(crate) fn run(mut self, steps: &[Step]) -> ! {
        let error = self.build(steps);
        self.report(error);
        sys::exit_now(1)
    }

    /// As [`Self::run`], giving what has failed.
    pub(crate) fn build(&mut self, steps: &[Step]) -> Error {
        match self.perform(steps) {
            Ok(()) => Error::new("the plan has no program to execute"),
            Err(error) => error,
        }
    }

    fn perform(&mut self, steps: &[Step]) -> Result<()> {
        // The runtime's death ends a half-built container.
        sys::set_parent_death_signal(rustix::process::Signal::KILL.as_raw())?;
        self.check_runtime()?;
        moat_linux::credentials::set_umask(0);
        sys::new_session()?;
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.place == Place::Init) {
            // Nobody is left to take the time after execve(2): what is told of it is when it began.
            let start = self.times.begin(index);
            self.apply(&step.action)?;
            self.times.ended(index, start);
            if self.stop_after == Some(index) {
                self.stop();
            }
        }
        Ok(())
    }

    /// What tells of the runtime's end.
    fn runtime_end(&self) -> Option<PollFd<'_>> {
        match (&self.socket, &self.sharing) {
            (Some(socket), _) => Some(PollFd::new(socket, PollFlags::empty())),
            (None, Some(sharing)) => Some(PollFd::from_borrowed_fd(sharing.runtime, PollFlags::IN)),
            (None, None) => None,
        }
    }

    /// A death before the line above sent no signal, but it has closed the other end.
    fn check_runtime(&self) -> Result<()> {
        let Some(end) = self.runtime_end() else { return Ok(()) };
        let mut ends = [end];
        poll(&mut ends, Some(&Timespec::default())).map_err(std::io::Error::from)?;
        if ends.iter().any(|end| end.revents().intersects(PollFlags::HUP | PollFlags::IN)) {
            return Err(Error::new("the runtime ended while the container was being built"));
        }
        Ok(())
    }

    /// Has the runtime stop, and waits for its end. A runtime that sleeps until the program runs can not stop:
    /// whoever would see that looks for this process's name.
    fn stop(&self) {
        match &self.sharing {
            Some(_) => drop(sys::set_name(c"stopped")),
            None => drop(self.tell(&FromInit::Stop)),
        }
        if let Some(end) = self.runtime_end() {
            let _ = poll(&mut [end], None);
        }
    }

    fn report(&self, error: Error) {
        // Whoever would listen may be dead, which is why init ends; there is nobody else to tell.
        if let Some(socket) = &self.socket {
            let _ = tell_runtime(socket.as_fd(), &FromInit::Failed(error));
        } else if let Some((_, status)) = &self.fifos
            && let Ok(copy) = status.try_clone()
        {
            let _ = File::from(copy).write_all(&serde_json::to_vec(&error).unwrap_or_default());
        }
    }

    /// The container's root.
    fn root(&self) -> Result<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd).ok_or_else(|| Error::new("the root is not open yet"))
    }

    fn tell(&self, message: &FromInit) -> Result<()> {
        self.socket.as_ref().map_or(Ok(()), |socket| tell_runtime(socket.as_fd(), message))
    }

    fn hear(&self, expected: FromRuntime) -> Result<Vec<OwnedFd>> {
        self.socket.as_ref().map_or(Ok(Vec::new()), |socket| hear_runtime(socket.as_fd(), expected))
    }

    /// The runtime has opened the v1 groups, since init may lack the right to; the v2 group is the one that
    /// init was cloned into.
    fn join_cgroup(&self) -> Result<()> {
        match &self.sharing {
            Some(sharing) => sharing.cgroup.open_legacy()?.join(),
            None => Tasks(self.hear(FromRuntime::Grouped)?).join(),
        }
    }

    fn apply(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::JoinCgroup => self.join_cgroup().context(|| "join the cgroup"),
            Action::Unshare { namespaces } => Ok(sys::unshare(*namespaces)?),
            Action::JoinNamespace(join) => join_namespace(join),
            Action::JoinContainer { namespaces } => match &self.container {
                Some(container) => Ok(sys::join(container.as_fd(), *namespaces)?),
                None => Err(Error::new("there is no container to join")),
            },
            Action::Hooks { kind, hooks } => {
                // As the hook itself sees it, which runs beside init.
                self.state.pid = rustix::process::getpid().as_raw_nonzero().get();
                if *kind == "startContainer" {
                    // All is built by then, and `start` was called.
                    Status::Created.name().clone_into(&mut self.state.status);
                }
                hook::run(kind, hooks, &self.state)
            }
            Action::AwaitHooks => {
                self.tell(&FromInit::AwaitHooks)?;
                self.hear(FromRuntime::HooksDone).map(drop)
            }
            Action::AwaitStart(signal) => self.await_start(*signal),
            Action::BecomeRoot { drop_groups, wait_for_map } => self.become_root(*drop_groups, *wait_for_map),
            Action::TimeOffsets(_)
            | Action::Harden
            | Action::LoopbackUp
            | Action::HostName(_)
            | Action::DomainName(_)
            | Action::Sysctl { .. }
            | Action::Keyring(_)
            | Action::Label { .. }
            | Action::Scheduler(_)
            | Action::IoPriority { .. }
            | Action::MemoryPolicy { .. }
            | Action::Affinity(_)
            | Action::Personality(_) => process::environment(action),
            Action::RootPropagation(_)
            | Action::BindRoot { .. }
            | Action::OpenRoot { .. }
            | Action::PivotRoot
            | Action::MoveRoot
            | Action::ChangeRoot
            | Action::FinalPropagation(_)
            | Action::RootReadOnly => self.change_root(action),
            Action::Mount(mount) => {
                self.mount(mount).context(|| format!("mount {}", mount.destination.display()))
            }
            Action::Freeze(path) => {
                self.freeze(path).context(|| format!("make {} read-only", path.display()))
            }
            Action::Mask(path) => self.mask(path).context(|| format!("mask {}", path.display())),
            Action::ReadOnly(path) => {
                self.read_only(path).context(|| format!("make {} read-only", path.display()))
            }
            Action::Node(node) => self.node(node).context(|| format!("device {}", node.path.display())),
            Action::Link { target, path } => {
                self.link(target, path).context(|| format!("link {}", path.display()))
            }
            Action::Terminal(terminal) => self.open_terminal(*terminal).context(|| "terminal"),
            Action::NoNewPrivileges
            | Action::Bounding { .. }
            | Action::User { .. }
            | Action::Capabilities(_)
            | Action::WorkingDirectory(_) => process::credentials(action),
            Action::FindProgram(name) => self.find_program(name),
            Action::Seccomp(filter) => self.install_filter(filter),
            Action::StayAsInit => self.stay_as_init(),
            Action::Execute(args) => self.execute(args),
            Action::Cgroup(_)
            | Action::OpenCgroup
            | Action::OpenSource { .. }
            | Action::Clone { .. }
            | Action::MapIds { .. }
            | Action::Limit { .. }
            | Action::OomScoreAdjust { .. }
            | Action::MoveNetDevice { .. } => Err(Error::new(format!("{action}: not a step of init's"))),
        }
    }

    fn become_root(&self, drop_groups: bool, wait_for_map: bool) -> Result<()> {
        use moat_linux::credentials;
        if wait_for_map {
            self.hear(FromRuntime::Mapped)?;
        }
        // Group 0 and user 0 of the container: what is made from here on belongs to it. An id that is not
        // mapped stays as it is, and so do the rights that the namespace gives.
        let mapped = |result: moat_linux::Result<()>| match result {
            Err(error) if error.errno() == Errno::INVAL => Ok(()),
            other => other,
        };
        if drop_groups {
            credentials::set_groups(&[])?;
        }
        mapped(credentials::set_group(0))?;
        mapped(credentials::set_user(0))?;
        // The change of user cleared it.
        sys::set_parent_death_signal(rustix::process::Signal::KILL.as_raw())?;
        Ok(())
    }

    /// All is built. From here on the runtime's death is seen as an end of file instead of a signal: the
    /// word to go on and that death may come together, and the container outlives the runtime then.
    fn await_start(&mut self, signal: StartSignal) -> Result<()> {
        sys::set_parent_death_signal(0)?;
        self.tell(&FromInit::Ready)?;
        self.hear(FromRuntime::Go)?;
        if signal == StartSignal::Fifo {
            self.socket = None;
            let Some((go, _)) = &self.fifos else { return Err(Error::new("there is no exec FIFO")) };
            let mut byte = [0_u8];
            while rustix::io::read(go, &mut byte) == Err(Errno::INTR) {}
        }
        Ok(())
    }
}

fn join_namespace(join: &crate::step::Join) -> Result<()> {
    join_open(open_namespace(&join.path)?.as_fd(), join)
}

/// Opens the file of a namespace that is to be joined.
pub(crate) fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let what = || format!("linux.namespaces: {}", path.display());
    match fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(error) if error.errno() == Errno::NOENT => Err(Error::new(format!("{} does not exist", what()))),
        other => other.context(what),
    }
}

/// Joins the namespace behind a descriptor, and says so where it is none.
pub(crate) fn join_open(file: BorrowedFd<'_>, join: &crate::step::Join) -> Result<()> {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let path = join.path.display();
    let kind = sys::namespace::names(join.namespace).replace("NEW", "").to_lowercase();
    if fs::filesystem_magic(file)? != NSFS_MAGIC {
        return Err(Error::new(format!("linux.namespaces: {path} is not a namespace")));
    }
    sys::join(file, join.namespace).map_err(|error| {
        if error.errno() == Errno::INVAL && join.namespace == sys::namespace::USER {
            let text =
                format!("linux.namespaces: {path} is not another user namespace than the runtime's own");
            Error::new(text)
        } else if error.errno() == Errno::INVAL {
            Error::new(format!("linux.namespaces: {path} is not a namespace of kind {kind}"))
        } else {
            Error::new(format!("linux.namespaces: join {path}: {error}"))
        }
    })
}
