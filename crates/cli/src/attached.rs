//! Being attached to a workload: its output is copied out, what is typed is copied in, signals are passed on, until
//! it ends or the caller leaves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_engine::{Attached, ExitStatus, Received, Stream, Workload};
use moat_linux::{Errno, process as sys};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::stdio::{stderr, stdin, stdout};

use crate::detach::DetachKeys;
use crate::failure::{Context, Failure, Result};
use crate::session::tell;
use crate::terminal;

/// Bytes of input that are read at once.
const CHUNK: usize = 16 << 10;

/// How a caller is attached.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// What is typed goes to the workload.
    pub(crate) input: bool,
    /// The workload has a terminal, which has the size of the caller's.
    pub(crate) tty: bool,
    /// What leaves it.
    pub(crate) keys: DetachKeys,
    /// Signals are passed on.
    pub(crate) pass_signals: bool,
}

/// How being attached ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The workload ended.
    Exit(ExitStatus),
    /// The keys were typed.
    Detached,
    /// The monitor is gone.
    Lost,
}

/// Blocks signals: they come as data from now on. It is to be done before a workload is started that signals are
/// passed on to, else one could come between.
pub(crate) fn block_signals() -> Result<()> {
    sys::block_signals().map_err(Failure::from)
}

/// Copies until the end. Signals must be blocked.
pub(crate) fn tend(workload: &Workload, attached: &mut Attached, how: Attachment) -> Result<Ended> {
    let signals = sys::signal_descriptor().map_err(Failure::from)?;
    let mut copy = Copy { input: how.input, pending: Vec::new(), leaving: false, how };
    if copy.how.tty {
        resize(attached)?;
    }
    loop {
        let (output, input, signal) = copy.wait(attached, &signals)?;
        if output && let Some(end) = receive(attached)? {
            return Ok(end);
        }
        if input {
            copy.read_input()?;
        }
        copy.send_input(attached)?;
        if copy.leaving && copy.pending.is_empty() {
            return Ok(Ended::Detached);
        }
        while signal && let Some(number) = sys::next_signal(signals.as_fd()).map_err(Failure::from)? {
            copy.signal(number, workload, attached)?;
        }
    }
}

struct Copy {
    how: Attachment,
    /// Standard input is still to be read.
    input: bool,
    /// What was read and not taken yet.
    pending: Vec<u8>,
    /// The keys were typed.
    leaving: bool,
}

impl Copy {
    /// Waits until there is output, input or a signal.
    fn wait(&self, attached: &Attached, signals: &OwnedFd) -> Result<(bool, bool, bool)> {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !self.pending.is_empty());
        let mut ready = vec![PollFd::new(attached, wanted), PollFd::new(signals, PollFlags::IN)];
        if self.input && self.pending.is_empty() {
            ready.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        match poll(&mut ready, None) {
            Err(Errno::INTR) => return Ok((false, false, true)),
            other => other.context(|| "wait for the workload")?,
        };
        let any = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let seen = |at: usize| ready.get(at).is_some_and(|fd| fd.revents().intersects(any));
        Ok((seen(0), seen(2), seen(1)))
    }

    fn read_input(&mut self) -> Result<()> {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(stdin(), &mut buffer) {
            // A job in the background may not read from its terminal.
            Ok(0) | Err(Errno::IO) => {
                self.input = false;
                // An empty rest stands for the end.
                self.how.input = true;
            }
            Ok(count) => {
                let typed = buffer.get(..count).unwrap_or_default();
                if self.how.tty {
                    (self.pending, self.leaving) = self.how.keys.take(typed);
                } else {
                    self.pending = typed.to_vec();
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno).context(|| "standard input"),
        }
        Ok(())
    }

    fn send_input(&mut self, attached: &Attached) -> Result<()> {
        if !self.pending.is_empty() {
            match attached.offer_input(&self.pending)? {
                Some(count) => drop(self.pending.drain(..count.min(self.pending.len()))),
                // It has ended; its output tells how.
                None => {
                    self.pending.clear();
                    self.input = false;
                    self.how.input = false;
                }
            }
        }
        if self.pending.is_empty() && !self.input && self.how.input {
            self.how.input = false;
            attached.end_input()?;
        }
        Ok(())
    }

    fn signal(&self, number: i32, workload: &Workload, attached: &Attached) -> Result<()> {
        let ignored = [Signal::CHILD, Signal::URG, Signal::PIPE, Signal::CONT];
        if number == Signal::WINCH.as_raw() {
            return if self.how.tty { resize(attached) } else { Ok(()) };
        }
        if ignored.iter().any(|signal| signal.as_raw() == number) {
            return Ok(());
        }
        if !self.how.pass_signals {
            return Err(Failure::told(u8::try_from(128 + number).unwrap_or(1)));
        }
        match workload.kill(number) {
            // It ended meanwhile; that is told by what comes from it.
            Err(error) if error.kind() == moat_engine::ErrorKind::Conflict => Ok(()),
            other => Ok(other?),
        }
    }
}

fn resize(attached: &Attached) -> Result<()> {
    if let Some((rows, columns)) = terminal::size() {
        attached.resize(rows, columns)?;
    }
    Ok(())
}

fn receive(attached: &mut Attached) -> Result<Option<Ended>> {
    match attached.receive()? {
        Received::Output(Stream::Stdout, data) => write_all(stdout(), data).map(|()| None),
        Received::Output(Stream::Stderr, data) => write_all(stderr(), data).map(|()| None),
        Received::Exit(status) => Ok(Some(Ended::Exit(status))),
        Received::Closed => Ok(Some(Ended::Lost)),
    }
}

/// Writes all; a reader that has gone away ends the command.
pub(crate) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                poll(&mut ready, None).context(|| "output")?;
            }
            Err(Errno::PIPE) => return Err(Failure::gone()),
            Err(errno) => return Err(errno).context(|| "output"),
        }
    }
    Ok(())
}

/// The exit code of a command that was attached, after what there is to tell was told.
pub(crate) fn conclude(workload: &Workload, ended: &Ended) -> Result<u8> {
    match ended {
        Ended::Detached => Ok(0),
        Ended::Exit(status) => {
            if status.oom_killed {
                tell(&format!("moat: workload {} ran out of memory", workload.name()));
            }
            if let Some(error) = &status.error {
                tell(&format!("moat: workload {}: {error}", workload.name()));
            }
            Ok(code(status))
        }
        Ended::Lost => {
            Err(Failure::new(format!("the monitor of workload {} has gone away", workload.name()))
                .hint(format!("`moat inspect {}` tells what is known of it", workload.name()))
                .code(crate::failure::ENGINE))
        }
    }
}

/// An exit code as a process can have it.
pub(crate) fn code(status: &ExitStatus) -> u8 {
    u8::try_from(status.code).unwrap_or(255)
}
