//! The caller's terminal: raw mode, and its size.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Context, Result};

/// Raw mode, until it is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts standard input into raw mode. A job in the background is stopped by this until it is brought forward,
    /// so signals must not be blocked yet.
    pub(crate) fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context(|| "the terminal of standard input")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).context(|| "the terminal of standard input")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn has_input() -> bool {
    isatty(stdin())
}

/// Whether standard output is a terminal.
pub(crate) fn has_output() -> bool {
    isatty(stdout())
}

/// Rows and columns of the terminal, where there is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let of = |fd: BorrowedFd<'_>| tcgetwinsize(fd).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    let size = of(stdout().as_fd()).or_else(|| of(stdin().as_fd()))?;
    Some((size.ws_row, size.ws_col))
}
