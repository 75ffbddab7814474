//! The socket and its connections. Nothing here blocks: a peer that stalls costs its connection's buffer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::AtFlags;

use super::http::{self, Parsed, Request, Response};
use crate::event_loop::Interest;
use crate::{Context, Error, Result};

/// So many connections at once; the oldest goes when one more comes.
const MOST_CONNECTIONS: usize = 16;

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    to_send: Vec<u8>,
    /// The peer will send no more.
    heard_all: bool,
    /// It ends when all is sent.
    closing: bool,
}

/// The listening socket.
pub struct Server {
    listener: UnixListener,
    /// Removed in the end, where this server made it: its folder, and its name there.
    place: Option<(OwnedFd, OsString)>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Server {
    /// Makes a socket that only its owner may use. Fails when there is one already.
    pub fn bind(path: &Path) -> Result<Self> {
        let what = || format!("control socket {}", path.display());
        let listener = UnixListener::bind(path).context(what)?;
        // Between these two calls only the folder protects it.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context(what)?;
        let name = path.file_name().ok_or_else(|| Error::new("it has no file name")).context(what)?;
        let folder = crate::machine::files::folder_of(&path.to_string_lossy()).context(what)?;
        Self::new(listener, Some((folder, name.to_owned()))).context(what)
    }

    /// Takes over a listening socket that was inherited.
    pub fn inherited(socket: OwnedFd) -> Result<Self> {
        Self::new(UnixListener::from(socket), None).context(|| "inherited control socket")
    }

    fn new(listener: UnixListener, place: Option<(OwnedFd, OsString)>) -> Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, place, connections: BTreeMap::new(), next: 0 })
    }

    /// The folder of the socket that is to be removed in the end.
    pub(crate) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.place.as_ref().map(|(folder, _)| folder.as_fd())
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Ends the oldest connection, and tells which it was, where there is one too many.
    pub(crate) fn make_room(&mut self) -> Option<u64> {
        if self.connections.len() <= MOST_CONNECTIONS {
            return None;
        }
        self.connections.pop_first().map(|(id, _)| id)
    }

    /// The next new connection.
    pub(crate) fn accept(&mut self) -> Result<Option<(u64, BorrowedFd<'_>)>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            // The peer is gone again, or this process has no descriptor left for it: it may come back.
            Err(_) => return Ok(None),
        };
        stream.set_nonblocking(true).context(|| "control connection")?;
        let id = self.next;
        self.next += 1;
        let fresh = Connection {
            stream,
            received: Vec::new(),
            to_send: Vec::new(),
            heard_all: false,
            closing: false,
        };
        let connection = self.connections.entry(id).or_insert(fresh);
        Ok(Some((id, connection.stream.as_fd())))
    }

    /// Reads, answers, writes; tells how the connection is to be watched, `None` when it has ended.
    pub(crate) fn converse(
        &mut self,
        id: u64,
        answer: impl FnMut(&Request) -> Response,
    ) -> Option<(BorrowedFd<'_>, Interest)> {
        let connection = self.connections.get_mut(&id)?;
        if connection.go_on(answer) {
            let interest =
                if connection.to_send.is_empty() { Interest::Readable } else { Interest::Writable };
            return self.connections.get(&id).map(|connection| (connection.stream.as_fd(), interest));
        }
        self.connections.remove(&id);
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((folder, name)) = &self.place {
            // Somebody may have removed it already.
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        }
    }
}

impl Connection {
    /// False when it has ended.
    fn go_on(&mut self, mut answer: impl FnMut(&Request) -> Response) -> bool {
        if self.to_send.is_empty() && !self.receive() {
            return false;
        }
        // One request at a time: the next is looked at when the answer is gone.
        while self.to_send.is_empty() && !self.closing {
            match http::parse(&self.received) {
                Parsed::Partial => break,
                Parsed::Request(request, taken, keep) => {
                    self.received.drain(..taken);
                    self.to_send = answer(&request).bytes(keep);
                    self.closing = !keep;
                }
                Parsed::Refused(status, message) => {
                    self.to_send = Response::failed(status, &message).bytes(false);
                    self.closing = true;
                }
            }
            if !self.send() {
                return false;
            }
        }
        self.send() && !((self.closing || self.heard_all) && self.to_send.is_empty())
    }

    fn receive(&mut self) -> bool {
        let mut part = [0; 16 << 10];
        while self.received.len() <= http::MOST_BYTES && !self.heard_all {
            match self.stream.read(&mut part) {
                // What it has said before is still answered.
                Ok(0) => self.heard_all = true,
                Ok(count) => self.received.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn send(&mut self) -> bool {
        while !self.to_send.is_empty() {
            match self.stream.write(&self.to_send) {
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
