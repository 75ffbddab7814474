//! A back-end for every device that is there and does nothing.

use std::io;

use moat_linux::iov::IoBuffer;
use moat_vmm::device::Stream;
use moat_vmm::virtio::block::{Disk, Done, Operation};
use moat_vmm::virtio::net::{Link, Offloads};
use moat_vmm::virtio::rng::Entropy;
use moat_vmm::virtio::vsock::{Host, HostEvent, StreamId};

/// It does nothing; a disk says at once that it has done it.
#[derive(Default)]
pub(crate) struct Idle(Vec<Done>);

impl Entropy for Idle {
    fn fill(&mut self, to: &mut [u8]) -> io::Result<()> {
        to.fill(1);
        Ok(())
    }
}

impl Stream for Idle {
    fn read(&mut self, _to: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }
}

impl Link for Idle {
    fn receive(&mut self, _to: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, _parts: &[IoBuffer<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Idle {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn submit(&mut self, tag: u64, _operation: Operation) {
        self.0.push(Done { tag, result: Ok(()) });
    }

    fn commit(&mut self) -> Result<(), moat_linux::Errno> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.0.pop()
    }

    fn wait(&mut self) -> Result<(), moat_linux::Errno> {
        Ok(())
    }
}

impl Host for Idle {
    fn connect(&mut self, _port: u32) -> io::Result<StreamId> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn next_event(&mut self) -> Option<HostEvent> {
        None
    }

    fn taken(&mut self, _stream: StreamId, _port: u32) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _stream: StreamId, _to: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, _stream: StreamId, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }

    fn finish(&mut self, _stream: StreamId) {}

    fn close(&mut self, _stream: StreamId) {}
}
