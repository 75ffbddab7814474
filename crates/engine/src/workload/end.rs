//! Ending a workload: asking, killing, freezing; and what is left of one whose monitor was killed.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use moat_linux::process as sys;
use moat_model::agent::Request as Ask;
use moat_sandbox::{change, container};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use moat_model::workload::Status;

use super::{ProcessState, Workload, WorkloadState};
use crate::attach::Attached;
use crate::events::Action;
use crate::frame::Request;
use crate::launch::{sandbox_id, stop_timeout_ms};
use crate::{Context, Error, ExitStatus, Result, Timestamp};

/// How a workload is asked to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOptions {
    /// In place of its own stop signal.
    pub signal: Option<i32>,
    /// In place of its own timeout; the inner `None` waits for ever.
    pub timeout_ms: Option<Option<u64>>,
}

impl Workload {
    /// Asks it to end, and kills it when it has not after the timeout. One that does not run is fine.
    pub fn stop(&self, options: &StopOptions) -> Result<()> {
        self.stop_for(options, false)
    }

    pub(super) fn stop_for(&self, options: &StopOptions, restarting: bool) -> Result<()> {
        let state = self.state()?;
        if !state.monitor_expected() {
            return Ok(());
        }
        let signal = match options.signal {
            Some(signal) => signal,
            None => self.stop_signal()?,
        };
        let timeout_ms = match options.timeout_ms {
            Some(timeout) => timeout,
            None => stop_timeout_ms(self)?,
        };
        match Attached::ask(self.folder(), Request::Stop { signal, timeout_ms, restarting })? {
            Some(_) => {}
            None if self.is_gone() => return Ok(()),
            None => {
                let _lock = self.folder().lock()?;
                let state = self.folder().state()?;
                if state.lost_monitor() {
                    self.ask_abandoned(&state, signal, timeout_ms)?;
                    self.end_abandoned(&state)?;
                }
            }
        }
        if self.is_gone() { Ok(()) } else { self.tell(Action::Stop, &[]) }
    }

    /// The signal that asks it to end.
    pub fn stop_signal(&self) -> Result<i32> {
        let name = crate::oci::stop_signal(self.spec(), &self.image()?.config.config).to_owned();
        sys::signal_number(&name).ok_or_else(|| Error::invalid(format!("stop signal {name:?} is not known")))
    }

    /// Sends its first process a signal.
    ///
    /// Errors: it does not run.
    pub fn kill(&self, number: i32) -> Result<()> {
        if !(1..=64).contains(&number) {
            return Err(Error::invalid(format!("{number} is no signal")));
        }
        let ends = number == Signal::KILL.as_raw() || number == self.stop_signal()?;
        if Attached::ask(self.folder(), Request::Signal { number, ends })?.is_some() {
            return Ok(());
        }
        let state = self.state()?;
        if !state.is_running() {
            return Err(self.no_monitor("kill"));
        }
        if self.is_microvm() && number != Signal::KILL.as_raw() {
            let (agent, guest) = self.guest()?;
            agent.tell(&Ask::Signal { process: guest.process, signal: number, all: false })?;
        } else {
            container::kill(&self.engine().sandbox(), &sandbox_id(self)?, number, false)?;
        }
        self.tell(Action::Kill, &[("signal", number.to_string())])
    }

    /// Stops it if it runs, and starts it.
    pub fn restart(&self, options: &StopOptions) -> Result<()> {
        self.stop_for(options, true)?;
        self.wait_for_monitor()?;
        self.start(&super::StartOptions::default())?;
        self.tell(Action::Restart, &[])
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        self.expect(Status::Running, "pause")?;
        if self.is_microvm() {
            crate::guest::freeze(&self.folder().run, true)?;
        } else {
            change::pause(&self.engine().sandbox(), &sandbox_id(self)?)?;
        }
        self.tell(Action::Pause, &[])
    }

    /// Lets it go on.
    pub fn unpause(&self) -> Result<()> {
        self.expect(Status::Paused, "unpause")?;
        if self.is_microvm() {
            crate::guest::freeze(&self.folder().run, false)?;
        } else {
            change::resume(&self.engine().sandbox(), &sandbox_id(self)?)?;
        }
        self.tell(Action::Unpause, &[])
    }

    fn expect(&self, status: Status, what: &str) -> Result<()> {
        let state = self.state()?;
        if state.status == status {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "can not {what} workload {}: it is {}",
            self.name(),
            state.status.name()
        )))
    }

    /// A monitor that has told of the end may take a moment to end itself.
    pub(super) fn wait_for_monitor(&self) -> Result<()> {
        let monitor = self.folder().state()?.monitor;
        match sys::pidfd(monitor.pid) {
            Ok(pidfd) if monitor.is_alive() => wait_for(&pidfd, None).map(drop),
            _ => Ok(()),
        }
    }

    /// Sends the program of a workload without a monitor its signal, and waits.
    fn ask_abandoned(&self, state: &WorkloadState, signal: i32, timeout_ms: Option<u64>) -> Result<()> {
        let Ok(pidfd) = sys::pidfd(state.process.pid) else { return Ok(()) };
        if !state.process.is_alive() {
            return Ok(());
        }
        if self.is_microvm() {
            // A guest that does not hear it loses its machine without a wait.
            return self.ask_abandoned_guest(signal, timeout_ms).or(Ok(()));
        }
        let _ = change::resume(&self.engine().sandbox(), &sandbox_id(self)?);
        sys::signal(pidfd.as_fd(), signal)?;
        wait_for(&pidfd, timeout_ms.map(Duration::from_millis)).map(drop)
    }

    fn ask_abandoned_guest(&self, signal: i32, timeout_ms: Option<u64>) -> Result<()> {
        let (agent, guest) = self.guest()?;
        let ending = agent.ending(guest.process)?;
        agent.tell(&Ask::Signal { process: guest.process, signal, all: false })?;
        if crate::guest::is_frozen(&self.folder().run) {
            crate::guest::freeze(&self.folder().run, false)?;
        }
        wait_for(&ending, timeout_ms.map(Duration::from_millis)).map(drop)
    }

    /// As [`Workload::end_abandoned`], for one that may have ended in order.
    pub(crate) fn end_if_abandoned(&self, state: &WorkloadState) -> Result<()> {
        if state.monitor.pid == 0 { Ok(()) } else { self.end_abandoned(state) }
    }

    /// Ends what is left of a workload whose monitor was killed, and writes it down. The caller holds the lock.
    pub(super) fn end_abandoned(&self, state: &WorkloadState) -> Result<()> {
        container::delete(
            &self.engine().sandbox(),
            &sandbox_id(self)?,
            true,
            &mut moat_sandbox::record::Recorder::new(false, None),
        )?;
        self.release_network()?;
        self.folder().remove_run()?;
        let mut ended = state.clone();
        ended.monitor = ProcessState::default();
        ended.process = ProcessState::default();
        if ended.status != Status::Created {
            ended.status = Status::Exited;
        }
        if state.is_running() {
            ended.finished = Some(Timestamp::now());
            ended.exit =
                Some(ExitStatus { code: UNSEEN, oom_killed: false, error: Some(UNSEEN_WHY.to_owned()) });
        }
        self.folder().save_state(&ended)?;
        if state.is_running() { self.tell(Action::Die, &[("exitCode", UNSEEN.to_string())]) } else { Ok(()) }
    }
}

/// The exit code of a program whose end nobody saw.
pub(super) const UNSEEN: i32 = 255;

/// What is told about it.
pub(super) const UNSEEN_WHY: &str = "its monitor was killed, so nobody saw how it ended";

/// Waits until a process has ended, of which `pidfd` tells; false when the time is over before.
fn wait_for(pidfd: &impl AsFd, limit: Option<Duration>) -> Result<bool> {
    let until = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|ready| ready > 0).context(|| "wait for a process"),
        }
    }
}
