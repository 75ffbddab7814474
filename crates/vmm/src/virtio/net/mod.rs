//! The network card (section 5.1): packets with checksum and segmentation offloads, merged receive buffers,
//! and several queue pairs with a control queue.
//!
//! Packets pass with their virtio header, which the network behind [`Link`] (a tap) reads and writes itself;
//! the card only fills in over how many buffers a packet is spread.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::pair::{Limits, Pair};
use super::{DeviceState, DeviceType, Fault, Io, StateError, TIMER, VirtioDevice, read_space};
use crate::rate_limit::{RateLimit, RateLimitState};

mod link;
mod pair;

pub use link::{Link, Offloads};
pub use pair::Lost;

/// Size of the header in front of every packet.
pub const HEADER_BYTES: usize = 12;
/// The longest packet, with its header: 64 KiB of IP in an Ethernet frame with a VLAN tag.
pub const LONGEST_BYTES: usize = HEADER_BYTES + 18 + 65_535;
/// The most queue pairs that a device has.
pub const MOST_PAIRS: u16 = 16;

const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;

/// Feature bits (section 5.1.3).
pub mod feature {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
}

/// Which feature needs one of which others (section 5.1.3.1).
const NEEDS: [(u64, u64); 7] = [
    (feature::GUEST_TSO4, feature::GUEST_CSUM),
    (feature::GUEST_TSO6, feature::GUEST_CSUM),
    (feature::GUEST_ECN, feature::GUEST_TSO4 | feature::GUEST_TSO6),
    (feature::HOST_TSO4, feature::CSUM),
    (feature::HOST_TSO6, feature::CSUM),
    (feature::HOST_ECN, feature::HOST_TSO4 | feature::HOST_TSO6),
    (feature::MQ, feature::CTRL_VQ),
];

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: [u8; 2] = [4, 0];
const ACK_OK: u8 = 0;
const ACK_ERROR: u8 = 1;

/// What a network card is like.
#[derive(Clone, Debug, Default)]
pub struct NetOptions {
    /// The card's address.
    pub mac: [u8; 6],
    /// The longest packet that the network carries, without Ethernet's header; 0 says nothing about it.
    pub mtu: u16,
    /// How much may come in.
    pub received: RateLimit,
    /// How much may go out.
    pub sent: RateLimit,
}

/// What survives a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The card's address, which the guest has read.
    pub mac: [u8; 6],
    /// How many pairs the driver uses.
    pub active_pairs: u16,
    /// The budget of what comes in.
    pub received: RateLimitState,
    /// The budget of what goes out.
    pub sent: RateLimitState,
}

/// The device.
pub struct Net<L> {
    pairs: Vec<Pair<L>>,
    mac: [u8; 6],
    mtu: u16,
    limits: Limits,
    queue_sizes: Vec<u16>,
    active_pairs: u16,
    lost: Lost,
}

impl<L: Link> Net<L> {
    /// A card with one queue pair for each of `links`, of which those beyond [`MOST_PAIRS`] are not used.
    pub fn new(links: impl IntoIterator<Item = L>, options: NetOptions) -> Self {
        let pairs: Vec<_> =
            links.into_iter().zip(0..MOST_PAIRS).map(|(link, number)| Pair::new(link, number)).collect();
        let mut queue_sizes = vec![QUEUE_SIZE; pairs.len() * 2];
        queue_sizes.push(CONTROL_SIZE);
        let NetOptions { mac, mtu, received, sent } = options;
        let limits = Limits { received, sent };
        Self { pairs, mac, mtu, limits, queue_sizes, active_pairs: 1, lost: Lost::default() }
    }

    /// How many packets did not arrive.
    pub fn lost(&self) -> Lost {
        self.lost
    }

    /// Which queue is the control queue: the one behind those of the pairs that can be used.
    fn control_queue(&self, io: &Io<'_>) -> u16 {
        if io.has(feature::MQ) { self.pairs.len() as u16 * 2 } else { 2 }
    }

    fn serve_pair(&mut self, number: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        let Some(pair) = self.pairs.get_mut(usize::from(number)) else { return Ok(()) };
        // Section 5.1.6.5.5: nothing is received on pairs that the driver does not use.
        if number < self.active_pairs {
            pair.receive(io, &mut self.limits, &mut self.lost)?;
        }
        if number == 0 || io.has(feature::MQ) {
            pair.transmit(io, &mut self.limits, &mut self.lost)?;
        }
        Ok(())
    }

    fn serve_all(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.control(io)?;
        (0..self.pairs.len() as u16).try_for_each(|number| self.serve_pair(number, io))
    }

    /// Takes commands (section 5.1.6.5).
    fn control(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        if !io.has(feature::CTRL_VQ) {
            return Ok(());
        }
        let queue = self.control_queue(io);
        while let Some(chain) = io.pop(queue)? {
            let mut command = [0; 4];
            let length = chain.reader(io.memory()).read(&mut command)?;
            let [class, kind, low, high] = command;
            let pairs = u16::from_le_bytes([low, high]);
            let known = length == 4 && chain.readable_bytes() == 4 && [class, kind] == SET_PAIRS;
            let done = known
                && io.has(feature::MQ)
                && (1..=self.pairs.len() as u16).contains(&pairs)
                && self.use_pairs(pairs);
            let ack = if done { ACK_OK } else { ACK_ERROR };
            chain.writer(io.memory()).write_all(&[ack], "the answer to a command")?;
            io.complete(queue, chain.head(), 1)?;
        }
        io.signal(queue)
    }

    /// Uses the first `count` pairs; false if the network can not.
    fn use_pairs(&mut self, count: u16) -> bool {
        self.active_pairs = count;
        if self.pairs.len() == 1 {
            return true;
        }
        let set = |(pair, number): (&mut Pair<L>, u16)| pair.link.set_enabled(number < count).is_ok();
        self.pairs.iter_mut().zip(0..).all(set)
    }

    fn set_offloads(&mut self, features: u64) -> Result<(), Fault> {
        let has = |wanted| features & wanted != 0;
        let offloads = Offloads {
            checksum: has(feature::GUEST_CSUM),
            tso4: has(feature::GUEST_TSO4),
            tso6: has(feature::GUEST_TSO6),
            ecn: has(feature::GUEST_ECN),
        };
        let set = |pair: &mut Pair<L>| pair.link.set_offloads(offloads);
        let done: Result<(), _> = self.pairs.iter_mut().try_for_each(set);
        done.map_err(|_| Fault::Protocol("the network can not do the negotiated offloads"))
    }

    fn config(&self) -> [u8; 12] {
        let [m0, m1, m2, m3, m4, m5] = self.mac;
        let [p0, p1] = (self.pairs.len() as u16).to_le_bytes();
        let [t0, t1] = self.mtu.to_le_bytes();
        // The link is up, which is what a driver assumes that is not told.
        [m0, m1, m2, m3, m4, m5, 1, 0, p0, p1, t0, t1]
    }
}

impl<L: Link> VirtioDevice for Net<L> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu == 0 { 0 } else { feature::MTU };
        let many = if self.pairs.len() > 1 { feature::MQ } else { 0 };
        let offloads = feature::CSUM
            | feature::GUEST_CSUM
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN;
        offloads | feature::MAC | feature::MRG_RXBUF | feature::CTRL_VQ | mtu | many
    }

    fn accepts(&self, features: u64) -> bool {
        NEEDS.iter().all(|(feature, needed)| features & feature == 0 || features & needed != 0)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.set_offloads(io.features())?;
        if !self.use_pairs(self.active_pairs) {
            return Err(Fault::Protocol("the network does not give its queues"));
        }
        self.serve_all(io)
    }

    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        if queue == self.control_queue(io) { self.control(io) } else { self.serve_pair(queue / 2, io) }
    }

    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        match u16::try_from(token) {
            Ok(number) => self.serve_pair(number, io),
            Err(_) if token == TIMER => {
                self.limits.received.wake_no_more();
                self.limits.sent.wake_no_more();
                self.serve_all(io)
            }
            Err(_) => Ok(()),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let times = [self.limits.received.wake_at(), self.limits.sent.wake_at()];
        times.into_iter().flatten().min()
    }

    fn reset(&mut self) {
        self.pairs.iter_mut().for_each(Pair::reset);
        self.active_pairs = 1;
        self.limits.received.wake_no_more();
        self.limits.sent.wake_no_more();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            mac: self.mac,
            active_pairs: self.active_pairs,
            received: self.limits.received.save(),
            sent: self.limits.sent.save(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else { return Err(StateError::Type(self.device_type())) };
        if !(1..=self.pairs.len() as u16).contains(&state.active_pairs) {
            return Err(StateError::Mismatch("its driver uses more queue pairs than there are"));
        }
        self.mac = state.mac;
        self.active_pairs = state.active_pairs;
        self.limits.received.restore(&state.received);
        self.limits.sent.restore(&state.sent);
        Ok(())
    }
}
