//! The end of a run, and whether another follows.

use std::time::{Duration, Instant};

use moat_linux::{mount, process as sys};
use moat_model::workload::{RestartPolicy, Status};
use moat_sandbox::record::Recorder;

use super::stdio::{Output, Read, Stdio};
use super::{Monitor, Phase};
use crate::events::Action;
use crate::frame::Packet;
use crate::health::Verdict;
use crate::workload::{OomVictim, ProcessState};
use crate::{ExitStatus, Result, Timestamp};

/// How long the streams of a program that has ended may stay open and say nothing: those behind a wall of its own kind
/// are closed by whoever lives there.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(10);

impl Monitor<'_> {
    /// Whether nothing more is to be waited for from a program that has ended.
    fn is_silent(&self) -> bool {
        !self.is_blocked() && self.silent_until.is_some_and(|until| until <= Instant::now())
    }

    /// Whether somebody who is attached does not take what is there.
    pub(super) fn is_blocked(&self) -> bool {
        (0..2).any(|index| self.server.blocks(index))
    }

    /// The first process has ended.
    pub(super) fn process_ended(&mut self) -> Result<()> {
        let Phase::Running(process) = &self.phase else { return Ok(()) };
        let code = match self.code {
            Some(code) => code,
            None => match self.isolation.ended(process)? {
                Some(code) => code,
                None => return Ok(()),
            },
        };
        let speaks = self.stdio.is_open() && !self.is_silent();
        if self.isolation.brings_streams() && self.isolation.reason().is_none() && speaks {
            // What it wrote last is still on its way.
            self.code = Some(code);
            self.silent_until.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            return Ok(());
        }
        (self.code, self.silent_until) = (None, None);
        // Whatever can be said at once is said before the wall is taken down.
        (0..2).for_each(|index| while self.pump(index) == Read::Some && !self.server.blocks(index) {});
        let exit = self.take_down(code);
        let restart = self.restarts(&exit);
        self.state.exit = Some(exit.clone());
        self.state.finished = Some(Timestamp::now());
        self.state.process = ProcessState::default();
        self.state.status = if restart { Status::Restarting } else { Status::Exited };
        self.event(Action::Die, &[("exitCode", code.to_string())]);
        if restart {
            self.phase = Phase::Waiting(Instant::now() + self.backoff.pause(self.began.elapsed()));
            if let Err(error) = self.save() {
                self.trouble(&error);
            }
        } else {
            self.over();
        }
        self.last_words = Some(exit);
        self.drain();
        Ok(())
    }

    /// What the program wrote last is still in the pipes. Nobody writes to them any more, but for processes of a
    /// workload in the host's PID namespace, which are not waited for. Whoever is slow is given it bit by bit; when
    /// all is delivered, everybody is told of the end.
    pub(super) fn drain(&mut self) {
        let Some(exit) = self.last_words.take() else { return };
        for index in 0..2 {
            while self.stdio.outputs.get(index).is_some_and(|output| output.fd.is_some()) {
                if self.server.blocks(index) {
                    self.last_words = Some(exit);
                    return;
                }
                if self.pump(index) != Read::Some
                    && let Some(output) = self.stdio.outputs.get_mut(index)
                {
                    *output = Output::default();
                }
            }
        }
        if (0..2).any(|index| self.server.blocks(index)) {
            self.last_words = Some(exit);
            return;
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.finish()
        {
            self.trouble(&error);
        }
        self.stdio = Stdio::default();
        self.server.tell_all(&Packet::Exit(exit));
    }

    /// Takes the wall down and says how it ended.
    fn take_down(&mut self, code: i32) -> ExitStatus {
        self.health = None;
        match self.isolation.oom() {
            Ok(oom) => {
                self.state.oom_victims = oom.victims.iter().map(OomVictim::from).collect();
                if oom.kills > 0 {
                    self.event(Action::Oom, &[]);
                }
                let error = self.isolation.reason();
                let exit = ExitStatus { code, oom_killed: oom.kills > 0, error };
                self.remove_wall();
                exit
            }
            Err(error) => {
                self.trouble(&error);
                let error = self.isolation.reason();
                self.remove_wall();
                ExitStatus { code, oom_killed: false, error }
            }
        }
    }

    fn remove_wall(&mut self) {
        let hooks = self.config.as_ref().and_then(|config| config.hooks.as_ref());
        let removed = self.isolation.remove(hooks);
        let told = removed.map(|warnings| warnings.into_iter().next());
        match told {
            Ok(None) => {}
            Ok(Some(warning)) => self.trouble(&crate::Error::new(warning)),
            Err(error) => self.trouble(&error),
        }
        self.release_network();
    }

    fn release_network(&mut self) {
        if let Err(error) = std::mem::take(&mut self.network).release(&self.launch.engine, &self.host) {
            self.trouble(&error);
        }
    }

    fn restarts(&self, exit: &ExitStatus) -> bool {
        if self.stopping.is_some() {
            return false;
        }
        match self.launch.record.spec.restart {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure { max_retries } => {
                exit.code != 0
                    && !self.state.stopped_by_user
                    && (max_retries == 0 || self.state.restart_count < max_retries)
            }
            RestartPolicy::Always | RestartPolicy::UnlessStopped => !self.state.stopped_by_user,
        }
    }

    pub(super) fn start_again(&mut self) {
        self.state.restart_count += 1;
        if self.last_words.is_some() {
            // Somebody takes nothing: the workload does not wait for it.
            self.server.drop_blocking();
            self.drain();
        }
        match self.start(&mut Recorder::new(false, None)) {
            Ok(warnings) => {
                if let Some(warning) = warnings.into_iter().next() {
                    self.trouble(&crate::Error::new(warning));
                }
                sys::trim_memory();
            }
            Err(error) => {
                self.failed(&error);
                let exit = self.state.exit.clone().unwrap_or_default();
                self.server.tell_all(&Packet::Exit(exit));
            }
        }
    }

    /// No run follows. What is left is said, and with auto-remove nothing is left.
    pub(super) fn over(&mut self) {
        self.phase = Phase::Over;
        self.state.monitor = ProcessState::default();
        self.release_network();
        let restarting = self.stopping.as_ref().is_some_and(|stopping| stopping.restarting);
        let ended = if self.launch.record.spec.auto_remove && !restarting {
            self.removed = true;
            self.launch.remove()
        } else {
            self.leave()
        };
        // The last that can be done with it is to write it down.
        if let Err(error) = ended {
            self.trouble(&error);
            self.state.status =
                if self.launch.record.spec.auto_remove { Status::Dead } else { self.state.status };
            let _ = self.save();
        }
    }

    /// Keeps what the workload wrote, and removes what only a running one needs.
    fn leave(&mut self) -> Result<()> {
        if self.mounted {
            // The next monitor mounts the same upper directory, perhaps while this one still has to wait for a reader.
            mount::unmount(&self.launch.mount_point)?;
            self.mounted = false;
        }
        self.folder.remove_run()?;
        self.save()
    }

    pub(super) fn probe_ended(&mut self) -> Result<()> {
        let verdict = self.health.as_mut().and_then(crate::health::Checker::collect);
        self.judge(verdict)
    }

    pub(super) fn check_health(&mut self, now: Instant) -> Result<()> {
        let Phase::Running(process) = &self.phase else { return Ok(()) };
        let pid = process.pid;
        let launch = self.launch;
        let verdict = self.health.as_mut().and_then(|health| health.advance(now, launch, pid));
        self.judge(verdict)
    }

    fn judge(&mut self, verdict: Option<Verdict>) -> Result<()> {
        let (Some(verdict), Some(state)) = (verdict, &mut self.state.health) else { return Ok(()) };
        if verdict.apply(state) {
            let status = state.status.name().to_owned();
            self.event(Action::HealthStatus, &[("status", status)]);
        }
        self.save()
    }
}
