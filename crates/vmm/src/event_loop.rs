//! The event loop: the one thread that owns descriptors. It turns "this descriptor is ready" into calls of
//! devices and of the control server.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::{Context, Result};

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The guest has ended.
    Ended,
    /// A signal came.
    Signal,
    /// A queue of a virtio device was notified.
    Doorbell {
        /// The device.
        device: usize,
        /// Its queue.
        queue: u32,
    },
    /// A virtio device's back-end can go on.
    Backend {
        /// The device.
        device: usize,
        /// What it calls the descriptor.
        token: u64,
    },
    /// A processor's access may have changed when a device wants to be woken, or was a fault.
    Touched {
        /// The device.
        device: usize,
    },
    /// The serial port's input or output can go on.
    Serial,
    /// Somebody connects to the control socket.
    Control,
    /// A connection to the control socket can go on.
    Connection {
        /// Which.
        id: u64,
    },
}

/// How a descriptor is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// As long as it is readable.
    Readable,
    /// As long as it is writable.
    Writable,
    /// Whenever it becomes readable or writable.
    Edge,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Readable => epoll::EventFlags::IN,
            Self::Writable => epoll::EventFlags::OUT,
            Self::Edge => epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
        }
    }
}

/// Descriptors and what they stand for. A descriptor that is closed leaves by itself.
pub(crate) struct EventLoop {
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    next: u64,
    buffer: Vec<epoll::Event>,
}

impl EventLoop {
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "epoll")?;
        Ok(Self { epoll, sources: HashMap::new(), next: 0, buffer: Vec::with_capacity(64) })
    }

    /// Watches a descriptor. False for one that can not be watched, a regular file: it is always ready.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> Result<bool> {
        let key = self.next;
        match epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), interest.flags()) {
            Ok(()) => {
                self.next += 1;
                self.sources.insert(key, source);
                Ok(true)
            }
            Err(rustix::io::Errno::PERM) => Ok(false),
            Err(errno) => Err(errno).context(|| format!("watching {}", moat_linux::fd_name(fd))),
        }
    }

    /// Changes how a watched descriptor is watched.
    pub(crate) fn rewatch(&self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> Result<()> {
        let Some((key, _)) = self.sources.iter().find(|(_, known)| **known == source) else { return Ok(()) };
        let changed = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(*key), interest.flags());
        changed.context(|| format!("watching {}", moat_linux::fd_name(fd)))
    }

    /// Forgets a source whose descriptor is about to be closed.
    pub(crate) fn forget(&mut self, source: Source) {
        self.sources.retain(|_, known| *known != source);
    }

    /// Waits until something is ready or the time has come.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> Result<Vec<Source>> {
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        self.buffer.clear();
        match epoll::wait(
            self.epoll.as_fd(),
            rustix::buffer::spare_capacity(&mut self.buffer),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "waiting for events"),
        }
        Ok(self.buffer.iter().filter_map(|event| self.sources.get(&event.data.u64()).copied()).collect())
    }
}
