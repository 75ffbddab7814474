//! The network card, section 5.1.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use moat_linux::iov::{self, IoBuffer};
use moat_vmm::rate_limit::{RateLimit, RateLimitSpec};
use moat_vmm::virtio::net::{HEADER_BYTES, Link, Net, NetOptions, Offloads, feature};
use moat_vmm::virtio::{Fault, TIMER, VirtioDevice, feature as common};

use super::driver::{BUFFERS, Guest, readable, writable};

/// A network in memory.
#[derive(Clone, Default)]
struct Cable(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
    offloads: Offloads,
    enabled: bool,
    full: bool,
}

impl Link for Cable {
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let packet = self.0.lock().unwrap().incoming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let length = packet.len().min(to.len());
        to[..length].copy_from_slice(&packet[..length]);
        Ok(length)
    }

    fn send(&mut self, parts: &[IoBuffer<'_>]) -> io::Result<()> {
        let mut ends = self.0.lock().unwrap();
        if ends.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Through the kernel, as a tap would.
        let file = moat_linux::fs::memfd("packet").unwrap();
        let length = iov::write(file.as_fd(), parts)?;
        let mut packet = vec![0; length];
        rustix::io::pread(&file, &mut packet, 0)?;
        ends.outgoing.push(packet);
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.0.lock().unwrap().offloads = offloads;
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.0.lock().unwrap().enabled = enabled;
        Ok(())
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn options() -> NetOptions {
    NetOptions { mac: MAC, ..NetOptions::default() }
}

fn guest(features: u64) -> (Guest<Net<Cable>>, Cable) {
    let cable = Cable::default();
    (Guest::started(Net::new([cable.clone()], options()), features), cable)
}

/// A packet with its header, of which the network fills in all but the number of buffers.
fn packet(length: usize, byte: u8) -> Vec<u8> {
    let mut packet = vec![0xee; HEADER_BYTES];
    packet.resize(HEADER_BYTES + length, byte);
    packet
}

/// Section 5.1.6.2: what the driver sends arrives whole, in order, with its header.
#[test]
fn packets_are_sent() {
    let (mut guest, cable) = guest(0);
    guest.put(BUFFERS, &packet(100, 1));
    assert_eq!(guest.ask(1, &[readable(BUFFERS, 12), readable(BUFFERS + 12, 100)]), 0);
    assert_eq!(guest.ask(1, &[readable(BUFFERS, 50), readable(BUFFERS + 50, 10)]), 0);
    assert_eq!(cable.0.lock().unwrap().outgoing, [packet(100, 1), packet(48, 1)]);
}

/// Section 5.1.6.2: what is no packet is not sent, and the buffer is returned.
#[test]
fn what_is_no_packet_is_lost() {
    let (mut guest, cable) = guest(0);
    for length in [0, 1, 11, 12, 70_000] {
        guest.ask(1, &[readable(BUFFERS, length)]);
    }
    assert!(cable.0.lock().unwrap().outgoing.is_empty());
    assert_eq!(guest.transport.lifecycle().device().lost().sent, 5);
}

/// Section 5.1.6.4.1: without merged buffers a packet gets one, and num_buffers is 1.
#[test]
fn packets_are_received() {
    let (mut guest, cable) = guest(0);
    cable.0.lock().unwrap().incoming.push_back(packet(100, 1));
    let head = guest.chain(0, &[writable(BUFFERS, 12), writable(BUFFERS + 100, 1514)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(head, 112)]);
    assert_eq!(guest.get(BUFFERS + 10, 2), [1, 0]);
    assert_eq!(guest.get(BUFFERS + 100, 101), [&[1; 100][..], &[0]].concat());
    // One that does not fit is lost, and the buffer waits for the next.
    cable.0.lock().unwrap().incoming.extend([packet(2000, 2), packet(10, 3)]);
    guest.chain(0, &[writable(BUFFERS, 1526)]);
    guest.transport.ready(0);
    assert_eq!(guest.take_used(0)[0].1, 22);
    assert_eq!(guest.transport.lifecycle().device().lost().received, 1);
}

/// Section 5.1.6.4: a packet that comes before there is a buffer waits for one.
#[test]
fn a_packet_waits_for_a_buffer() {
    let (mut guest, cable) = guest(feature::MRG_RXBUF);
    cable.0.lock().unwrap().incoming.extend([packet(100, 1), packet(100, 2)]);
    guest.transport.ready(0);
    // 60 bytes do not do, and stay available.
    guest.chain(0, &[writable(BUFFERS, 60)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), []);
    guest.chain(0, &[writable(BUFFERS + 60, 60)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(0, 60), (1, 52)]);
    assert_eq!(guest.get(BUFFERS + 10, 3), [2, 0, 1]);
    guest.chain(0, &[writable(BUFFERS, 4096)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(2, 112)]);
    assert_eq!(guest.get(BUFFERS + 10, 3), [1, 0, 2]);
}

/// Section 5.1.6.4.1: with merged buffers num_buffers is how many, of which all but the last are full.
#[test]
fn a_large_packet_is_spread() {
    let (mut guest, cable) = guest(feature::MRG_RXBUF);
    let large = packet(65_000, 9);
    cable.0.lock().unwrap().incoming.push_back(large.clone());
    for number in 0..64 {
        guest.chain(0, &[writable(BUFFERS + number * 1536, 1526)]);
    }
    guest.notify(0);
    let used = guest.take_used(0);
    assert_eq!(used.len(), (large.len()).div_ceil(1526));
    assert_eq!(u16::from_le_bytes(guest.get(BUFFERS + 10, 2).try_into().unwrap()), used.len() as u16);
    let (last, full) = used.split_last().unwrap();
    assert!(full.iter().all(|(_, length)| *length == 1526));
    assert_eq!(full.len() * 1526 + last.1 as usize, large.len());
    let mut got: Vec<u8> = used
        .iter()
        .flat_map(|(head, length)| guest.get(BUFFERS + u64::from(*head) * 1536, *length as usize))
        .collect();
    got[10..12].copy_from_slice(&[0xee; 2]);
    assert!(got == large);
}

/// Section 5.1.6.3.2 (5.1.6.4): a buffer that can not hold a header is no buffer.
#[test]
fn a_buffer_without_room_for_the_header_is_a_fault() {
    for (features, parts) in [(0, writable(BUFFERS, 11)), (feature::MRG_RXBUF, writable(BUFFERS, 0))] {
        let (mut guest, cable) = guest(features);
        cable.0.lock().unwrap().incoming.push_back(packet(100, 1));
        guest.chain(0, &[parts]);
        guest.notify(0);
        assert!(guest.needs_reset());
        assert_eq!(guest.transport.take_fault(), Some(Fault::Short("the header of a packet")));
    }
}

/// Section 5.1.3.1: features that need others.
#[test]
fn features_that_need_others_are_not_accepted_alone() {
    let (mut guest, _) = guest(0);
    let bad = [
        feature::GUEST_TSO4,
        feature::GUEST_TSO6,
        feature::GUEST_CSUM | feature::GUEST_ECN,
        feature::HOST_TSO4,
        feature::HOST_TSO6,
        feature::CSUM | feature::HOST_ECN,
    ];
    for features in bad {
        assert!(!guest.negotiate(features | common::VERSION_1), "{features:#x}");
    }
    let all = guest.offered();
    assert!(guest.negotiate(all));
    assert!(guest.negotiate(feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN | common::VERSION_1));
}

/// Section 5.1.6.4: the network is told which offloads the driver takes, and no others.
#[test]
fn offloads_are_those_that_were_negotiated() {
    let (_, cable) = guest(feature::GUEST_CSUM | feature::GUEST_TSO4);
    let expected = Offloads { checksum: true, tso4: true, ..Offloads::default() };
    assert_eq!(cable.0.lock().unwrap().offloads, expected);
    let (_, cable) = guest(feature::CSUM);
    assert_eq!(cable.0.lock().unwrap().offloads, Offloads::default());
}

/// Section 5.1.4: address and MTU.
#[test]
fn the_configuration_has_address_and_mtu() {
    let (mut plain, _) = guest(0);
    assert_eq!(plain.config(0), MAC);
    assert_eq!(plain.offered() & feature::MTU, 0);
    let net = Net::new([Cable::default(), Cable::default()], NetOptions { mtu: 9000, ..options() });
    let mut many = Guest::new(net);
    assert_eq!(many.offered() & (feature::MTU | feature::MQ), feature::MTU | feature::MQ);
    assert_eq!(many.config(8), [2, 0, 0x28, 0x23]);
}

fn command(guest: &mut Guest<Net<Cable>>, queue: u16, bytes: &[u8]) -> u8 {
    guest.put(BUFFERS, bytes);
    guest.put(BUFFERS + 64, &[0xff]);
    assert_eq!(guest.ask(queue, &[readable(BUFFERS, bytes.len()), writable(BUFFERS + 64, 1)]), 1);
    guest.get(BUFFERS + 64, 1)[0]
}

/// Section 5.1.6.5.5: only pairs that the driver uses receive; at first that is one; a number of pairs
/// that can not be is refused.
#[test]
fn queue_pairs_are_used_when_asked() {
    let cables = [Cable::default(), Cable::default(), Cable::default()];
    let net = Net::new(cables.clone(), options());
    let mut guest = Guest::started(net, feature::MQ | feature::CTRL_VQ);
    let enabled = || cables.each_ref().map(|cable| cable.0.lock().unwrap().enabled);
    assert_eq!(enabled(), [true, false, false]);
    for pair in 0..3_u16 {
        guest.chain(pair * 2, &[writable(BUFFERS + 0x1000, 1526)]);
        cables[usize::from(pair)].0.lock().unwrap().incoming.push_back(packet(60, 1));
        guest.transport.ready(pair.into());
    }
    assert_eq!([0, 2, 4].map(|queue| guest.take_used(queue).len()), [1, 0, 0]);
    assert_eq!(command(&mut guest, 6, &[4, 0, 2, 0]), 0);
    assert_eq!(enabled(), [true, true, false]);
    guest.transport.ready(1);
    guest.transport.ready(2);
    assert_eq!([2, 4].map(|queue| guest.take_used(queue).len()), [1, 0]);
    for bad in [
        &[4, 0, 0, 0][..],
        &[4, 0, 4, 0],
        &[4, 0, 1, 1],
        &[4, 1, 1, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[9, 9],
        &[],
    ] {
        assert_eq!(command(&mut guest, 6, bad), 1, "{bad:?}");
    }
    assert_eq!(enabled(), [true, true, false]);
    // A reset is back to one.
    guest.start(feature::MQ | feature::CTRL_VQ | common::VERSION_1);
    assert_eq!(enabled(), [true, false, false]);
}

/// Section 5.1.2: without MQ the control queue is the third.
#[test]
fn without_many_queues_the_control_queue_is_the_third() {
    let net = Net::new([Cable::default(), Cable::default()], options());
    let mut guest = Guest::started(net, feature::CTRL_VQ);
    assert_eq!(command(&mut guest, 2, &[4, 0, 1, 0]), 1);
}

/// A network that takes no more makes packets wait, in order.
#[test]
fn a_full_network_makes_packets_wait() {
    let (mut guest, cable) = guest(0);
    cable.0.lock().unwrap().full = true;
    guest.put(BUFFERS, &packet(100, 1));
    guest.chain(1, &[readable(BUFFERS, 50)]);
    guest.chain(1, &[readable(BUFFERS, 60)]);
    guest.notify(1);
    assert_eq!(guest.take_used(1), []);
    cable.0.lock().unwrap().full = false;
    guest.transport.ready(0);
    assert_eq!(guest.take_used(1), [(0, 0), (1, 0)]);
    let lengths: Vec<_> = cable.0.lock().unwrap().outgoing.iter().map(Vec::len).collect();
    assert_eq!(lengths, [50, 60]);
}

/// Limits make packets wait, each direction for itself.
#[test]
fn limits_make_packets_wait() {
    let limit = || RateLimit::new(RateLimitSpec { bytes_per_s: 0, operations_per_s: 100, burst_ms: 10 });
    let cable = Cable::default();
    let options = NetOptions { received: limit(), sent: limit(), ..options() };
    let mut guest = Guest::started(Net::new([cable.clone()], options), 0);
    cable.0.lock().unwrap().incoming.extend([packet(100, 1), packet(100, 2)]);
    for _ in 0..2 {
        guest.chain(0, &[writable(BUFFERS, 1526)]);
        guest.chain(1, &[readable(BUFFERS, 100)]);
    }
    guest.notify(0);
    guest.notify(1);
    assert_eq!((guest.take_used(0).len(), guest.take_used(1).len()), (1, 1));
    let (mut received, mut sent) = (1, 1);
    while let Some(at) = guest.transport.wake_at() {
        std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
        guest.transport.ready(TIMER);
        received += guest.take_used(0).len();
        sent += guest.take_used(1).len();
    }
    assert_eq!((received, sent), (2, 2));
}

/// A state says how many pairs the driver uses; more than there are do not fit.
#[test]
fn a_state_fits_its_network() {
    let many = Net::new([Cable::default(), Cable::default()], options());
    let mut guest = Guest::started(many, feature::MQ | feature::CTRL_VQ);
    assert_eq!(command(&mut guest, 4, &[4, 0, 2, 0]), 0);
    let state = guest.transport.lifecycle().device().save();
    let mut one = Net::new([Cable::default()], options());
    assert!(one.restore(&state).is_err());
    let cables = [Cable::default(), Cable::default()];
    let mut two = Guest::with_memory(Net::new(cables.clone(), options()), guest.memory.clone());
    let state = guest.transport.save();
    two.transport.restore(&state).unwrap();
    two.transport.resume();
    assert!(cables[1].0.lock().unwrap().enabled);
}
