//! The monitor: one small process for each workload that runs.
//!
//! It is a fork of whoever started the workload, with a session of its own, nothing inherited, and a mount
//! namespace in which it mounts the root file system. It builds the wall, is the parent of the workload's first
//! process, keeps its output, serves the attach socket, makes health checks, starts it again as its restart policy
//! says, and writes down how it ended. Its life:
//!
//! ```text
//!            run                    exit, policy says again
//!  Building -----> Running ------------------------------> Waiting (100 ms, doubled up to a minute)
//!     |               | exit        <-----------------------'
//!     | failed        v
//!     `----------> Over: state saved, everybody told, process ends
//! ```
//!
//! It has one thread and one loop, and never waits but in poll(2). A SIGTERM to it stops the workload as `stop` does,
//! so that a machine that shuts down ends its workloads in order. When it is killed, the workload goes on without its
//! output being kept; whoever looks at the workload next is told.

mod backoff;
mod end;
mod serve;
mod server;
mod stdio;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use moat_linux::mount::{self, Attributes};
use moat_linux::process::{self as sys, Clone3, Forked, namespace};
use moat_linux::{fs, net};
use moat_model::oci;
use moat_model::workload::Status;
use moat_sandbox::record::Recorder;
use rustix::fs::OFlags;

use crate::events::Action;
use crate::frame::{Packet, StartedPacket};
use crate::isolation::{Bundle, Isolation, Process, Streams};
use crate::launch::Launch;
use crate::log::LogWriter;
use crate::network::{self, HostMounts, Network};
use crate::overlay::Overlay;
use crate::prepare::configure;
use crate::workload::{Folder, ProcessState, WorkloadState};
use crate::{Context, Error, ErrorKind, ExitStatus, Result, Timestamp};

use backoff::Backoff;
use server::Server;
use stdio::Stdio;

pub(crate) use stdio::silence;

/// The descriptor on which the monitor finds its way back to who started it.
const STARTER: i32 = 3;

/// The name of the socket in the workload's folder.
pub(crate) const SOCKET: &str = "attach.sock";

/// What whoever starts a workload wants to have of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct First {
    pub(crate) stdin: bool,
    pub(crate) outputs: [bool; 2],
    pub(crate) explain: bool,
}

/// Where the monitor is.
#[derive(Debug)]
enum Phase {
    Running(Process),
    /// Until it is started again.
    Waiting(Instant),
    Over,
}

/// Somebody wants it to end.
#[derive(Debug, Default)]
struct Stopping {
    /// When it is killed.
    deadline: Option<Instant>,
    /// Whether who asked is going to start it again.
    restarting: bool,
}

pub(crate) struct Monitor<'a> {
    launch: &'a Launch,
    folder: &'a Folder,
    first: First,
    state: WorkloadState,
    isolation: Box<dyn Isolation + 'a>,
    /// What the wall was built from the last time: the end needs its hooks.
    config: Option<oci::Spec>,
    network: Network,
    host: HostMounts,
    mounted: bool,
    server: Server,
    signals: OwnedFd,
    stdio: Stdio,
    log: Option<LogWriter>,
    phase: Phase,
    /// How the program ended, as long as its streams behind the wall have not.
    code: Option<i32>,
    /// When such streams are let go, if they say nothing more.
    silent_until: Option<Instant>,
    stopping: Option<Stopping>,
    backoff: Backoff,
    health: Option<crate::health::Checker>,
    began: Instant,
    /// How it ended, as long as what it wrote before is not delivered.
    last_words: Option<ExitStatus>,
    /// Its folder is gone.
    removed: bool,
}

/// Forks the monitor of a workload whose lock the caller holds. Gives the socket on which it tells that the program
/// runs, or why not, and then the streams that were asked for.
///
/// The caller must have a single thread.
pub(crate) fn fork(launch: &Launch, first: First) -> Result<OwnedFd> {
    let (ours, theirs) = net::packet_pair()?;
    match sys::fork(Clone3::default()).context(|| "start the monitor")? {
        Forked::Parent(..) => Ok(ours),
        Forked::Child => {
            drop(ours);
            std::process::exit(i32::from(live(launch, first, &theirs).is_err()))
        }
    }
}

/// The life of the monitor. Its errors were told to whoever was there to hear them, or stand in the state.
fn live(launch: &Launch, first: First, starter: &OwnedFd) -> Result<()> {
    let starter = detach(starter)?;
    let failed = |error: &Error| {
        // Whoever started it may be gone.
        let _ = net::send_now(starter.as_fd(), &Packet::Failed(error.clone()).encode(), &[]);
    };
    let (host, signals, listener) = match prepare(launch) {
        Ok(prepared) => prepared,
        Err(error) => {
            failed(&error);
            return Err(error);
        }
    };
    let starter_of_server = mount::duplicate(starter.as_fd())?;
    drop(starter);
    let mut monitor = Monitor::new(launch, first, host, (signals, listener))?;
    monitor.server.admit_first(starter_of_server, first.stdin, first.outputs);
    monitor.run()
}

/// Lets go of everything of the process that it was forked from.
fn detach(starter: &OwnedFd) -> Result<OwnedFd> {
    sys::block_signals()?;
    if starter.as_raw_fd() != STARTER {
        sys::duplicate_to(starter.as_fd(), STARTER)?;
    }
    // What owned the other descriptors is never touched again: this function's caller does not return.
    sys::close_from(STARTER as u32 + 1)?;
    let starter = sys::inherited(STARTER)?;
    sys::set_close_on_exec(starter.as_fd(), true)?;
    silence()?;
    sys::new_session()?;
    sys::change_directory(std::path::Path::new("/"))?;
    sys::set_dumpable(false)?;
    sys::set_name(c"moat-monitor")?;
    Ok(starter)
}

/// A mount namespace of its own, signals as a descriptor, and the socket.
fn prepare(launch: &Launch) -> Result<(HostMounts, OwnedFd, OwnedFd)> {
    let folder = &launch.folder;
    let host = HostMounts::own()?;
    sys::unshare(namespace::MOUNT).context(|| "a mount namespace for the monitor")?;
    folder.make_run()?;
    if launch.facts.sandbox.in_user_namespace {
        crate::rootless::note(launch.engine.roots(), ProcessState::of(std::process::id().cast_signed()))?;
    }
    crate::roots::make_folder(&launch.mount_point).context(|| launch.mount_point.display().to_string())?;
    make_private(&launch.mount_point)?;
    network::let_go_of_others(&launch.engine)?;
    let run = fs::open(&folder.run, OFlags::PATH | OFlags::DIRECTORY)?;
    // Left by a monitor that was killed.
    crate::file::remove_if_there(&folder.run.join(SOCKET))?;
    let listener = net::listen_in(run.as_fd(), SOCKET).context(|| "the attach socket")?;
    Ok((host, sys::signal_descriptor()?, listener))
}

/// The mount that holds the mount point is made private here, so that what is mounted below it shows nowhere else. The
/// other mounts go on sharing with the host, as volumes that ask for it must.
pub(crate) fn make_private(merged: &std::path::Path) -> Result<()> {
    let private = Attributes { propagation: mount::propagation::PRIVATE, ..Attributes::default() };
    for folder in merged.ancestors() {
        let fd = fs::open(folder, OFlags::PATH | OFlags::DIRECTORY)?;
        match mount::set_attributes(fd.as_fd(), private, false) {
            // Not a mount point.
            Err(error) if error.errno() == moat_linux::Errno::INVAL => {}
            other => return other.context(|| format!("make the mount around {} private", merged.display())),
        }
    }
    Ok(())
}

impl<'a> Monitor<'a> {
    fn new(
        launch: &'a Launch,
        first: First,
        host: HostMounts,
        (signals, listener): (OwnedFd, OwnedFd),
    ) -> Result<Self> {
        let folder = &launch.folder;
        let mut state = folder.state()?;
        state.monitor = ProcessState::of(std::process::id().cast_signed());
        Ok(Self {
            isolation: launch.isolation(),
            launch,
            folder,
            first,
            state,
            config: None,
            network: Network::default(),
            host,
            mounted: false,
            server: Server::new(listener),
            signals,
            stdio: Stdio::default(),
            log: None,
            phase: Phase::Over,
            code: None,
            silent_until: None,
            stopping: None,
            backoff: Backoff::default(),
            health: None,
            began: Instant::now(),
            last_words: None,
            removed: false,
        })
    }

    fn run(&mut self) -> Result<()> {
        self.state.restart_count = 0;
        self.state.stopped_by_user = false;
        self.state.trouble = None;
        let mut recorder = Recorder::new(self.first.explain, None);
        match self.start(&mut recorder) {
            Ok(warnings) => {
                let pid = self.state.process.pid;
                let waterfall = self.first.explain.then(|| recorder.waterfall());
                let started = StartedPacket { pid, warnings, waterfall };
                let last = !self.first.stdin && !self.first.outputs.contains(&true);
                self.server.answer_first(&Packet::Started(started), last);
            }
            Err(error) => {
                self.failed(&error);
                self.server.answer_first(&Packet::Failed(error), true);
                self.server.tell_all(&Packet::Exit(self.state.exit.clone().unwrap_or_default()));
            }
        }
        drop(recorder);
        sys::trim_memory();
        self.serve()
    }

    /// Builds the wall and lets the program run.
    fn start(&mut self, recorder: &mut Recorder) -> Result<Vec<String>> {
        self.mount_root()?;
        self.network = self.launch.prepare_network(&self.host)?;
        let first_start = self.state.started.is_none();
        let config = configure(self.launch, &self.launch.mount_point, &self.network, first_start)?;
        let terminal = config.process.as_ref().is_some_and(|process| process.terminal);
        let theirs = if terminal || self.isolation.brings_streams() {
            None
        } else {
            let (stdio, theirs) = stdio::make(self.launch.record.spec.open_stdin, owner(&config))?;
            self.stdio = stdio;
            Some(theirs)
        };
        if let Some(theirs) = &theirs {
            theirs.install()?;
        }
        let id = &self.launch.sandbox_id;
        let bundle = Bundle {
            id,
            folder: &self.folder.run,
            spec: &config,
            init: self.launch.record.spec.init,
            taps: &self.network.taps,
        };
        let ran = self.isolation.run(&bundle, recorder);
        drop(theirs);
        silence()?;
        let mut process = ran?;
        match std::mem::replace(&mut process.streams, Streams::Inherited) {
            Streams::Inherited => {}
            Streams::Terminal(master) => {
                self.stdio = Stdio::of_terminal(master, self.launch.record.spec.open_stdin)?;
            }
            Streams::Connected { input, outputs } => self.stdio = Stdio::connected(input, outputs),
        }
        let warnings = std::mem::take(&mut process.warnings);
        self.config = Some(config);
        self.began = Instant::now();
        self.state.status = Status::Running;
        self.state.process = ProcessState::of(process.pid);
        if self.launch.facts.sandbox.in_user_namespace && self.launch.id_maps()?.is_none() {
            crate::rootless::note(self.launch.engine.roots(), self.state.process)?;
        }
        self.state.started = Some(Timestamp::now());
        self.state.exit = None;
        self.state.oom_victims.clear();
        self.health = self.launch.health_checker();
        self.state.health = self.health.as_ref().map(|_| crate::HealthState::default());
        self.phase = Phase::Running(process);
        self.save()?;
        self.event(Action::Start, &[]);
        Ok(warnings)
    }

    fn mount_root(&mut self) -> Result<()> {
        if self.mounted {
            return Ok(());
        }
        if self.isolation.brings_root() {
            return self.mount_image();
        }
        let (upper, work): (PathBuf, PathBuf) = (self.folder.upper(), self.folder.work());
        if self.launch.record.spec.auto_remove {
            // overlayfs refuses what a crash of the machine may have damaged. It knows no better after a restart; and
            // what is removed at its end anyway is not worth more.
            crate::file::remove_tree(&work.join("work/incompat"))?;
        }
        let overlay = Overlay {
            layers: &self.launch.layers,
            upper: Some((&upper, &work)),
            volatile: self.launch.record.spec.auto_remove,
            user_xattr: self.launch.user_xattr,
        };
        overlay.mount_at(&self.launch.mount_point)?;
        self.mounted = true;
        Ok(())
    }

    /// Mounts the image alone, to look up what it says of users. What is written goes behind the wall.
    fn mount_image(&mut self) -> Result<()> {
        let (layers, point) = (&self.launch.layers, &self.launch.mount_point);
        match layers.as_slice() {
            // The overlay of one layer is that layer.
            [only] => {
                let tree = mount::clone_tree(rustix::fs::CWD, only, false)?;
                let target = fs::open(point, OFlags::PATH | OFlags::DIRECTORY)?;
                mount::attach(tree.as_fd(), target.as_fd())?;
            }
            _ => {
                let user_xattr = self.launch.user_xattr;
                Overlay { layers, upper: None, volatile: false, user_xattr }.mount_at(point)?;
            }
        }
        self.mounted = true;
        Ok(())
    }

    /// The program could not be started: what is to be remembered of it.
    fn failed(&mut self, error: &Error) {
        let code = match error.kind() {
            ErrorKind::ProgramNotFound => 127,
            ErrorKind::NotExecutable => 126,
            _ => 125,
        };
        self.state.process = ProcessState::default();
        self.state.status = if self.state.started.is_some() { Status::Exited } else { Status::Created };
        let exit = ExitStatus { code, oom_killed: false, error: Some(error.to_string()) };
        self.state.exit = Some(exit);
        self.over();
    }

    fn save(&self) -> Result<()> {
        self.folder.save_state(&self.state)
    }

    /// What can not be told to anybody now is kept for whoever looks.
    fn trouble(&mut self, error: &Error) {
        if self.state.trouble.is_none() {
            self.state.trouble = Some(error.to_string());
        }
    }

    fn event(&mut self, action: Action, more: &[(&str, String)]) {
        let told = self.launch.event(action, more);
        if let Err(error) = told {
            self.trouble(&error);
        }
    }
}

/// Who the first process runs as, as the host numbers it.
fn owner(config: &oci::Spec) -> (u32, u32) {
    let Some(process) = &config.process else { return (0, 0) };
    let linux = config.linux.clone().unwrap_or_default();
    let on_host = |id: u32, maps: &[oci::IdMapping]| {
        let found = maps.iter().find(|map| id >= map.container_id && id - map.container_id < map.size);
        found.map_or(id, |map| map.host_id + (id - map.container_id))
    };
    (on_host(process.user.uid, &linux.uid_mappings), on_host(process.user.gid, &linux.gid_mappings))
}
