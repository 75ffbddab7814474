//! The container in the guest and its processes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::{Errno, fs, process as sys, tty};
use moat_model::agent::{Answer, CreateSpec, ExecSpec, Exit, GuestMemory, ProcessRow, ROOT, Stream};
use moat_model::id::ContainerId;
use moat_model::oci;
use moat_sandbox::container::{self, CreateOptions, ExecOptions, Running};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;
use moat_sandbox::state::Store;
use moat_sandbox::{Context, Error, Result, change};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

const STATE: &str = "/run/moat/containers";
const BUNDLE: &str = "/run/moat";

/// The container, once it was created, and every process that was started for the host.
#[derive(Default)]
pub(crate) struct Workload {
    configured: bool,
    container: Option<ContainerId>,
    processes: BTreeMap<u32, Process>,
}

struct Process {
    pid: i32,
    pidfd: OwnedFd,
    exit: Option<Exit>,
    streams: BTreeMap<Stream, OwnedFd>,
    /// Kept beside the stream, to change its size.
    terminal: Option<OwnedFd>,
}

/// The ends of a process's standard streams: its own, and ours.
struct Pipes {
    own: [OwnedFd; 3],
    ours: BTreeMap<Stream, OwnedFd>,
}

impl Pipes {
    fn new(stdin: bool) -> Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from);
        let null = || fs::open(Path::new("/dev/null"), OFlags::RDWR);
        let mut ours = BTreeMap::new();
        let input = if stdin {
            let (read, write) = pipe()?;
            ours.insert(Stream::Stdin, write);
            read
        } else {
            null()?
        };
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        ours.insert(Stream::Stdout, out_read);
        ours.insert(Stream::Stderr, err_read);
        Ok(Self { own: [input, out_write, err_write], ours })
    }

    /// Of a process with a terminal, which gets its streams from the sandbox.
    fn none() -> Result<Self> {
        let null = || fs::open(Path::new("/dev/null"), OFlags::RDWR);
        Ok(Self { own: [null()?, null()?, null()?], ours: BTreeMap::new() })
    }
}

/// Runs `work` with other standard streams, which what it forks inherits.
fn with_streams<T>(streams: &[OwnedFd; 3], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let keep = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(std::io::Error::from);
    let kept = [keep(own[0])?, keep(own[1])?, keep(own[2])?];
    let put = |fds: &[OwnedFd; 3]| -> Result<()> {
        for (number, fd) in (0..).zip(fds) {
            sys::duplicate_to(fd.as_fd(), number)?;
        }
        Ok(())
    };
    put(streams)?;
    let done = work();
    put(&kept)?;
    done
}

impl Workload {
    /// A machine becomes one workload's, once.
    pub(crate) fn configure_once(&mut self, configure: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.configured {
            return Err(Error::new("this machine is a workload's already"));
        }
        // Also where it fails: a machine that was half configured is nobody's.
        self.configured = true;
        configure()
    }

    fn store() -> Store {
        Store::new(STATE)
    }

    fn id(&self) -> Result<&ContainerId> {
        self.container.as_ref().ok_or_else(|| Error::new("there is no container yet"))
    }

    pub(crate) fn create(&mut self, spec: CreateSpec) -> Result<Answer> {
        if !self.configured || self.container.is_some() {
            return Err(Error::new("a container is created once, after the machine was configured"));
        }
        let id = ContainerId::new(&spec.id).map_err(|error| Error::new(error.to_string()))?;
        let mut config = spec.config;
        let readonly = config.root.as_ref().is_some_and(|root| root.readonly);
        config.root = Some(oci::Root { path: PathBuf::from(ROOT), readonly });
        crate::workdir::make(&config)?;
        let text = serde_json::to_vec(&config).map_err(|error| Error::new(error.to_string()))?;
        let terminal = config.process.as_ref().is_some_and(|process| process.terminal);
        let options =
            CreateOptions { bundle: PathBuf::from(BUNDLE), init: spec.init, ..CreateOptions::default() };
        let pipes = if terminal { Pipes::none()? } else { Pipes::new(spec.stdin)? };
        let host = Host::detect()?;
        let running = with_streams(&pipes.own, || {
            let mut recorder = Recorder::new(false, None);
            container::create(&Self::store(), &id, &config, &text, &options, &host, &mut recorder)
        })?;
        self.container = Some(id);
        self.add(running, pipes.ours)
    }

    pub(crate) fn exec(&mut self, spec: &ExecSpec) -> Result<Answer> {
        let id = self.id()?.clone();
        let pipes = if spec.process.terminal { Pipes::none()? } else { Pipes::new(spec.stdin)? };
        let host = Host::detect()?;
        let running = with_streams(&pipes.own, || {
            let mut recorder = Recorder::new(false, None);
            let options = ExecOptions::default();
            container::exec(&Self::store(), &id, &spec.process, &options, &host, false, &mut recorder)
        })?;
        self.add(running, pipes.ours)
    }

    fn add(&mut self, mut running: Running, mut streams: BTreeMap<Stream, OwnedFd>) -> Result<Answer> {
        let terminal = running.terminal.take();
        if let Some(terminal) = &terminal {
            streams.insert(Stream::Terminal, terminal.try_clone()?);
        }
        for stream in streams.values() {
            let flags = rustix::fs::fcntl_getfl(stream).map_err(std::io::Error::from)?;
            rustix::fs::fcntl_setfl(stream, flags | OFlags::NONBLOCK).map_err(std::io::Error::from)?;
        }
        let process = self.processes.last_key_value().map_or(1, |(last, _)| last + 1);
        let pid = running.pid;
        self.processes.insert(process, Process { pid, pidfd: running.pidfd, exit: None, streams, terminal });
        Ok(Answer::Created { process, pid })
    }

    /// Takes what has ended. Orphans of the guest end here, too.
    pub(crate) fn reap(&mut self) -> Result<()> {
        loop {
            match sys::reap() {
                Ok(Some((pid, status))) => self.ended(pid, sys::exit_code(status)),
                Ok(None) => return Ok(()),
                Err(error) if error.errno() == Errno::CHILD => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        let oom = self.oom();
        let found = self.processes.values_mut().find(|process| process.pid == pid && process.exit.is_none());
        if let Some(process) = found {
            let (oom_kills, oom_victims) = oom;
            process.exit = Some(Exit { code, oom_kills, oom_victims });
        }
    }

    /// What was killed for lack of memory; nothing where the group can not be asked any more.
    fn oom(&self) -> (u64, Vec<(i32, String)>) {
        let state = self.id().and_then(|id| container::load(&Self::store(), id));
        let oom = state.and_then(|(_, state)| state.cgroup.oom()).unwrap_or_default();
        (oom.kills, oom.victims.into_iter().map(|victim| (victim.pid, victim.name)).collect())
    }

    pub(crate) fn knows(&self, process: u32) -> bool {
        self.processes.contains_key(&process)
    }

    pub(crate) fn has_ended(&self, process: u32) -> bool {
        self.processes.get(&process).is_none_or(|process| process.exit.is_some())
    }

    pub(crate) fn exit(&self, process: u32) -> Option<Exit> {
        self.processes.get(&process)?.exit.clone()
    }

    fn process(&mut self, process: u32) -> Result<&mut Process> {
        self.processes.get_mut(&process).ok_or_else(|| Error::new(format!("there is no process {process}")))
    }

    /// A stream belongs to who attaches to it first.
    pub(crate) fn take_stream(&mut self, process: u32, stream: Stream) -> Result<OwnedFd> {
        let taken = self.process(process)?.streams.remove(&stream);
        taken.ok_or_else(|| Error::new(format!("process {process} has no such stream, or it was taken")))
    }

    pub(crate) fn signal(&mut self, process: u32, signal: i32, all: bool) -> Result<Answer> {
        if all {
            container::kill(&Self::store(), self.id()?, signal, true)?;
            return Ok(Answer::Done);
        }
        let process = self.process(process)?;
        if process.exit.is_none() {
            sys::signal(process.pidfd.as_fd(), signal)?;
        }
        Ok(Answer::Done)
    }

    pub(crate) fn resize(&mut self, process: u32, rows: u16, columns: u16) -> Result<Answer> {
        let terminal = &self.process(process)?.terminal;
        let terminal =
            terminal.as_ref().ok_or_else(|| Error::new(format!("process {process} has no terminal")))?;
        tty::set_size(terminal.as_fd(), rows, columns)?;
        Ok(Answer::Done)
    }

    pub(crate) fn freeze(&self, on: bool) -> Result<Answer> {
        let (store, id) = (Self::store(), self.id()?);
        if on {
            change::pause(&store, id)?;
        } else {
            change::resume(&store, id)?;
        }
        Ok(Answer::Done)
    }

    pub(crate) fn update(&self, resources: &oci::Resources) -> Result<Answer> {
        change::update(&Self::store(), self.id()?, resources)?;
        Ok(Answer::Done)
    }

    pub(crate) fn stats(&self) -> Result<Answer> {
        let (_, state) = container::load(&Self::store(), self.id()?)?;
        let stats =
            serde_json::to_value(state.cgroup.stats()?).map_err(|error| Error::new(error.to_string()))?;
        Ok(Answer::Stats { container: stats, memory: memory()? })
    }

    pub(crate) fn processes(&self) -> Result<Answer> {
        let (_, state) = container::load(&Self::store(), self.id()?)?;
        // A process may end between the listing and the look at it.
        let mut list: Vec<ProcessRow> = state.cgroup.pids()?.into_iter().filter_map(row).collect();
        list.sort_by_key(|row| row.pid);
        Ok(Answer::Processes { list })
    }
}

fn memory() -> Result<GuestMemory> {
    const PATH: &str = "/proc/meminfo";
    let text = std::fs::read_to_string(PATH).context(|| PATH)?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(0, |kib| kib << 10)
    };
    Ok(GuestMemory { total_bytes: bytes("MemTotal"), available_bytes: bytes("MemAvailable") })
}

/// A process as /proc shows it, proc_pid_stat(5).
fn row(pid: i32) -> Option<ProcessRow> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    // The name may hold anything, also brackets.
    let (head, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let ticks = number(11)? + number(12)?;
    let uid = read("status")?
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok())?;
    let arguments = read("cmdline")?.trim_end_matches('\0').replace('\0', " ");
    let command = if arguments.is_empty() { format!("[{}]", head.split_once('(')?.1) } else { arguments };
    let parent = i32::try_from(number(1)?).ok()?;
    let cpu_ms = ticks * 1000 / rustix::param::clock_ticks_per_second().max(1);
    Some(ProcessRow { pid, parent, uid, cpu_ms, command })
}
