//! The loop of the monitor.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use moat_linux::{process as sys, tty};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::end::LAST_WORDS;
use super::server::Said;
use super::stdio::{Output, Read};
use super::{Monitor, Phase, Stopping};
use crate::frame::{Packet, Request};
use crate::{Context, Error, ExitStatus, Result};

/// What a polled descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Listener,
    Signals,
    Process,
    /// The wall's own words.
    Console,
    Probe,
    Output(usize),
    Input,
    Client(usize),
}

/// How long a terminal that nobody has open is left alone.
const CLOSED_TERMINAL: Duration = Duration::from_millis(50);

/// Room for one packet, and when a closed terminal is looked at again.
#[derive(Default)]
struct Scratch {
    packet: Vec<u8>,
    closed_until: Option<Instant>,
}

impl Monitor<'_> {
    /// Serves until the workload is over and everybody who is attached has heard it.
    pub(super) fn serve(&mut self) -> Result<()> {
        let mut scratch = Scratch::default();
        loop {
            self.server.flush(&self.stdio.outputs);
            self.drain();
            let told = self.last_words.is_none();
            if told
                && matches!(self.phase, Phase::Over)
                && self.server.clients.iter().all(|client| !client.is_behind())
            {
                return Ok(());
            }
            for (of, flags) in self.wait(&scratch)? {
                self.handle(of, flags, &mut scratch)?;
            }
            if self.code.is_some() {
                self.process_ended()?;
            }
            self.pass_time()?;
        }
    }

    fn wait(&self, scratch: &Scratch) -> Result<Vec<(Of, PollFlags)>> {
        let mut of = Vec::with_capacity(8 + self.server.clients.len());
        let mut fds = Vec::with_capacity(of.capacity());
        let mut add = |what, fd| {
            of.push(what);
            fds.push(fd);
        };
        add(Of::Listener, PollFd::new(&self.server.listener, PollFlags::IN));
        add(Of::Signals, PollFd::new(&self.signals, PollFlags::IN));
        if let Some(console) = self.isolation.console() {
            add(Of::Console, PollFd::from_borrowed_fd(console, PollFlags::IN));
        }
        if let Phase::Running(process) = &self.phase
            && self.code.is_none()
        {
            add(Of::Process, PollFd::new(&process.pidfd, PollFlags::IN));
        }
        if let Some(probe) = self.health.as_ref().and_then(crate::health::Checker::descriptor) {
            add(Of::Probe, PollFd::from_borrowed_fd(probe, PollFlags::IN));
        }
        let closed = scratch.closed_until.is_some_and(|until| Instant::now() < until);
        for (index, output) in self.stdio.outputs.iter().enumerate() {
            if let Some(fd) = &output.fd
                && !closed
                && !self.server.blocks(index)
            {
                add(Of::Output(index), PollFd::new(fd, PollFlags::IN));
            }
        }
        if let Some(input) = &self.stdio.input
            && !input.pending.is_empty()
        {
            add(Of::Input, PollFd::new(&input.fd, PollFlags::OUT));
        }
        let input_is_free = self.stdio.input.as_ref().is_none_or(super::stdio::Input::is_free);
        for (place, client) in self.server.clients.iter().enumerate() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, client.is_heard(input_is_free));
            wanted.set(PollFlags::OUT, client.is_behind());
            add(Of::Client(place), PollFd::new(client.socket(), wanted));
        }
        let timeout = self.deadline(scratch).map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            // One nanosecond less than needed would turn the loop for nothing.
            let left = left + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            other => other.context(|| "wait for the workload")?,
        };
        let ready =
            of.into_iter().zip(fds.iter().map(PollFd::revents)).filter(|(_, flags)| !flags.is_empty());
        // Clients from the last to the first: one that is removed then moves only those that were handled.
        let mut ready: Vec<(Of, PollFlags)> = ready.collect();
        ready.sort_by_key(|(of, _)| match of {
            Of::Output(_) => (0, 0),
            Of::Client(place) => (1, usize::MAX - place),
            Of::Process => (3, 0),
            _ => (2, 0),
        });
        Ok(ready)
    }

    fn deadline(&self, scratch: &Scratch) -> Option<Instant> {
        let waiting = match &self.phase {
            Phase::Waiting(until) => Some(*until),
            _ => None,
        };
        let killed = self.stopping.as_ref().and_then(|stopping| stopping.deadline);
        let health = self.health.as_ref().and_then(crate::health::Checker::deadline);
        let silent = self.silent_until.filter(|_| !self.is_blocked());
        let all = [waiting, killed, health, silent, self.server.deadline(), scratch.closed_until];
        all.into_iter().flatten().min()
    }

    fn handle(&mut self, of: Of, flags: PollFlags, scratch: &mut Scratch) -> Result<()> {
        match of {
            Of::Listener => self.server.accept(),
            Of::Signals => self.take_signals(),
            Of::Process => self.process_ended(),
            Of::Console => {
                self.isolation.hear_console();
                Ok(())
            }
            Of::Probe => self.probe_ended(),
            Of::Output(index) => {
                if self.pump(index) == Read::End {
                    if self.stdio.terminal.is_some() {
                        scratch.closed_until = Some(Instant::now() + CLOSED_TERMINAL);
                    } else if let Some(output) = self.stdio.outputs.get_mut(index) {
                        *output = Output::default();
                    }
                }
                Ok(())
            }
            Of::Input => {
                self.write_input();
                Ok(())
            }
            Of::Client(place) => {
                if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
                    && let Some(said) = self.server.hear(place, &mut scratch.packet)
                {
                    self.answer(said)?;
                }
                // Most of the time nobody types.
                scratch.packet = Vec::new();
                Ok(())
            }
        }
    }

    /// Reads one chunk and gives it to everybody, unless somebody has not taken the last.
    pub(super) fn pump(&mut self, index: usize) -> Read {
        if self.server.blocks(index) {
            return Read::Empty;
        }
        let Some(output) = self.stdio.outputs.get_mut(index) else { return Read::End };
        let read = output.read();
        if read == Read::Some {
            if let Some(until) = &mut self.silent_until {
                *until = Instant::now() + LAST_WORDS;
            }
            self.keep(index);
            self.server.deliver(index, &self.stdio.outputs);
        } else {
            output.forget();
        }
        read
    }

    fn keep(&mut self, index: usize) {
        // Once it is removed nobody can read a log any more.
        if !self.launch.record.spec.log.keep || self.removed {
            return;
        }
        let stream = Output::stream(index);
        let opened = match self.log.take() {
            Some(log) => Ok(log),
            None => crate::log::LogWriter::open(self.folder.log(), self.launch.record.spec.log.clone()),
        };
        let Some(output) = self.stdio.outputs.get(index) else { return };
        let kept = opened.and_then(|mut log| {
            let written = log.write(stream, &output.chunk);
            self.log = Some(log);
            written
        });
        // The workload goes on without the lines that a full disk did not take.
        if let Err(error) = kept {
            let new = self.state.trouble.is_none();
            self.trouble(&error);
            if new && let Err(error) = self.save() {
                self.trouble(&error);
            }
        }
    }

    fn write_input(&mut self) {
        if let Some(input) = &mut self.stdio.input
            && !input.write()
        {
            self.stdio.input = None;
        }
    }

    fn answer(&mut self, said: Said) -> Result<()> {
        match said {
            Said::Stdin(data) => {
                if let Some(input) = &mut self.stdio.input {
                    input.take(&data);
                    self.write_input();
                }
                Ok(())
            }
            Said::StdinEnd => {
                let spec = &self.launch.record.spec;
                if spec.stdin_once && !spec.tty {
                    if let Some(input) = &mut self.stdio.input {
                        input.ends = true;
                    }
                    self.write_input();
                }
                Ok(())
            }
            Said::Resize(rows, columns) => self.resize(rows, columns),
            Said::Request(client, request) => match self.fulfil(client, &request) {
                Ok(()) => Ok(()),
                Err(error) => {
                    self.server.answer(client, &Packet::Failed(error), true);
                    Ok(())
                }
            },
        }
    }

    /// The size of a terminal that is gone is nobody's.
    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match &self.stdio.terminal {
            Some(terminal) => Ok(tty::set_size(terminal.as_fd(), rows, columns)?),
            None => self.isolation.resize(rows, columns),
        }
    }

    fn fulfil(&mut self, client: u64, request: &Request) -> Result<()> {
        match *request {
            Request::Attach { .. } => self.server.answer(client, &Packet::Done, false),
            Request::Wait => {}
            Request::Resize { rows, columns } => {
                self.resize(rows, columns)?;
                self.server.answer(client, &Packet::Done, true);
            }
            Request::Signal { number, ends } => {
                self.state.stopped_by_user |= ends;
                self.signal(number)?;
                self.save()?;
                self.event(crate::events::Action::Kill, &[("signal", number.to_string())]);
                self.server.answer(client, &Packet::Done, true);
            }
            Request::Stop { signal, timeout_ms, restarting } => {
                self.state.stopped_by_user = true;
                let deadline = timeout_ms.map(|wait| Instant::now() + Duration::from_millis(wait));
                self.stop(signal, deadline, restarting)?;
            }
        }
        Ok(())
    }

    /// Asks the program to end. One that waits to be started again is not started again.
    pub(super) fn stop(&mut self, signal: i32, deadline: Option<Instant>, restarting: bool) -> Result<()> {
        self.stopping = Some(Stopping { deadline, restarting });
        if matches!(self.phase, Phase::Waiting(_)) {
            let exit = self.state.exit.clone().unwrap_or_default();
            self.give_up_restarting(&exit);
            return Ok(());
        }
        self.save()?;
        self.signal(signal)
    }

    fn give_up_restarting(&mut self, exit: &ExitStatus) {
        self.state.status = moat_model::workload::Status::Exited;
        self.over();
        self.server.tell_all(&Packet::Exit(exit.clone()));
    }

    pub(super) fn signal(&mut self, number: i32) -> Result<()> {
        let Phase::Running(process) = &self.phase else {
            return Err(Error::conflict(format!("workload {} is not running", self.launch.record.name)));
        };
        let ends = number == Signal::KILL.as_raw() || self.stopping.is_some();
        self.isolation.signal(process, number, ends)
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(number) = sys::next_signal(self.signals.as_fd())? {
            if number == Signal::TERM.as_raw() && self.stopping.is_none() {
                let deadline = Instant::now() + self.launch.stop_timeout();
                self.stop(self.launch.stop_signal, Some(deadline), false)?;
            }
        }
        Ok(())
    }

    /// What was to happen at a time that has come.
    fn pass_time(&mut self) -> Result<()> {
        let now = Instant::now();
        if let Some(stopping) = &mut self.stopping
            && stopping.deadline.is_some_and(|at| at <= now)
        {
            stopping.deadline = None;
            self.signal(Signal::KILL.as_raw())?;
        }
        if let Phase::Waiting(until) = self.phase
            && until <= now
        {
            self.start_again();
        }
        self.check_health(now)
    }
}
