//! The monitor's standard input and output as a guest's console. Neither is made non-blocking: others share
//! them, and that flag would be theirs, too. So each call asks first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::device::Stream;
use crate::{Context, Result};

/// Both ends.
#[derive(Debug)]
pub struct Stdio {
    input: OwnedFd,
    output: OwnedFd,
}

impl Stdio {
    /// Own descriptors of what stands on 0 and 1.
    pub fn new() -> Result<Self> {
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context(|| "standard input or output");
        Ok(Self { input: clone(io::stdin().as_fd())?, output: clone(io::stdout().as_fd())? })
    }

    /// Both ends once more, for the event loop to watch.
    pub(super) fn clone_ends(&self) -> Result<Vec<OwnedFd>> {
        let clone = |fd: &OwnedFd| fd.try_clone().context(|| "standard input or output");
        Ok(vec![clone(&self.input)?, clone(&self.output)?])
    }
}

/// Whether a call would not block now.
fn can(fd: &OwnedFd, flags: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, flags)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

impl Stream for Stdio {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        can(&self.input, PollFlags::IN)?;
        Ok(rustix::io::read(&self.input, to)?)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        can(&self.output, PollFlags::OUT)?;
        // A pipe that is writable takes so much without blocking, and a terminal takes what it can.
        const ATOMIC_BYTES: usize = 4096;
        let part = from.get(..ATOMIC_BYTES).unwrap_or(from);
        Ok(rustix::io::write(&self.output, part)?)
    }

    fn size(&self) -> Option<(u16, u16)> {
        let size = rustix::termios::tcgetwinsize(&self.output).ok()?;
        Some((size.ws_col, size.ws_row))
    }
}

/// A terminal that passes every key to the guest; put back as it was when this is dropped.
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input raw; `None` when it is no terminal.
    pub fn new() -> Result<Option<Self>> {
        let what = || "the terminal";
        let terminal = io::stdin().as_fd().try_clone_to_owned().context(what)?;
        let Ok(before) = tcgetattr(&terminal) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).context(what)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone, and then nobody needs it.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
