//! The runtime's side of building: it performs its own steps and answers init until all is built.

mod ids;
mod sharing;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use moat_linux::process::{self as sys, Clone3, Forked, namespace};
use moat_linux::{Errno, credentials, net};
use moat_model::oci;

pub use ids::map_ids;
use ids::map_mount;

use crate::apply::{self, Init};
use crate::cgroup::CgroupState;
use crate::record::{Recorder, StepTimes, Stop, stop_here};
use crate::step::{Action, Join, Place, Step};
use crate::sync::{FromInit, FromRuntime, hear_init, last_words, tell_init};
use crate::{Context, Error, Result, cgroup, hook, net_device, seccomp};

/// What the process is built from.
pub(crate) struct Order<'a> {
    pub steps: &'a [Step],
    pub cgroup: &'a CgroupState,
    pub env: &'a [String],
    pub preserve_fds: u32,
    /// What hooks and seccomp agents are told; the pid is filled in.
    pub state: oci::State,
    /// The FIFOs of a container that waits for `start`; without them the program runs as soon as it can.
    pub fifos: Option<(OwnedFd, OwnedFd)>,
    /// A pidfd of the container to join, the namespaces in which it differs.
    pub container: Option<(OwnedFd, u64)>,
    /// Whether init stays dumpable until its user namespace is set up.
    pub dumpable: bool,
    /// The socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Where the seccomp listener goes.
    pub seccomp_agent: Option<(String, String)>,
}

/// A process that is built: its program runs, or waits for `start`.
#[derive(Debug)]
pub(crate) struct Built {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's master, where no socket takes it.
    pub terminal: Option<OwnedFd>,
    pub times: StepTimes,
}

/// What whoever has a process built may want to do meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// In the runtime, which has made a part of the cgroup.
    Grouped(&'a cgroup::Operation),
    /// In the child of a fork, before anything else: it must let go of what only the runtime may hold.
    InChild,
    /// The runtime has done its part while the process is still at work; told in the runtime, or in a child that
    /// shares its memory.
    Building(i32),
    /// The process is complete; its program may already run.
    Ready(i32),
}

/// A process that is being built; killed when it is dropped before it is done.
struct Building {
    pid: i32,
    pidfd: OwnedFd,
    done: bool,
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.done {
            let _ = sys::signal(self.pidfd.as_fd(), rustix::process::Signal::KILL.as_raw());
            let _ = sys::wait(self.pid, true);
        }
    }
}

struct Builder<'a, 'r> {
    order: Order<'a>,
    recorder: &'r mut Recorder,
    /// The runtime's end, once the pair exists.
    socket: Option<OwnedFd>,
    sources: Vec<Option<OwnedFd>>,
    process: Option<Building>,
    terminal: Option<OwnedFd>,
    times: StepTimes,
    notify: &'r mut dyn FnMut(Event<'_>) -> Result<()>,
    hooks_left: usize,
    hooks_begun: bool,
    waits_for_start: bool,
}

/// Builds a process.
///
/// `notify` is told of each [`Event`].
pub(crate) fn build(
    order: Order<'_>,
    recorder: &mut Recorder,
    notify: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Built> {
    let steps = order.steps;
    let hooks = |step: &&Step| step.place == Place::Runtime && matches!(step.action, Action::Hooks { .. });
    let times = StepTimes::new(steps.len(), recorder)?;
    let mut builder = Builder {
        hooks_left: steps.iter().filter(hooks).count(),
        hooks_begun: false,
        waits_for_start: order.fifos.is_some(),
        order,
        recorder,
        socket: None,
        sources: Vec::new(),
        process: None,
        terminal: None,
        times,
        notify,
    };
    if sharing::possible(&builder.order) {
        return builder.build_sharing();
    }
    for step in steps.iter().filter(|step| step.place == Place::Runtime) {
        builder.step(&step.action)?;
    }
    builder.finish()
}

impl Builder<'_, '_> {
    fn step(&mut self, action: &Action) -> Result<()> {
        let start = Instant::now();
        self.perform(action)?;
        let spent = start.elapsed();
        self.recorder.performed(start, spent, || (action.to_string(), action.by_hand()));
        Ok(())
    }

    fn perform(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Cgroup(operation) => {
                operation.apply()?;
                (self.notify)(Event::Grouped(operation))
            }
            Action::OpenSource { path, recursive, id_mapping } => {
                let tree = apply::open_source(path, *recursive)?;
                if let Some(mapping) = id_mapping {
                    map_mount(&tree, mapping).context(|| format!("idmapped mount of {}", path.display()))?;
                }
                self.sources.push(Some(tree));
                Ok(())
            }
            Action::Clone { namespaces, joins } => self.clone_init(*namespaces, joins),
            Action::MapIds { uids, gids, helpers, deny_setgroups } => {
                map_ids(self.pid()?, uids, gids, *helpers, *deny_setgroups)?;
                tell_init(self.socket()?, FromRuntime::Mapped, &[])
            }
            Action::OpenCgroup => {
                let tasks = self.order.cgroup.open_legacy()?;
                let fds: Vec<BorrowedFd<'_>> = tasks.0.iter().map(AsFd::as_fd).collect();
                tell_init(self.socket()?, FromRuntime::Grouped, &fds)
            }
            Action::Limit { resource, name, soft, hard } => {
                credentials::set_limit(self.pid()?, *resource, *soft, *hard)
                    .context(|| format!("process.rlimits {name}"))
            }
            Action::OomScoreAdjust { value, best_effort } => {
                adjust_oom_score(self.pid()?, *value, *best_effort)
            }
            Action::MoveNetDevice { name, inside, namespace } => {
                let own = || Ok(format!("/proc/{}/ns/net", self.pid()?).into());
                let namespace = namespace.clone().map_or_else(own, Ok::<PathBuf, Error>)?;
                net_device::move_in(&namespace, name, inside)
            }
            Action::Hooks { kind, hooks } => self.run_hooks(kind, hooks),
            other => Err(Error::new(format!("{other}: not a step of the runtime's"))),
        }
    }

    fn pid(&self) -> Result<i32> {
        self.process.as_ref().map(|process| process.pid).ok_or_else(|| Error::new("there is no process yet"))
    }

    fn socket(&self) -> Result<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd).ok_or_else(|| Error::new("there is no process yet"))
    }

    fn run_hooks(&mut self, kind: &str, hooks: &[oci::Hook]) -> Result<()> {
        if !self.hooks_begun {
            // They run when the namespaces are there.
            while !matches!(self.hear()?, FromInit::AwaitHooks) {}
            self.hooks_begun = true;
        }
        let mut state = self.order.state.clone();
        state.pid = self.pid()?;
        hook::run(kind, hooks, &state)?;
        self.hooks_left -= 1;
        if self.hooks_left == 0 {
            tell_init(self.socket()?, FromRuntime::HooksDone, &[])?;
        }
        Ok(())
    }

    /// Handles what can come at any time, and gives what the caller waits for.
    fn hear(&mut self) -> Result<FromInit> {
        loop {
            match hear_init(self.socket()?)? {
                FromInit::Failed(error) => return Err(error),
                FromInit::Closed => return Err(self.death()),
                FromInit::Stop => stop_here(),
                FromInit::Terminal(master) => match &self.order.console_socket {
                    Some(path) => send_terminal(path, &master)?,
                    None => self.terminal = Some(master),
                },
                FromInit::Listener(number) => self.take_listener(number)?,
                other => return Ok(other),
            }
        }
    }

    /// Init ended without a word.
    fn death(&mut self) -> Error {
        let Some(process) = &mut self.process else { return Error::new("container init ended") };
        process.done = true;
        let ended = match sys::wait(process.pid, true) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("with exit code {code}"),
                (None, signal) => format!("by signal {}", signal.unwrap_or(0)),
            },
            _ => "unexpectedly".to_owned(),
        };
        let killed = Error::new(format!("container init ended {ended} before the program could run"));
        match self.order.cgroup.oom_kills() {
            Ok(1..) => killed.hint("its cgroup ran out of memory: raise the memory limit"),
            _ => killed,
        }
    }

    /// The filter's listener appears in init under a number that init has told; nothing more can be asked
    /// of init, since any of its system calls may already wait for the agent.
    fn take_listener(&mut self, number: i32) -> Result<()> {
        let process = self.process.as_ref().ok_or_else(|| Error::new("there is no process yet"))?;
        let listener = loop {
            match sys::take_descriptor(process.pidfd.as_fd(), number) {
                Err(error) if error.errno() == Errno::BADF => std::thread::sleep(Duration::from_micros(100)),
                // Init has ended: why, it has said.
                Err(error) if error.errno() == Errno::SRCH => {
                    return Err(last_words(self.socket()?).unwrap_or_else(|| error.into()));
                }
                other => break other.context(|| "seccomp: take the listener")?,
            }
        };
        let (path, metadata) = self.order.seccomp_agent.clone().unwrap_or_default();
        let mut state = self.order.state.clone();
        state.pid = process.pid;
        let told = oci::ContainerProcessState {
            oci_version: oci::VERSION.to_owned(),
            fds: vec!["seccompFd".to_owned()],
            pid: process.pid,
            metadata,
            state,
        };
        let told = serde_json::to_vec(&told).map_err(|error| Error::new(error.to_string()))?;
        seccomp::hand_over(std::path::Path::new(&path), &told, listener.as_fd())
    }

    fn clone_init(&mut self, namespaces: u64, joins: &[Join]) -> Result<()> {
        let group = self.order.cgroup.open_unified()?;
        let (ours, theirs) = net::packet_pair()?;
        if !self.order.dumpable {
            sys::set_dumpable(false)?;
        }
        let staged = match &self.order.container {
            Some((container, namespaces)) => join_pid_namespace(container, *namespaces)?,
            None => !joins.is_empty(),
        };
        let direct = if staged { 0 } else { namespaces };
        let options = Clone3 { namespaces: direct, sibling: false, cgroup: group.as_ref().map(AsFd::as_fd) };
        match sys::fork(options).context(|| "start the container's first process")? {
            Forked::Parent(pid, pidfd) => {
                drop(theirs);
                self.socket = Some(ours);
                self.sources.clear();
                self.order.fifos = None;
                self.process = Some(Building { pid, pidfd, done: false });
            }
            Forked::Child => {
                drop(ours);
                let ready = (self.notify)(Event::InChild)
                    .and_then(|()| if staged { self.between(namespaces, joins, &theirs) } else { Ok(()) });
                if let Err(error) = ready {
                    let _ = crate::sync::tell_runtime(theirs.as_fd(), &FromInit::Failed(error));
                    sys::exit_now(1);
                }
                drop(group);
                self.become_init(theirs);
            }
        }
        if staged { self.meet_init() } else { Ok(()) }
    }

    /// The process in between: it joins what has to be joined before init is cloned, and ends. Returns only
    /// in init.
    fn between(&mut self, namespaces: u64, joins: &[Join], socket: &OwnedFd) -> Result<()> {
        sys::set_parent_death_signal(rustix::process::Signal::KILL.as_raw())?;
        match &self.order.container {
            Some((container, differing)) => {
                sys::join(container.as_fd(), differing & (namespace::USER | namespace::PID))?;
            }
            None => join_all(joins)?,
        }
        match sys::fork(Clone3 { namespaces, sibling: true, cgroup: None })
            .context(|| "start the container's first process")?
        {
            Forked::Child => Ok(()),
            Forked::Parent(pid, pidfd) => {
                crate::sync::tell_runtime(socket.as_fd(), &FromInit::Cloned(pid, pidfd))?;
                sys::exit_now(0)
            }
        }
    }

    /// The runtime learns who init is, and lets the process in between go.
    fn meet_init(&mut self) -> Result<()> {
        let heard = self.hear()?;
        let between = self.process.take();
        if let Some(mut between) = between {
            between.done = true;
            sys::wait(between.pid, true)?;
        }
        match heard {
            FromInit::Cloned(pid, pidfd) => {
                self.process = Some(Building { pid, pidfd, done: false });
                Ok(())
            }
            other => Err(Error::new(format!("the process in between said {other:?}"))),
        }
    }

    fn become_init(&mut self, socket: OwnedFd) -> ! {
        let container = self.order.container.take().map(|(container, _)| container);
        let (sources, fifos) = (std::mem::take(&mut self.sources), self.order.fifos.take());
        let init = Init { socket: Some(socket), container, sources, fifos, ..self.bare_init() };
        init.run(self.order.steps)
    }

    /// Init with nothing in its hands yet.
    fn bare_init(&self) -> Init<'_> {
        Init {
            socket: None,
            sharing: None,
            container: None,
            sources: Vec::new(),
            fifos: None,
            env: self.order.env,
            preserve_fds: self.order.preserve_fds,
            state: self.order.state.clone(),
            times: &self.times,
            stop_after: match self.recorder.stop {
                Some(Stop::Init(index)) => Some(index),
                _ => None,
            },
            root: None,
            kernel_mounts: Vec::new(),
            null: None,
            empty: None,
            parent: None,
            program: None,
        }
    }

    /// Where nobody says `start`, the word to go on is there before init comes to wait for it. It is said once
    /// everything of the runtime's is done, so the container is complete if the runtime dies now.
    fn finish(mut self) -> Result<Built> {
        let start = Instant::now();
        let pid = self.pid()?;
        (self.notify)(Event::Building(pid))?;
        let early = !self.waits_for_start && !self.hands_over();
        if early {
            tell_init(self.socket()?, FromRuntime::Go, &[])?;
        }
        while !matches!(self.hear()?, FromInit::Ready) {}
        (self.notify)(Event::Ready(pid))?;
        if !early {
            tell_init(self.socket()?, FromRuntime::Go, &[])?;
        }
        if !self.waits_for_start {
            self.await_execution()?;
        }
        self.built(start)
    }

    /// The process is complete; what went on since `start` was the wait for it.
    fn built(mut self, start: Instant) -> Result<Built> {
        let missing = || Error::new("the plan starts no process");
        let mut process = self.process.take().ok_or_else(missing)?;
        process.done = true;
        let pidfd = process.pidfd.try_clone()?;
        let terminal = self.terminal.take();
        let what =
            if self.waits_for_start { "wait until it is built" } else { "wait until the program runs" };
        self.recorder.performed(start, start.elapsed(), || (what.to_owned(), String::new()));
        Ok(Built { pid: process.pid, pidfd, terminal, times: self.times })
    }

    /// Whether init gives something that others wait for: the program may not run, and end, before they have it.
    fn hands_over(&self) -> bool {
        self.order.steps.iter().any(|step| match &step.action {
            Action::Terminal(_) => true,
            Action::Seccomp(filter) => filter.notifies,
            _ => false,
        })
    }

    /// The socket is closed by execve(2).
    fn await_execution(&mut self) -> Result<()> {
        match hear_init(self.socket()?)? {
            FromInit::Failed(error) => Err(error),
            FromInit::Closed => Ok(()),
            FromInit::Stop => {
                stop_here();
                self.await_execution()
            }
            other => Err(Error::new(format!("container init said {other:?} after it was ready"))),
        }
    }
}

/// Lowering the score needs CAP_SYS_RESOURCE, which a rootless runtime lacks; runc goes on, too.
fn adjust_oom_score(pid: i32, value: i32, best_effort: bool) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| write!(file, "{value}"));
    match written {
        Err(error) if best_effort && error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other.context(|| format!("process.oomScoreAdj: write {value} to {path}")),
    }
}

/// A PID namespace applies to children only, so the runtime can join it and clone init into it. Joining it
/// by way of a user namespace needs a process in between.
fn join_pid_namespace(container: &OwnedFd, namespaces: u64) -> Result<bool> {
    if credentials::effective_user() != 0 && namespaces & namespace::USER != 0 {
        return Ok(true);
    }
    if namespaces & namespace::PID != 0 {
        sys::join(container.as_fd(), namespace::PID)?;
    }
    Ok(false)
}

/// Joins namespaces in the order in which it is possible: those of the host's first, because entering a
/// user namespace gives up the right to join them; those that belong to the user namespace after it.
fn join_all(joins: &[Join]) -> Result<()> {
    let mut open = Vec::new();
    for join in joins {
        open.push((apply::open_namespace(&join.path)?, join));
    }
    let user = open.iter().any(|(_, join)| join.namespace == namespace::USER);
    let mut later = Vec::new();
    for (file, join) in open.iter().filter(|(_, join)| join.namespace != namespace::USER) {
        match apply::join_open(file.as_fd(), join) {
            Err(_) if user => later.push((file, *join)),
            other => other?,
        }
    }
    for (file, join) in open.iter().filter(|(_, join)| join.namespace == namespace::USER) {
        apply::join_open(file.as_fd(), join)?;
    }
    later.into_iter().try_for_each(|(file, join)| apply::join_open(file.as_fd(), join))
}

/// Sends a terminal's master to the socket that a console(7) reader listens on, with the name as the
/// message, as runc does.
fn send_terminal(path: &std::path::Path, master: &OwnedFd) -> Result<()> {
    let what = || format!("console socket {}", path.display());
    let socket = net::connect(path).context(what)?;
    net::send(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()]).context(what)
}
