//! The caller's terminal in front of the container's: raw mode, copying, sizes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{Errno, tty};
use moat_sandbox::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The master of the container's terminal, and what the caller's was like before.
pub(crate) struct Terminal {
    master: OwnedFd,
    before: Option<Termios>,
    input: bool,
}

impl Terminal {
    /// Puts the caller's terminal, if there is one, into raw mode; it is restored on drop.
    pub(crate) fn new(master: OwnedFd) -> Result<Self> {
        let before = tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw).map_err(std::io::Error::from)?;
        }
        let terminal = Self { master, before, input: true };
        terminal.resize()?;
        Ok(terminal)
    }

    /// Gives the container's terminal the size of the caller's.
    pub(crate) fn resize(&self) -> Result<()> {
        match tcgetwinsize(stdin()) {
            Ok(size) if size.ws_row > 0 => Ok(tty::set_size(self.master.as_fd(), size.ws_row, size.ws_col)?),
            _ => Ok(()),
        }
    }

    /// The master, and standard input while it lasts.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut fds = vec![PollFd::new(&self.master, PollFlags::IN)];
        if self.input {
            fds.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        fds
    }

    /// Copies what is there; `seen` are the results of polling [`Terminal::poll_fds`].
    pub(crate) fn copy(&mut self, seen: &[PollFlags]) -> Result<()> {
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if seen.first().is_some_and(|flags| flags.intersects(PollFlags::IN)) {
            move_bytes(self.master.as_fd(), stdout())?;
        } else if seen.first().is_some_and(|flags| flags.intersects(PollFlags::HUP)) {
            // Nobody has the slave open right now; the exit of the process ends the loop.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if seen.get(1).is_some_and(|flags| flags.intersects(readable))
            && move_bytes(stdin(), self.master.as_fd())? == 0
        {
            // End of file is typed, or the program would never hear of it.
            self.input = false;
            write_all(self.master.as_fd(), &[4])?;
        }
        Ok(())
    }

    /// What the process wrote last may still be in the terminal when it has ended.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut ready, Some(&now)).map_err(std::io::Error::from)?;
            let readable = ready.first().is_some_and(|fd| fd.revents().intersects(PollFlags::IN));
            if !readable || move_bytes(self.master.as_fd(), stdout())? == 0 {
                return Ok(());
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The caller's terminal is gone if this fails.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

/// Copies once; 0 is the end of the source. A terminal whose other side is gone reads as EIO.
fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<usize> {
    let mut buffer = [0_u8; 8192];
    match rustix::io::read(from, &mut buffer) {
        Ok(count) => {
            write_all(to, buffer.get(..count).unwrap_or_default())?;
            Ok(count)
        }
        Err(Errno::INTR | Errno::AGAIN) => Ok(1),
        Err(Errno::IO) => Ok(0),
        Err(errno) => Err(Error::from(std::io::Error::from(errno))),
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                rustix::event::poll(&mut ready, None).map_err(std::io::Error::from)?;
            }
            Err(errno) => return Err(Error::from(std::io::Error::from(errno))),
        }
    }
    Ok(())
}
