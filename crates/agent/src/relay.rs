//! Bytes between a process's pipe or terminal and a connection, with back-pressure: what one side does not take
//! is not read from the other.

use std::os::fd::{AsFd, OwnedFd};

use moat_linux::Errno;
use rustix::event::{PollFd, PollFlags};

/// The most that is held for a side that does not read.
const BUFFER_BYTES: usize = 64 << 10;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    buffer: Vec<u8>,
    /// Nothing more will be read.
    ended: bool,
    /// Nobody takes it any more: what is read is dropped, so that the process can go on.
    discarded: bool,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It goes on.
    More,
    /// Everything that was read has been written, and nothing more will come.
    Finished,
}

impl Copy {
    /// Begins with bytes that are there.
    pub(crate) fn with(buffer: Vec<u8>) -> Self {
        Self { buffer, ..Self::default() }
    }

    /// Nothing more is to be read.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn wants_input(&self) -> bool {
        !self.ended && self.buffer.len() < BUFFER_BYTES
    }

    pub(crate) fn wants_output(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads what there is and writes what is taken. With `last`, whoever wrote has ended: when there is nothing to
    /// read right now, there never will be.
    pub(crate) fn step(&mut self, from: impl AsFd, to: impl AsFd, last: bool) -> Step {
        loop {
            if self.wants_input() {
                self.read(&from, last);
            }
            if self.wants_output() && !self.discarded {
                self.write(&to);
            }
            if self.discarded {
                self.buffer.clear();
            }
            // Nothing will tell that there is more where the writer has ended, so all of it is taken now.
            if !last || self.ended || self.wants_output() {
                return if self.ended && self.buffer.is_empty() { Step::Finished } else { Step::More };
            }
        }
    }

    fn read(&mut self, from: impl AsFd, last: bool) {
        let start = self.buffer.len();
        self.buffer.resize(BUFFER_BYTES, 0);
        let read = rustix::io::read(from, self.buffer.get_mut(start..).unwrap_or_default());
        self.buffer.truncate(start + read.unwrap_or(0));
        match read {
            Ok(0) => self.ended = true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.ended = last,
            // A terminal whose last process is gone says EIO, a connection that was reset ECONNRESET.
            Err(_) => self.ended = true,
        }
    }

    fn write(&mut self, to: impl AsFd) {
        match rustix::io::write(to, &self.buffer) {
            Ok(count) => {
                self.buffer.drain(..count);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.discarded = true,
        }
    }
}

/// A descriptor of the process and a connection.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) process: u32,
    socket: OwnedFd,
    /// The end of the process's pipe or terminal; absent once its direction has finished.
    inner: Option<OwnedFd>,
    out: Option<Copy>,
    input: Option<Copy>,
}

impl Relay {
    /// `answer` is a frame that goes to the host first. `input` and `output` say which directions there are.
    pub(crate) fn new(
        process: u32,
        socket: OwnedFd,
        inner: OwnedFd,
        answer: Vec<u8>,
        (input, output): (bool, bool),
        rest: Vec<u8>,
    ) -> Self {
        let mut out = Copy::with(answer);
        if !output {
            out.end();
        }
        Self { process, socket, inner: Some(inner), out: Some(out), input: input.then(|| Copy::with(rest)) }
    }

    pub(crate) fn poll_fds(&self, process_ended: bool) -> Vec<PollFd<'_>> {
        let mut socket = PollFlags::empty();
        let mut inner = PollFlags::empty();
        if let Some(out) = &self.out {
            inner.set(PollFlags::IN, out.wants_input() && !process_ended);
            socket.set(PollFlags::OUT, out.wants_output());
        }
        if let Some(input) = &self.input {
            socket.set(PollFlags::IN, input.wants_input());
            inner.set(PollFlags::OUT, input.wants_output());
        }
        // A side that is asked for nothing would still report its end, again and again.
        let socket = Some((&self.socket, socket));
        let inner = self.inner.as_ref().map(|descriptor| (descriptor, inner));
        let asked = [socket, inner].into_iter().flatten().filter(|(_, flags)| !flags.is_empty());
        asked.map(|(descriptor, flags)| PollFd::new(descriptor, flags)).collect()
    }

    /// Copies what there is. `Finished`: the relay can be dropped, which closes both sides.
    pub(crate) fn step(&mut self, process_ended: bool) -> Step {
        let Some(inner) = &self.inner else { return Step::Finished };
        if let Some(out) = &mut self.out
            && out.step(inner, &self.socket, process_ended) == Step::Finished
        {
            self.out = None;
        }
        if let Some(input) = &mut self.input
            && input.step(&self.socket, inner, false) == Step::Finished
        {
            self.input = None;
            // A terminal stays open for its output; of a pipe this was the only use.
            if self.out.is_none() {
                self.inner = None;
            }
        }
        match (&self.out, &self.input) {
            (None, None) => Step::Finished,
            // The process has ended: nobody will ever read the rest.
            (None, Some(_)) if process_ended => Step::Finished,
            _ => Step::More,
        }
    }
}
