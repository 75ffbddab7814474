//! The host's side of vsock: unix sockets.
//!
//! Whoever connects to the socket and says `CONNECT port\n` reaches that port of the guest, and hears
//! `OK port\n` when the guest has accepted. What the guest connects to is `NAME_PORT` in the same folder,
//! reached through a descriptor of the folder.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use crate::virtio::vsock::{Host, HostEvent, StreamId};
use crate::{Context, Error, Result};

/// The longest line that a client may say.
const LINE_BYTES: usize = 32;
/// The most clients that have not yet said it.
const MOST_GREETINGS: usize = 64;
const BACKLOG: i32 = 128;
/// The number of the listening socket.
const LISTENER: StreamId = 0;

/// The host's side of one guest.
#[derive(Debug)]
pub struct UnixVsock {
    folder: OwnedFd,
    name: OsString,
    listener: OwnedFd,
    epoll: OwnedFd,
    /// Clients that have not said which port they want.
    greetings: HashMap<StreamId, OwnedFd>,
    streams: HashMap<StreamId, OwnedFd>,
    events: VecDeque<HostEvent>,
    next: StreamId,
}

impl UnixVsock {
    /// Listens at `path`, where nothing may be yet.
    pub fn bind(path: &Path) -> Result<Self> {
        let what = || format!("vsock socket {}", path.display());
        let name = path.file_name().ok_or_else(|| Error::new("it has no file name")).context(what)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty()).context(what)?;
        let listener = socket().context(what)?;
        let address = address(folder.as_fd(), name).context(what)?;
        rustix::net::bind(&listener, &address)
            .map_err(|errno| match errno {
                Errno::ADDRINUSE => Error::new("something is there already")
                    .hint("a socket that a dead machine has left may be removed"),
                errno => errno.into(),
            })
            .context(what)?;
        rustix::net::listen(&listener, BACKLOG).context(what)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).context(what)?;
        let this = Self {
            folder,
            name: name.to_owned(),
            listener,
            epoll,
            greetings: HashMap::new(),
            streams: HashMap::new(),
            events: VecDeque::new(),
            next: LISTENER + 1,
        };
        this.watch(this.listener.as_fd(), LISTENER).context(what)?;
        Ok(this)
    }

    /// Becomes readable when something has happened.
    pub fn event_fd(&self) -> &OwnedFd {
        &self.epoll
    }

    fn watch(&self, fd: BorrowedFd<'_>, id: StreamId) -> rustix::io::Result<()> {
        // Edge-triggered: the device remembers what it has not yet used up.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, EventData::new_u64(id), flags)
    }

    fn number(&mut self) -> StreamId {
        let id = self.next;
        self.next += 1;
        id
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(client) = rustix::net::accept_with(&self.listener, flags) {
            let id = self.number();
            if self.greetings.len() < MOST_GREETINGS && self.watch(client.as_fd(), id).is_ok() {
                self.greetings.insert(id, client);
            }
        }
    }

    /// A client may have said what it wants.
    fn greet(&mut self, id: StreamId) {
        let Some(client) = self.greetings.get(&id) else { return };
        match port_wanted(client) {
            Ok(port) => {
                if let Some(client) = self.greetings.remove(&id) {
                    self.streams.insert(id, client);
                    self.events.push_back(HostEvent::Incoming { stream: id, port });
                }
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(_) => {
                self.greetings.remove(&id);
            }
        }
    }

    fn stream(&self, id: StreamId) -> io::Result<&OwnedFd> {
        self.streams.get(&id).ok_or_else(|| Errno::NOTCONN.into())
    }
}

/// Takes the line `CONNECT port\n` off a socket, and nothing behind it.
fn port_wanted(client: &OwnedFd) -> rustix::io::Result<u32> {
    let mut line = [0; LINE_BYTES];
    let (seen, _) = rustix::net::recv(client, &mut line[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    let Some(end) = line[..seen].iter().position(|byte| *byte == b'\n') else {
        // A line that is not over may go on, unless it is too long or its writer has gone.
        return Err(if seen == 0 || seen == LINE_BYTES { Errno::PROTO } else { Errno::WOULDBLOCK });
    };
    let port = std::str::from_utf8(&line[..end]).ok().and_then(|line| line.strip_prefix("CONNECT "));
    let port = port.and_then(|port| port.trim_end_matches('\r').parse().ok()).ok_or(Errno::PROTO)?;
    rustix::net::recv(client, &mut line[..=end], RecvFlags::DONTWAIT)?;
    Ok(port)
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A socket's address by way of its folder's descriptor, which also makes long paths short.
fn address(folder: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<SocketAddrUnix> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    SocketAddrUnix::new(path)
}

impl Host for UnixVsock {
    fn connect(&mut self, port: u32) -> io::Result<StreamId> {
        let mut name = self.name.clone();
        name.push(format!("_{port}"));
        let stream = socket()?;
        rustix::net::connect(&stream, &address(self.folder.as_fd(), &name)?)?;
        let id = self.number();
        self.watch(stream.as_fd(), id)?;
        self.streams.insert(id, stream);
        Ok(id)
    }

    fn next_event(&mut self) -> Option<HostEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let mut ready = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 32];
            let count = match epoll::wait(&self.epoll, &mut ready[..], Some(&NOW)) {
                Ok(0) => return None,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            for event in &ready[..count] {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    id if self.greetings.contains_key(&id) => {
                        self.greet(id);
                        // What it has not said by now it will never say.
                        let flags = event.flags;
                        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
                            self.greetings.remove(&id);
                        }
                    }
                    id => self.events.push_back(HostEvent::Ready(id)),
                }
            }
        }
    }

    fn taken(&mut self, stream: StreamId, port: u32) -> io::Result<()> {
        let line = format!("OK {port}\n");
        let sent = rustix::net::send(self.stream(stream)?, line.as_bytes(), SendFlags::NOSIGNAL)?;
        // A socket that was just connected has room for a line.
        if sent == line.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
    }

    fn read(&mut self, stream: StreamId, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.stream(stream)?, to)?)
    }

    fn write(&mut self, stream: StreamId, from: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.stream(stream)?, from, SendFlags::NOSIGNAL)?)
    }

    fn finish(&mut self, stream: StreamId) {
        if let Some(stream) = self.streams.get(&stream) {
            // Fails when the other side has gone, which is found by reading.
            let _ = rustix::net::shutdown(stream, Shutdown::Write);
        }
    }

    fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }
}

const NOW: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

impl Drop for UnixVsock {
    fn drop(&mut self) {
        // Where the process may no longer remove anything, its starter does.
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}
