//! The other end of the attach socket: being attached to a workload, waiting for it, asking its monitor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{Errno, fs, net};
use rustix::fs::OFlags;

use crate::frame::{MAX_DATA, MAX_PACKET, Packet, Request, StartedPacket, Stream};
use crate::monitor::SOCKET;
use crate::workload::Folder;
use crate::{Context, Error, ExitStatus, Result};

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSpec {
    /// What is sent goes to the workload's standard input.
    pub stdin: bool,
    /// Its output, and all that a terminal shows.
    pub stdout: bool,
    /// Its error output.
    pub stderr: bool,
}

/// What comes from the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// Output.
    Output(Stream, &'a [u8]),
    /// It has ended; nothing follows.
    Exit(ExitStatus),
    /// The monitor is gone or has let this one go; nothing follows, and how the workload ended is not known here.
    Closed,
}

/// A connection to the monitor of a workload.
#[derive(Debug)]
pub struct Attached {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl AsFd for Attached {
    /// Readable when [`Attached::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Attached {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: Vec::new() }
    }

    /// Connects to the monitor of a workload; `None` when it has none.
    fn connect(folder: &Folder) -> Result<Option<Self>> {
        let run = match fs::open(&folder.run, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.errno() == Errno::NOENT => return Ok(None),
            other => other?,
        };
        match net::connect_in(run.as_fd(), SOCKET) {
            Ok(socket) => Ok(Some(Self::new(socket))),
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error).context(|| "reach the monitor"),
        }
    }

    /// Attaches to a workload that runs; `None` when it has no monitor.
    pub(crate) fn attach(folder: &Folder, spec: &AttachSpec) -> Result<Option<Self>> {
        let Some(mut attached) = Self::connect(folder)? else { return Ok(None) };
        let request = Request::Attach { stdin: spec.stdin, stdout: spec.stdout, stderr: spec.stderr };
        attached.send(&Packet::Request(request))?;
        match attached.packet()? {
            Some(Packet::Done) => Ok(Some(attached)),
            Some(Packet::Failed(error)) => Err(error),
            _ => Ok(None),
        }
    }

    /// Asks the monitor for something and gives what it answers; `None` when there is no monitor, or it ended
    /// meanwhile.
    pub(crate) fn ask(folder: &Folder, request: Request) -> Result<Option<Option<ExitStatus>>> {
        let Some(mut asked) = Self::connect(folder)? else { return Ok(None) };
        asked.send(&Packet::Request(request))?;
        match asked.packet()? {
            Some(Packet::Done) => Ok(Some(None)),
            Some(Packet::Exit(status)) => Ok(Some(Some(status))),
            Some(Packet::Failed(error)) => Err(error),
            Some(other) => Err(Error::new(format!("the monitor said {other:?}"))),
            None => Ok(None),
        }
    }

    /// What a monitor that was just forked tells first.
    pub(crate) fn hear_start(&mut self) -> Result<StartedPacket> {
        match self.packet()? {
            Some(Packet::Started(started)) => Ok(started),
            Some(Packet::Failed(error)) => Err(error),
            Some(other) => Err(Error::new(format!("the monitor said {other:?}"))),
            None => Err(Error::new("the monitor ended before the program ran")),
        }
    }

    fn send(&self, packet: &Packet<'_>) -> Result<()> {
        net::send(self.socket.as_fd(), &packet.encode(), &[]).context(|| "the monitor")
    }

    /// The next packet; `None` at the end.
    fn packet(&mut self) -> Result<Option<Packet<'_>>> {
        self.buffer.resize(MAX_PACKET, 0);
        let count = loop {
            match rustix::net::recv(&self.socket, &mut self.buffer, rustix::net::RecvFlags::empty()) {
                Ok((count, _)) => break count,
                // It closed the connection without having read all: what it has said before is still there.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(errno) => return Err(errno).context(|| "the connection to the monitor"),
            }
        };
        if count == 0 {
            return Ok(None);
        }
        let packet = self.buffer.get(..count).and_then(Packet::decode);
        packet.map(Some).ok_or_else(|| Error::new("the monitor said something that is no packet"))
    }

    /// Waits for what comes next.
    pub fn receive(&mut self) -> Result<Received<'_>> {
        Ok(match self.packet()? {
            Some(Packet::Output(stream, data)) => Received::Output(stream, data),
            Some(Packet::Exit(status)) => Received::Exit(status),
            Some(Packet::Failed(error)) => return Err(error),
            Some(other) => return Err(Error::new(format!("the monitor said {other:?}"))),
            None => Received::Closed,
        })
    }

    /// Sends input. It waits as long as the workload takes none. False when the workload has ended.
    pub fn send_input(&self, data: &[u8]) -> Result<bool> {
        for part in data.chunks(MAX_DATA) {
            if !self.tell(&Packet::Stdin(part))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends one packet of input if there is room for it now: how many bytes were taken, `None` when the workload has
    /// ended.
    pub fn offer_input(&self, data: &[u8]) -> Result<Option<usize>> {
        let part = data.get(..MAX_DATA).unwrap_or(data);
        match net::send_now(self.socket.as_fd(), &Packet::Stdin(part).encode(), &[]) {
            Ok(true) => Ok(Some(part.len())),
            Ok(false) => Ok(Some(0)),
            Err(error) if matches!(error.errno(), Errno::PIPE | Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that there is no more input.
    pub fn end_input(&self) -> Result<bool> {
        self.tell(&Packet::StdinEnd)
    }

    /// Gives the workload's terminal a size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<bool> {
        self.tell(&Packet::Resize(rows, columns))
    }

    fn tell(&self, packet: &Packet<'_>) -> Result<bool> {
        match net::send(self.socket.as_fd(), &packet.encode(), &[]) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Errno::PIPE | Errno::CONNRESET) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
