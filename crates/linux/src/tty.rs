//! Pseudo-terminals.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::termios::Winsize;

use crate::{Result, fd_name, named, syscall};

/// Opens the multiplexer `ptmx` of a devpts instance below `directory` and unlocks its slave.
pub fn open_master(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let master = crate::fs::open_at(directory, Path::new("ptmx"), OFlags::RDWR | OFlags::NOCTTY, 0)?;
    named(rustix::pty::unlockpt(&master), "ioctl", || format!("{}, TIOCSPTLCK", fd_name(directory)))?;
    Ok(master)
}

/// TIOCGPTPEER: the slave of `master`, opened without a path that somebody could have swapped.
pub fn open_slave(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this request takes an integer and gives a new descriptor.
    let returned = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    named(syscall(returned.into()), "ioctl", || format!("{}, TIOCGPTPEER", fd_name(master)))?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(returned) })
}

/// TIOCSCTTY: makes a terminal the controlling one of this session.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    named(rustix::process::ioctl_tiocsctty(terminal), "ioctl", || format!("{}, TIOCSCTTY", fd_name(terminal)))
}

/// TIOCSWINSZ: size in characters.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    named(rustix::termios::tcsetwinsize(terminal, size), "ioctl", || {
        format!("{}, TIOCSWINSZ, {rows}x{columns}", fd_name(terminal))
    })
}
