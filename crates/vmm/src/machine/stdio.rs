//! The monitor's standard input and output as a guest's console. Neither is made non-blocking: others share
//! them, and that flag would be theirs, too. So each call asks first.
//!
//! For a terminal that is not enough: it is writable while it has room for one byte, and a write of more waits
//! until all of it has gone, for ever where nobody reads. So a terminal is opened anew, and only that is made
//! non-blocking.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

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
        Ok(Self {
            input: own(io::stdin().as_fd(), OFlags::RDONLY)?,
            output: own(io::stdout().as_fd(), OFlags::WRONLY)?,
        })
    }

    /// Both ends once more, for the event loop to watch.
    pub(super) fn clone_ends(&self) -> Result<Vec<OwnedFd>> {
        let clone = |fd: &OwnedFd| fd.try_clone().context(|| "standard input or output");
        Ok(vec![clone(&self.input)?, clone(&self.output)?])
    }
}

/// A descriptor of our own of what stands on another.
fn own(fd: BorrowedFd<'_>, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // A terminal of another user's, or a process without /proc, has to do with the one that there is.
    if isatty(fd)
        && let Ok(anew) = rustix::fs::open(name, flags, Mode::empty())
    {
        return Ok(anew);
    }
    fd.try_clone_to_owned().context(|| "standard input or output")
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
        // A pipe that is writable takes so much without blocking.
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
