//! A network that is a tap device of the host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::iov::{self, IoBuffer};
use moat_linux::tap::{self, offload};

use crate::Result;
use crate::virtio::net::{HEADER_BYTES, Link, Offloads};

/// One queue pair of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// It has further queues, so this one can be detached.
    many: bool,
    enabled: bool,
}

impl Tap {
    /// Opens `pairs` queue pairs of the tap `name`, which is made if there is none.
    pub fn open(name: &str, pairs: u16) -> Result<Vec<Self>> {
        let many = pairs > 1;
        let open = |_| {
            let fd = tap::open(name, many, HEADER_BYTES as u8)?;
            Ok(Self { fd, many, enabled: true })
        };
        (0..pairs.max(1)).map(open).collect()
    }

    /// A pair that somebody else has opened with a header of 12 bytes, non-blocking. `many` if it is one of
    /// several of its tap.
    pub fn from_fd(fd: OwnedFd, many: bool) -> Self {
        Self { fd, many, enabled: true }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Link for Tap {
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, to)?)
    }

    fn send(&mut self, parts: &[IoBuffer<'_>]) -> io::Result<()> {
        // A tap takes a packet whole or not at all.
        iov::write(self.fd.as_fd(), parts)?;
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let bit = |wanted, bit| if wanted { bit } else { 0 };
        let bits = bit(offloads.checksum, offload::CHECKSUM)
            | bit(offloads.tso4, offload::TSO4)
            | bit(offloads.tso6, offload::TSO6)
            | bit(offloads.ecn, offload::TSO_ECN);
        Ok(tap::set_offloads(self.fd.as_fd(), bits)?)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if self.many && enabled != self.enabled {
            tap::set_attached(self.fd.as_fd(), enabled)?;
            self.enabled = enabled;
        }
        Ok(())
    }
}
