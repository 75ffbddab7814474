//! Bytes to and from descriptors: terminals, pipes, sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::device::Stream;

/// A stream of which either half may be missing. Both descriptors are non-blocking.
#[derive(Debug)]
pub struct FdStream {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
}

impl FdStream {
    /// Reads from `input` and writes to `output`; without an output what is written is dropped.
    pub fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> Self {
        Self { input, output }
    }

    /// Whose readiness to wait for, to read.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    /// Whose readiness to wait for, to write.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }
}

impl Stream for FdStream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match &self.input {
            Some(input) => Ok(rustix::io::read(input, to)?),
            None => Err(Errno::WOULDBLOCK.into()),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match &self.output {
            Some(output) => Ok(rustix::io::write(output, from)?),
            None => Ok(from.len()),
        }
    }

    fn size(&self) -> Option<(u16, u16)> {
        let size = rustix::termios::tcgetwinsize(self.output.as_ref()?).ok()?;
        Some((size.ws_col, size.ws_row))
    }
}
