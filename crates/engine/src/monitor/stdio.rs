//! The workload's standard streams, from the monitor's side.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{Errno, fs, mount, process as sys};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::frame::{MAX_DATA, Stream};
use crate::{Context, Result};

/// The ends that the workload gets as descriptors 0, 1 and 2. A terminal needs none: the sandbox makes it.
#[derive(Debug)]
pub(super) struct Theirs([Option<OwnedFd>; 3]);

/// The monitor's ends.
#[derive(Debug, Default)]
pub(super) struct Stdio {
    pub(super) outputs: [Output; 2],
    pub(super) input: Option<Input>,
    /// A terminal's master, for its size.
    pub(super) terminal: Option<OwnedFd>,
}

/// One output of the workload and what of it has not been delivered to everybody.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) fd: Option<OwnedFd>,
    pub(super) chunk: Vec<u8>,
}

/// The workload's input and what it has not taken yet.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) fd: OwnedFd,
    pub(super) pending: Vec<u8>,
    pub(super) written: usize,
    /// No more comes after what is pending.
    pub(super) ends: bool,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The chunk holds something.
    Some,
    /// Nothing now.
    Empty,
    /// Nothing any more.
    End,
}

/// Pipes, unless a terminal takes their place. `owner` is who the workload runs as, on the host: what leads to its
/// outputs (/dev/stdout) is then a file that it may open.
pub(super) fn make(open_stdin: bool, owner: (u32, u32)) -> Result<(Stdio, Theirs)> {
    let mut stdio = Stdio::default();
    let mut theirs = [None, None, None];
    if open_stdin {
        let (read, write) = pipe()?;
        set_nonblocking(write.as_fd())?;
        stdio.input = Some(Input::new(write));
        theirs[0] = Some(read);
    }
    for (output, end) in stdio.outputs.iter_mut().zip(theirs.iter_mut().skip(1)) {
        let (read, write) = pipe()?;
        set_nonblocking(read.as_fd())?;
        output.fd = Some(read);
        *end = Some(write);
    }
    if owner != (0, 0) {
        for end in theirs.iter().flatten() {
            fs::chown(end.as_fd(), owner.0, owner.1).context(|| "give the workload its standard streams")?;
        }
    }
    Ok((stdio, Theirs(theirs)))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe for the workload")
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true).context(|| "make a standard stream non-blocking")
}

impl Theirs {
    /// Puts the ends in the place of this process's own streams, where what it starts inherits them.
    pub(super) fn install(&self) -> Result<()> {
        for (number, end) in self.0.iter().enumerate() {
            if let Some(end) = end {
                sys::duplicate_to(end.as_fd(), number as i32)?;
            }
        }
        Ok(())
    }
}

/// Points this process's own streams nowhere.
pub(crate) fn silence() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context(|| "open /dev/null")?;
    for number in 0..3 {
        sys::duplicate_to(null.as_fd(), number)?;
    }
    Ok(())
}

impl Stdio {
    /// The streams of a terminal.
    pub(super) fn of_terminal(master: OwnedFd, open_stdin: bool) -> Result<Self> {
        set_nonblocking(master.as_fd())?;
        let input = if open_stdin { Some(Input::new(mount::duplicate(master.as_fd())?)) } else { None };
        let output = Output { fd: Some(mount::duplicate(master.as_fd())?), chunk: Vec::new() };
        Ok(Self { outputs: [output, Output::default()], input, terminal: Some(master) })
    }
}

impl Stdio {
    /// Streams that are connections, and do not block.
    pub(super) fn connected(input: Option<OwnedFd>, outputs: [Option<OwnedFd>; 2]) -> Self {
        let outputs = outputs.map(|fd| Output { fd, chunk: Vec::new() });
        Self { outputs, input: input.map(Input::new), terminal: None }
    }

    /// Whether something may still come.
    pub(super) fn is_open(&self) -> bool {
        self.outputs.iter().any(|output| output.fd.is_some())
    }
}

impl Output {
    /// Reads what is there into the chunk, which must have been delivered.
    pub(super) fn read(&mut self) -> Read {
        let Some(fd) = &self.fd else { return Read::End };
        self.chunk.resize(MAX_DATA, 0);
        let read = loop {
            match rustix::io::read(fd, &mut self.chunk) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        self.chunk.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Read::End,
            Ok(_) => Read::Some,
            Err(Errno::AGAIN) => Read::Empty,
            // A terminal whose other side nobody has open reads as EIO; nothing else can go wrong with a pipe.
            Err(_) => Read::End,
        }
    }

    /// Gives the memory back as long as nothing comes.
    pub(super) fn forget(&mut self) {
        self.chunk = Vec::new();
    }

    pub(super) fn stream(index: usize) -> Stream {
        if index == 0 { Stream::Stdout } else { Stream::Stderr }
    }
}

impl Input {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, pending: Vec::new(), written: 0, ends: false }
    }

    /// Whether it takes more from clients.
    pub(super) fn is_free(&self) -> bool {
        self.pending.is_empty() && !self.ends
    }

    pub(super) fn take(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
    }

    /// Writes what the workload takes now. False when there is nothing left to do with it: it was to end, or
    /// nobody reads it any more.
    pub(super) fn write(&mut self) -> bool {
        while let Some(rest) = self.pending.get(self.written..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&self.fd, rest) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        self.written = 0;
        !self.ends
    }
}
