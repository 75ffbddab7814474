//! Health checks, made by the monitor.
//!
//! Each check is a child of the monitor's own, so that the monitor itself never enters a namespace and never waits.
//! The child runs the program in the workload, or makes the connection from inside the workload's network namespace,
//! and tells by its exit code and a pipe. What takes too long is killed, with all that it has started.

mod probe;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use moat_linux::process as sys;
use moat_model::workload::HealthProbe;
use rustix::process::Signal;

use crate::launch::Launch;
use crate::oci::HealthCheck;
use crate::workload::{Health, HealthResult, HealthState};
use crate::{Result, Timestamp};

/// What of a check's output is kept, as Docker does.
const MAX_OUTPUT: usize = 4096;

/// How many results are kept.
const KEPT: usize = 5;

/// A check that is being made.
#[derive(Debug)]
struct Probe {
    pid: i32,
    pidfd: OwnedFd,
    output: OwnedFd,
    start: Timestamp,
    /// When it has taken too long.
    deadline: Instant,
    late: bool,
    /// A program in the workload, which the child ends when it is asked to.
    program: bool,
}

impl Probe {
    /// Ends it. It may have ended in this moment, which is fine.
    fn end(&self) {
        let signal = if self.program { Signal::TERM } else { Signal::KILL };
        let _ = sys::signal(self.pidfd.as_fd(), signal.as_raw());
    }
}

/// Makes the checks of one run.
#[derive(Debug)]
pub(crate) struct Checker {
    check: HealthCheck,
    /// Until when a failure does not count; over as soon as one check has succeeded.
    starting_until: Option<Instant>,
    next: Instant,
    probe: Option<Probe>,
}

/// A check that was made.
#[derive(Debug)]
pub(crate) struct Verdict {
    result: HealthResult,
    retries: u32,
    /// A failure that does not count.
    starting: bool,
}

impl Verdict {
    /// Adds it to what is known. True when the verdict about the workload has changed.
    pub(crate) fn apply(self, state: &mut HealthState) -> bool {
        let before = state.status;
        if self.result.exit_code == 0 {
            state.failing_streak = 0;
            state.status = Health::Healthy;
        } else if !self.starting {
            state.failing_streak = state.failing_streak.saturating_add(1);
            if state.failing_streak >= self.retries {
                state.status = Health::Unhealthy;
            }
        }
        state.log.push(self.result);
        let old = state.log.len().saturating_sub(KEPT);
        state.log.drain(..old);
        before != state.status
    }
}

impl Checker {
    pub(crate) fn new(check: HealthCheck) -> Self {
        let now = Instant::now();
        let period = Duration::from_millis(check.start_period_ms);
        let starting_until = (!period.is_zero()).then(|| now + period);
        let mut checker = Self { check, starting_until, next: now, probe: None };
        checker.next = now + checker.interval(now);
        checker
    }

    fn is_starting(&self, now: Instant) -> bool {
        self.starting_until.is_some_and(|until| now < until)
    }

    fn interval(&self, now: Instant) -> Duration {
        let interval_ms =
            if self.is_starting(now) { self.check.start_interval_ms } else { self.check.interval_ms };
        Duration::from_millis(interval_ms)
    }

    /// Becomes readable when the check that is being made has ended.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.probe.as_ref().map(|probe| probe.pidfd.as_fd())
    }

    /// When [`Checker::advance`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.probe {
            Some(probe) if probe.late => None,
            Some(probe) => Some(probe.deadline),
            None => Some(self.next),
        }
    }

    /// Begins a check whose time has come, or ends one that takes too long.
    pub(crate) fn advance(&mut self, now: Instant, launch: &Launch, pid: i32) -> Option<Verdict> {
        if let Some(probe) = &mut self.probe {
            if !probe.late && probe.deadline <= now {
                probe.late = true;
                probe.end();
            }
            return None;
        }
        if now < self.next {
            return None;
        }
        match self.begin(now, launch, pid) {
            Ok(probe) => {
                self.probe = Some(probe);
                None
            }
            Err(error) => {
                self.next = now + self.interval(now);
                let time = Timestamp::now();
                let result = HealthResult { start: time, end: time, exit_code: 1, output: error.to_string() };
                Some(self.verdict(result))
            }
        }
    }

    fn begin(&self, now: Instant, launch: &Launch, pid: i32) -> Result<Probe> {
        let start = Timestamp::now();
        let timeout = Duration::from_millis(self.check.timeout_ms);
        let (pid, pidfd, output) = probe::fork(&self.check, launch, pid)?;
        let program = matches!(self.check.probe, HealthProbe::Exec { .. } | HealthProbe::Shell { .. });
        Ok(Probe { pid, pidfd, output, start, deadline: now + timeout, late: false, program })
    }

    /// Takes the result of the check that has ended.
    pub(crate) fn collect(&mut self) -> Option<Verdict> {
        let probe = self.probe.as_ref()?;
        let status = sys::wait(probe.pid, false).ok()??;
        let probe = self.probe.take()?;
        let mut output = read_some(probe.output.as_fd());
        let exit_code = if probe.late {
            output = format!("the check has taken longer than {} ms", self.check.timeout_ms);
            -1
        } else {
            sys::exit_code(status)
        };
        let now = Instant::now();
        self.next = now + self.interval(now);
        let verdict =
            self.verdict(HealthResult { start: probe.start, end: Timestamp::now(), exit_code, output });
        Some(verdict)
    }

    fn verdict(&mut self, result: HealthResult) -> Verdict {
        let starting = self.is_starting(Instant::now());
        if result.exit_code == 0 {
            self.starting_until = None;
        }
        Verdict { result, retries: self.check.retries, starting }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            // Its result is nobody's any more. The workload has ended, and its programs with it.
            let _ = sys::signal(probe.pidfd.as_fd(), Signal::KILL.as_raw());
            let _ = sys::wait(probe.pid, true);
        }
    }
}

/// What is in a pipe that does not block, at most [`MAX_OUTPUT`] bytes.
fn read_some(pipe: BorrowedFd<'_>) -> String {
    let mut all = vec![0; MAX_OUTPUT];
    let mut filled = 0;
    while let Some(room) = all.get_mut(filled..).filter(|room| !room.is_empty()) {
        match rustix::io::read(pipe, room) {
            Ok(count) if count > 0 => filled += count,
            _ => break,
        }
    }
    String::from_utf8_lossy(all.get(..filled).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(exit_code: i32, starting: bool) -> Verdict {
        let time = Timestamp::now();
        let result = HealthResult { start: time, end: time, exit_code, output: String::new() };
        Verdict { result, retries: 3, starting }
    }

    #[test]
    fn three_failures_in_a_row_make_it_unhealthy() {
        let mut state = HealthState::default();
        assert!(!verdict(1, true).apply(&mut state));
        assert_eq!((state.status, state.failing_streak), (Health::Starting, 0));
        assert!(verdict(0, true).apply(&mut state));
        assert_eq!(state.status, Health::Healthy);
        assert!(!verdict(1, false).apply(&mut state));
        assert!(!verdict(-1, false).apply(&mut state));
        assert!(verdict(2, false).apply(&mut state));
        assert_eq!((state.status, state.failing_streak), (Health::Unhealthy, 3));
        assert!(verdict(0, false).apply(&mut state));
        assert_eq!((state.status, state.failing_streak), (Health::Healthy, 0));
        assert_eq!(state.log.len(), KEPT);
    }
}
