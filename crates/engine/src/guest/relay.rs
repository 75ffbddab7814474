//! A process in a guest as a process of the host: one that copies its streams, and ends as it does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{Errno, process as sys};
use moat_model::agent::{Answer, ExecSpec, Request, Stream};
use moat_model::oci;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use super::{Agent, Ending, unexpected};
use crate::{Context, Error, Result};

/// The code where the machine ended before the process did.
const LOST: i32 = 255;
const CHUNK_BYTES: usize = 16 << 10;

/// A further process in a guest.
pub(crate) struct Relay {
    agent: Agent,
    process: u32,
    ending: Ending,
    flows: Vec<Flow>,
}

/// Bytes that go one way.
struct Flow {
    from: OwnedFd,
    to: OwnedFd,
    pending: Vec<u8>,
    /// The process's own, which is waited for.
    output: bool,
}

impl Relay {
    /// Runs a process, whose streams become those of this one; without `stdin` its input is empty. A terminal's
    /// bytes are the caller's business.
    pub(crate) fn start(
        agent: &Agent,
        process: oci::Process,
        stdin: bool,
    ) -> Result<(Self, Option<OwnedFd>)> {
        let terminal = process.terminal;
        let stdin = stdin && !terminal;
        let answer = agent.ask(&Request::Exec(Box::new(ExecSpec { process, stdin })))?;
        let Answer::Created { process, .. } = answer else { return Err(unexpected(&answer)) };
        let ending = agent.ending(process)?;
        let mut relay = Self { agent: agent.clone(), process, ending, flows: Vec::new() };
        if terminal {
            let master = agent.attach(process, Stream::Terminal)?;
            rustix::io::ioctl_fionbio(&master, false).context(|| "the terminal in the guest")?;
            return Ok((relay, Some(master)));
        }
        if stdin {
            let to = agent.attach(process, Stream::Stdin)?;
            relay.flows.push(Flow::new(own(rustix::stdio::stdin())?, to, false));
        }
        for (stream, to) in
            [(Stream::Stdout, rustix::stdio::stdout()), (Stream::Stderr, rustix::stdio::stderr())]
        {
            relay.flows.push(Flow::new(agent.attach(process, stream)?, own(to)?, true));
        }
        Ok((relay, None))
    }

    /// What the agent calls the process by.
    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Copies until the process has ended and all that it wrote is delivered. Gives its exit code. A SIGTERM to this
    /// process kills that one.
    pub(crate) fn run(mut self) -> Result<i32> {
        let signals = sys::signal_descriptor()?;
        let mut code = None;
        loop {
            if let Some(code) = code
                && !self.flows.iter().any(|flow| flow.output)
            {
                return Ok(code);
            }
            let mut ready = vec![PollFd::new(&signals, PollFlags::IN)];
            ready.extend(self.flows.iter().map(Flow::poll_fd));
            if code.is_none() {
                ready.push(PollFd::new(&self.ending, PollFlags::IN));
            }
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                other => other.context(|| "wait for the process")?,
            };
            let seen: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(ready);
            while let Some(number) = sys::next_signal(signals.as_fd())? {
                if number == Signal::TERM.as_raw() {
                    let signal = Signal::KILL.as_raw();
                    self.agent.ask(&Request::Signal { process: self.process, signal, all: false })?;
                }
            }
            let mut at = 0;
            self.flows.retain_mut(|flow| {
                at += 1;
                !seen.get(at).copied().unwrap_or(false) || flow.step()
            });
            if code.is_none() {
                code = match self.ending.take() {
                    Ok(exit) => exit.map(|exit| exit.code),
                    // What it wrote before is delivered still.
                    Err(_) => Some(LOST),
                };
            }
        }
    }
}

fn own(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    moat_linux::mount::duplicate(fd).map_err(Error::from)
}

impl Flow {
    fn new(from: OwnedFd, to: OwnedFd, output: bool) -> Self {
        Self { from, to, pending: Vec::new(), output }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        if self.pending.is_empty() {
            PollFd::new(&self.from, PollFlags::IN)
        } else {
            PollFd::new(&self.to, PollFlags::OUT)
        }
    }

    /// Moves what can be moved now; false when it is over. A reader that has gone ends what is written to it.
    fn step(&mut self) -> bool {
        if self.pending.is_empty() {
            let mut part = [0; CHUNK_BYTES];
            match rustix::io::read(&self.from, &mut part) {
                Ok(0) => return false,
                Ok(count) => self.pending.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(Errno::INTR | Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        match rustix::io::write(&self.to, &self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}
