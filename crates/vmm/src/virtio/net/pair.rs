//! One receive queue and one transmit queue over one link.

use std::io::ErrorKind;
use std::time::Instant;

use super::link::Link;
use super::{HEADER_BYTES, LONGEST_BYTES, feature};
use crate::rate_limit::RateLimit;
use crate::virtio::chain::Chain;
use crate::virtio::{Fault, Io};

/// Where the header says over how many buffers a packet is spread.
const NUM_BUFFERS: usize = 10;
/// How many packets one call receives before others have their turn.
const TURN: u32 = 512;

/// How a device limits what passes.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    pub(super) received: RateLimit,
    pub(super) sent: RateLimit,
}

/// What did not arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// From the network, because the guest's buffers were too small.
    pub received: u64,
    /// From the guest, because it was too short or too long, or the network refused it.
    pub sent: u64,
}

/// The pair.
pub(super) struct Pair<L> {
    pub(super) link: L,
    receive_queue: u16,
    /// A packet on its way to the guest.
    packet: Box<[u8]>,
    /// Its length; 0 when there is none.
    held: usize,
    /// It has paid its rate.
    paid: bool,
    chains: Vec<Chain>,
}

impl<L: Link> Pair<L> {
    pub(super) fn new(link: L, number: u16) -> Self {
        let packet = vec![0; LONGEST_BYTES].into_boxed_slice();
        Self { link, receive_queue: number * 2, packet, held: 0, paid: false, chains: Vec::new() }
    }

    fn transmit_queue(&self) -> u16 {
        self.receive_queue + 1
    }

    /// Forgets the driver.
    pub(super) fn reset(&mut self) {
        self.held = 0;
        self.chains.clear();
    }

    /// Moves packets from the link to the guest, until one of the two has no more.
    pub(super) fn receive(
        &mut self,
        io: &mut Io<'_>,
        limits: &mut Limits,
        lost: &mut Lost,
    ) -> Result<(), Fault> {
        if !io.is_ready(self.receive_queue) {
            return Ok(());
        }
        let now = Instant::now();
        for turn in 0.. {
            if turn == TURN {
                io.again();
                break;
            }
            if self.held == 0 && !self.fetch() {
                break;
            }
            self.paid = self.paid || limits.received.take(now, self.held as u64);
            if !self.paid || !self.deliver(io, lost)? {
                break;
            }
            self.held = 0;
        }
        io.signal(self.receive_queue)
    }

    /// Receives the next packet; false if there is none.
    fn fetch(&mut self) -> bool {
        loop {
            match self.link.receive(&mut self.packet) {
                Ok(length) if length > HEADER_BYTES => {
                    self.held = length.min(self.packet.len());
                    self.paid = false;
                    return true;
                }
                // Nothing behind the header: not a packet.
                Ok(length) if length > 0 => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // None now, or none ever: the network is gone.
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// Puts the packet into the guest's buffers; false if there are not enough yet.
    fn deliver(&mut self, io: &mut Io<'_>, lost: &mut Lost) -> Result<bool, Fault> {
        let merge = io.has(feature::MRG_RXBUF);
        let mut room = 0;
        while room < self.held {
            let Some(chain) = io.pop(self.receive_queue)? else {
                self.put_back(io);
                return Ok(false);
            };
            let writable = chain.writable_bytes();
            if writable < HEADER_BYTES && self.chains.is_empty() {
                return Err(Fault::Short("the header of a packet"));
            }
            room += writable;
            self.chains.push(chain);
            // Section 5.1.6.4: without merging, one buffer is all that a packet gets.
            if !merge && room < self.held {
                self.put_back(io);
                lost.received += 1;
                return Ok(true);
            }
        }
        // No queue is longer than 2^15.
        let count = self.chains.len() as u16;
        self.packet[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.packet[..self.held];
        let mut used = Vec::with_capacity(self.chains.len());
        for chain in self.chains.drain(..) {
            let mut writer = chain.writer(io.memory());
            let written = writer.write(rest)?;
            rest = &rest[written..];
            used.push((chain.head(), writer.written()));
        }
        // The driver must see all parts of a packet at once.
        io.complete_all(self.receive_queue, &used)?;
        Ok(true)
    }

    fn put_back(&mut self, io: &mut Io<'_>) {
        for _ in self.chains.drain(..) {
            io.unpop(self.receive_queue);
        }
    }

    /// Moves packets from the guest to the link, until the guest has no more or the link takes none.
    pub(super) fn transmit(
        &mut self,
        io: &mut Io<'_>,
        limits: &mut Limits,
        lost: &mut Lost,
    ) -> Result<(), Fault> {
        let queue = self.transmit_queue();
        let now = Instant::now();
        while let Some(chain) = io.pop(queue)? {
            let length = chain.readable_bytes();
            if !limits.sent.take(now, length as u64) {
                io.unpop(queue);
                break;
            }
            if length <= HEADER_BYTES || length > LONGEST_BYTES {
                lost.sent += 1;
            } else {
                let parts = chain.reader(io.memory()).io()?;
                match self.link.send(&parts) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        io.unpop(queue);
                        break;
                    }
                    Err(_) => lost.sent += 1,
                }
            }
            io.complete(queue, chain.head(), 0)?;
        }
        io.signal(queue)
    }
}
