//! What a network card needs of the network.

use std::io;

use moat_linux::iov::IoBuffer;

/// What a receiver of packets can take as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets without a checksum.
    pub checksum: bool,
    /// TCP over IPv4, larger than the MTU.
    pub tso4: bool,
    /// TCP over IPv6, larger than the MTU.
    pub tso6: bool,
    /// Such with congestion marks.
    pub ecn: bool,
}

/// One pair of queues of a network: every packet begins with a virtio header of
/// [`HEADER_BYTES`](super::HEADER_BYTES). Never blocks: what would is `WouldBlock`.
pub trait Link: Send {
    /// Receives one packet, cut if `to` is too short; returns its length with the header.
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize>;

    /// Sends one packet. An error other than `WouldBlock` means that it is lost.
    fn send(&mut self, parts: &[IoBuffer<'_>]) -> io::Result<()>;

    /// Says what the guest takes; the same for all pairs.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Says whether the guest uses this pair. A link starts enabled.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()>;
}

impl Link for Box<dyn Link> {
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        (**self).receive(to)
    }

    fn send(&mut self, parts: &[IoBuffer<'_>]) -> io::Result<()> {
        (**self).send(parts)
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        (**self).set_offloads(offloads)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        (**self).set_enabled(enabled)
    }
}
