//! Terminals: one of the test's own, and the socket that takes a container's.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A pair of pseudo-terminals.
#[derive(Debug)]
pub struct Pty {
    /// The side of the terminal emulator.
    pub master: File,
    /// The side of the programs.
    pub slave: PathBuf,
}

impl Default for Pty {
    fn default() -> Self {
        Self::new()
    }
}

impl Pty {
    /// A pair of the host's.
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        Self { master: File::from(master), slave: slave.into() }
    }

    /// Opens the side of the programs; it becomes nobody's controlling terminal.
    pub fn open(&self) -> File {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.slave).unwrap()
    }
}

/// A socket for `--console-socket`.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the master of a container's terminal.
    pub fn receive(&self) -> File {
        let (stream, _) = self.listener.accept().unwrap();
        let (_, mut fds) = moat_linux::net::receive(stream.as_fd(), &mut [0; 256]).unwrap();
        let master: OwnedFd = fds.pop().expect("a descriptor came with the message");
        File::from(master)
    }
}

/// Reads a terminal's master until the last program has closed the other side.
pub fn read_master(master: &mut File) -> String {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    // EIO is how a master says that nobody is left.
    while let Ok(count @ 1..) = master.read(&mut part) {
        all.extend_from_slice(part.get(..count).unwrap_or_default());
    }
    String::from_utf8_lossy(&all).into_owned()
}
