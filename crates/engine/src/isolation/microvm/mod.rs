//! A machine of its own: `moat-vmm` in its jail, a guest kernel, and the agent that builds the same sandbox within.
//!
//! ```text
//!  files ---> jail with moat-vmm ---> guest kernel ---> agent says that it is ready
//!                                                         | Configure: root of the layers' disks, names, clock
//!                                                         | Create: the sandbox in the guest, its program runs
//!  monitor <------ a connection for each stream, and one that tells of the end ------'
//! ```
//!
//! What ends the machine ends the connections, so nothing is waited for that can not come. The jail is a container of
//! the sandbox under the workload's own id: it is frozen, counted, and removed as one.

mod check;
mod config;
mod console;
mod jail;
mod jail_state;
mod machine;

use std::fs::Permissions;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use moat_linux::process as sys;
use moat_model::agent::{Answer, CreateSpec, Exit, GuestSpec, InterfaceSpec, READY_PORT, Request, Stream};
use moat_model::network::EndpointState;
use moat_model::oci;
use moat_sandbox::cgroup::{Oom, Victim};
use moat_sandbox::container::{self, CreateOptions, Running};
use moat_sandbox::record::Recorder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::Signal;

use self::console::Console;
use self::jail::{Jail, Stage};
use self::machine::{Files, MachinePlan};
use super::{Bundle, Isolation, Process, Streams};
use crate::guest::{Agent, Ending, GuestState, MACHINE, SOCKET, freeze, is_frozen, unexpected, words};
use crate::launch::Launch;
use crate::network::Tap;
use crate::{Context, Error, Result};

pub(crate) use check::check;
pub use jail_state::JailState;

/// How long a guest may take to boot. An emulated host needs tens of seconds.
const BOOT: Duration = Duration::from_secs(180);
/// How long a guest may take to hear of a SIGKILL, before its machine is killed.
const KILL: Duration = Duration::from_secs(2);
/// How long a guest may take to hear that it is to stop, before its machine is killed.
const STOP: Duration = Duration::from_secs(10);
/// How long a machine whose guest has said something wrong may take to end by itself, which tells more.
const DEATH: Duration = Duration::from_millis(300);
/// How long a guest may take to write its disk back.
const POWER_OFF: Duration = Duration::from_secs(20);
/// The code of a program whose end nobody saw, since its machine had ended before.
const LOST: i32 = 255;

/// A microVM.
pub(crate) struct MicroVm<'a> {
    launch: &'a Launch,
    agent: Agent,
    running: Option<Running>,
    /// The monitor's end was collected.
    ended: Option<i32>,
    console: Option<Console>,
    ending: Option<Ending>,
    process: u32,
    exit: Option<Exit>,
    killed: bool,
    reason: Option<String>,
}

/// A step that is told with its duration.
fn step<T>(
    recorder: &mut Recorder,
    what: &str,
    by_hand: &str,
    perform: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut done = None;
    recorder.step(what, by_hand, || {
        done = Some(perform());
        Ok(())
    })?;
    done.unwrap_or_else(|| Err(Error::new(format!("{what}: it was not tried"))))
}

impl<'a> MicroVm<'a> {
    pub(crate) fn new(launch: &'a Launch) -> Self {
        Self {
            launch,
            agent: Agent::of(&launch.folder.run),
            running: None,
            ended: None,
            console: None,
            ending: None,
            process: 0,
            exit: None,
            killed: false,
            reason: None,
        }
    }

    fn sockets(&self) -> PathBuf {
        self.launch.folder.run.join(MACHINE)
    }

    fn build(&mut self, bundle: &Bundle<'_>, recorder: &mut Recorder) -> Result<Process> {
        let launch = self.launch;
        let (config, sent) = config::for_guest(bundle.spec)?;
        let limits = &launch.record.spec.limits;
        let plan = MachinePlan::new(limits.memory_bytes, limits.nano_cpus);
        let by_hand = "mkfs.erofs LAYER.erofs LAYER; mke2fs -t ext4 DISK";
        let files =
            step(recorder, "open kernel, initramfs and disks", by_hand, || Files::open(launch, bundle.taps))?;
        let ready = step(recorder, "make the machine's folder", "mkdir RUN/vm", || self.folders())?;
        self.start_monitor(bundle, &plan, &files, recorder)?;
        step(recorder, "boot the guest's kernel, until its agent is ready", "moat-vmm run ...", || {
            self.wait_ready(&ready)
        })?;
        drop(ready);
        let _ = std::fs::remove_file(self.sockets().join(ready_name()));
        let guest = GuestSpec { files: sent, ..guest_spec(bundle, &files)? };
        step(
            recorder,
            "give the guest its names, clock and root file system",
            "mount -t overlay ... in the guest",
            || self.agent.tell(&Request::Configure(Box::new(guest))),
        )?;
        drop(files);
        let terminal = config.process.as_ref().is_some_and(|process| process.terminal);
        let stdin = launch.record.spec.open_stdin;
        let process = config.process.clone().unwrap_or_default();
        let create =
            CreateSpec { id: bundle.id.to_string(), config, stdin: stdin && !terminal, init: bundle.init };
        let created = step(
            recorder,
            "build the container in the guest, and run its program",
            "moat-runtime run in the guest",
            || self.agent.ask(&Request::Create(Box::new(create))),
        )?;
        let Answer::Created { process: number, .. } = created else { return Err(unexpected(&created)) };
        self.process = number;
        GuestState { process: number, config: process }.save(&launch.folder.run)?;
        let ending = self.agent.ending(number)?;
        let streams = self.streams(terminal, stdin)?;
        let pidfd = moat_linux::mount::duplicate(ending.as_fd())?;
        self.ending = Some(ending);
        let running = self.running.as_mut().ok_or_else(|| Error::new("the machine has no monitor"))?;
        let warnings = std::mem::take(&mut running.warnings);
        Ok(Process { pid: running.pid, pidfd, streams, warnings })
    }

    /// The folder of the sockets, which is the monitor's, with the socket on which the agent says that it is there.
    fn folders(&self) -> Result<UnixListener> {
        let sockets = self.sockets();
        crate::file::remove_tree(&sockets)?;
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, Permissions::from_mode(mode))
                .context(|| path.display().to_string())
        };
        crate::roots::make_folder(&sockets).context(|| sockets.display().to_string())?;
        let folder = moat_linux::fs::open(&sockets, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let name = ready_name();
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
            .context(|| "the socket that the agent calls")?;
        listener.set_nonblocking(true).context(|| "the socket that the agent calls")?;
        mode(&sockets.join(name), 0o666)?;
        let user = jail::user(&self.launch.record.id);
        moat_linux::fs::chown(folder.as_fd(), user, user)?;
        Ok(listener)
    }

    fn start_monitor(
        &mut self,
        bundle: &Bundle<'_>,
        plan: &MachinePlan,
        files: &Files,
        recorder: &mut Recorder,
    ) -> Result<()> {
        let stage = Stage::build(&crate::program::find("moat-vmm")?, &self.sockets())?;
        let jail = Jail { id: &self.launch.record.id, stage: &stage, workload: bundle.spec };
        let config = jail.config(plan, files.arguments(plan));
        let text = serde_json::to_vec(&config).map_err(|error| Error::new(error.to_string()))?;
        let (pipe, write) = std::io::pipe().context(|| "a pipe for the console")?;
        rustix::io::ioctl_fionbio(&pipe, true).context(|| "a pipe for the console")?;
        for number in 1..3 {
            sys::duplicate_to(write.as_fd(), number)?;
        }
        drop(write);
        let options = CreateOptions {
            bundle: bundle.folder.to_owned(),
            preserve_fds: files.preserved(),
            ..CreateOptions::default()
        };
        let host = &self.launch.facts.sandbox;
        let running =
            container::create(&self.launch.store(), bundle.id, &config, &text, &options, host, recorder);
        crate::monitor::silence()?;
        stage.clear()?;
        self.running = Some(running.map_err(Error::from).context(|| "the jail of the machine")?);
        self.console = Some(Console::new(pipe));
        Ok(())
    }

    /// Waits until the agent calls.
    fn wait_ready(&mut self, listener: &UnixListener) -> Result<()> {
        let until = Instant::now() + BOOT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(format!(
                    "the guest did not come up within {} s{}",
                    BOOT.as_secs(),
                    self.last_words()
                )));
            }
            let (Some(running), Some(console)) = (&self.running, &self.console) else {
                return Err(Error::new("the machine has no monitor"));
            };
            let mut fds =
                vec![PollFd::new(listener, PollFlags::IN), PollFd::new(&running.pidfd, PollFlags::IN)];
            fds.push(PollFd::new(&console.pipe, PollFlags::IN));
            wait_for(&mut fds, left)?;
            let is = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (called, over) = (is(0), is(1));
            drop(fds);
            if let Some(console) = &mut self.console {
                console.take();
            }
            if called && listener.accept().is_ok() {
                return Ok(());
            }
            if over {
                return Err(Error::new(format!(
                    "the machine has ended before its agent was there{}",
                    self.last_words()
                )));
            }
        }
    }

    fn last_words(&self) -> String {
        self.console.as_ref().and_then(Console::verdict).map_or_else(String::new, |line| format!(": {line}"))
    }

    fn streams(&self, terminal: bool, stdin: bool) -> Result<Streams> {
        let attach = |stream| self.agent.attach(self.process, stream);
        if terminal {
            let both = attach(Stream::Terminal)?;
            let input = if stdin { Some(moat_linux::mount::duplicate(both.as_fd())?) } else { None };
            return Ok(Streams::Connected { input, outputs: [Some(both), None] });
        }
        let input = if stdin { Some(attach(Stream::Stdin)?) } else { None };
        Ok(Streams::Connected {
            input,
            outputs: [Some(attach(Stream::Stdout)?), Some(attach(Stream::Stderr)?)],
        })
    }

    /// Collects the monitor's end, if it comes.
    fn wait_end(&mut self, patience: Duration) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        let until = Instant::now() + patience;
        while self.ended.is_none() {
            if let Some(status) = sys::wait(running.pid, false)? {
                self.ended = Some(sys::exit_code(status));
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            wait_for(&mut [PollFd::new(&running.pidfd, PollFlags::IN)], left)?;
        }
        Ok(())
    }

    /// Collects the monitor's end; kills it when it does not come.
    fn end_monitor(&mut self, patience: Duration) -> Result<()> {
        self.wait_end(patience)?;
        let Some(running) = self.running.as_ref().filter(|_| self.ended.is_none()) else { return Ok(()) };
        sys::signal(running.pidfd.as_fd(), Signal::KILL.as_raw())?;
        sys::wait(running.pid, true)?;
        // That it had to be killed says nothing of why.
        self.ended = Some(0);
        Ok(())
    }

    /// The guest does not listen: its machine ends.
    fn kill_machine(&mut self, error: &Error) -> Result<()> {
        if let Some(running) = &self.running {
            sys::signal(running.pidfd.as_fd(), Signal::KILL.as_raw())?;
            self.killed = true;
            self.reason = Some(format!("its machine was killed: {error}"));
        }
        Ok(())
    }

    /// Why the machine has ended, if it has, after something went wrong.
    fn own_end(&mut self) -> Option<String> {
        // As for the first error.
        let _ = self.wait_end(DEATH);
        if let Some(console) = &mut self.console {
            console.take();
        }
        self.ended.map(|_| format!("its machine has ended{}", self.last_words()))
    }

    /// The connection ended before the program did.
    fn lost(&mut self, error: &Error) -> Result<i32> {
        self.end_monitor(Duration::from_secs(1))?;
        if let Some(console) = &mut self.console {
            console.take();
        }
        if self.killed {
            return Ok(128 + Signal::KILL.as_raw());
        }
        let killed = self.ended.and_then(|code| code.checked_sub(128)).filter(|signal| *signal > 0);
        self.reason = Some(match killed {
            Some(signal) => format!("the monitor of its machine was killed by signal {signal}"),
            None => format!("its machine has ended before it did: {error}{}", self.last_words()),
        });
        Ok(LOST)
    }
}

/// What the agent connects to.
fn ready_name() -> String {
    format!("{SOCKET}_{READY_PORT}")
}

fn wait_for(fds: &mut [PollFd<'_>], left: Duration) -> Result<()> {
    let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    match poll(fds, Some(&timeout)) {
        Err(rustix::io::Errno::INTR) => Ok(()),
        other => other.map(drop).context(|| "wait for the machine"),
    }
}

/// What makes the machine that of this workload. Nothing of it is another's.
fn guest_spec(bundle: &Bundle<'_>, files: &Files) -> Result<GuestSpec> {
    let mut entropy = vec![0; 64];
    rustix::rand::getrandom(entropy.as_mut_slice(), rustix::rand::GetRandomFlags::empty())
        .context(|| "random bytes for the guest")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(GuestSpec {
        hostname: bundle.spec.hostname.clone(),
        machine_id: bundle.id.as_str().chars().take(32).collect(),
        clock_ns: u64::try_from(now.as_nanos()).unwrap_or(0),
        entropy,
        interfaces: interfaces(bundle.taps),
        root: files.root(),
        ..GuestSpec::default()
    })
}

/// The network cards as the agent is told of them. The way out is through the first one that has one.
fn interfaces(taps: &[Tap]) -> Vec<InterfaceSpec> {
    let (mut way4, mut way6) = (None, None);
    let interface = |tap: &Tap| {
        let EndpointState { mac, interface, ip, ip6, gateway, gateway6, mtu_bytes, .. } = &tap.endpoint;
        let addresses = [
            ip.map(|net| (net.addr().into(), net.prefix_len())),
            ip6.map(|net| (net.addr().into(), net.prefix_len())),
        ];
        let first = |way: &mut Option<IpAddr>, gateway: Option<IpAddr>| match way {
            None => std::mem::replace(way, gateway).or(gateway),
            Some(_) => None,
        };
        let ways = [first(&mut way4, gateway.map(Into::into)), first(&mut way6, gateway6.map(Into::into))];
        InterfaceSpec {
            mac: mac.0,
            name: interface.clone(),
            mtu: *mtu_bytes,
            addresses: addresses.into_iter().flatten().collect(),
            gateways: ways.into_iter().flatten().collect(),
        }
    };
    taps.iter().map(interface).collect()
}

impl Isolation for MicroVm<'_> {
    fn brings_streams(&self) -> bool {
        true
    }

    fn brings_root(&self) -> bool {
        true
    }

    fn run(&mut self, bundle: &Bundle<'_>, recorder: &mut Recorder) -> Result<Process> {
        self.exit = None;
        self.reason = None;
        self.killed = false;
        match self.build(bundle, recorder) {
            Ok(process) => Ok(process),
            Err(error) => {
                let ended = self.own_end();
                self.killed = true;
                // The first error is what the caller has to know; `system check` mends what this leaves.
                let _ = self.remove(None);
                match ended {
                    Some(why) => Err(error).context(|| why),
                    None => Err(error),
                }
            }
        }
    }

    fn ended(&mut self, _process: &Process) -> Result<Option<i32>> {
        let Some(ending) = &mut self.ending else { return Ok(None) };
        match ending.take() {
            Ok(None) => Ok(None),
            Ok(Some(exit)) => {
                let code = exit.code;
                self.exit = Some(exit);
                Ok(Some(code))
            }
            Err(error) => self.lost(&error).map(Some),
        }
    }

    fn reason(&self) -> Option<String> {
        self.reason.clone()
    }

    fn signal(&mut self, _process: &Process, number: i32, ends: bool) -> Result<()> {
        let run = &self.launch.folder.run;
        let request = Request::Signal { process: self.process, signal: number, all: false };
        if number != Signal::KILL.as_raw() {
            if !ends {
                return self.agent.tell(&request);
            }
            let told = self.agent.tell_within(&request, STOP);
            // A frozen one keeps the signal until it is thawed.
            let told = told.and_then(|()| if is_frozen(run) { freeze(run, false) } else { Ok(()) });
            return told.or_else(|error| self.kill_machine(&error));
        }
        let killed = self.agent.tell_within(&request, KILL);
        let killed = killed.and_then(|()| if is_frozen(run) { freeze(run, false) } else { Ok(()) });
        killed.or_else(|error| self.kill_machine(&error))
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        if self.ending.is_none() {
            return Ok(());
        }
        self.agent.tell(&Request::Resize { process: self.process, rows, columns })
    }

    fn console(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.console.as_ref().filter(|console| !console.over).map(|console| console.pipe.as_fd())
    }

    fn hear_console(&mut self) {
        if let Some(console) = &mut self.console {
            console.over = !console.take();
        }
    }

    fn oom(&self) -> Result<Oom> {
        if let Some(exit) = &self.exit {
            let victim = |(pid, name): &(i32, String)| Victim {
                pid: *pid,
                name: words(name),
                limit_of: String::new(),
                group: String::new(),
            };
            let victims = exit.oom_victims.iter().map(victim).collect();
            return Ok(Oom { group: String::new(), kills: exit.oom_kills, victims });
        }
        match self.running.as_ref().and_then(Running::cgroup) {
            Some(group) => Ok(group.oom()?),
            None => Ok(Oom::default()),
        }
    }

    fn remove(&mut self, _hooks: Option<&oci::Hooks>) -> Result<Vec<String>> {
        self.ending = None;
        let lasting = !self.launch.record.spec.auto_remove && !self.killed && self.exit.is_some();
        let mut warnings = Vec::new();
        if lasting && self.ended.is_none() && self.running.is_some() {
            match self.agent.ask_within(&Request::PowerOff, POWER_OFF) {
                Ok(_) => self.end_monitor(POWER_OFF)?,
                Err(error) => warnings.push(format!("the guest did not write its disk back: {error}")),
            }
        }
        self.end_monitor(Duration::ZERO)?;
        self.console = None;
        self.ended = None;
        if let Some(running) = self.running.take() {
            warnings.extend(container::delete_ended(running, None, &mut Recorder::new(false, None))?);
        }
        crate::file::remove_tree(&self.sockets())?;
        GuestState::forget(&self.launch.folder.run)?;
        Ok(warnings)
    }
}
