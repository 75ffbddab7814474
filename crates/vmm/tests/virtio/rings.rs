//! The split virtqueue: descriptors, the available ring, the used ring, and who notifies whom.

use moat_vmm::rate_limit::RateLimit;
use moat_vmm::virtio::mmio::register;
use moat_vmm::virtio::rng::{Entropy, Rng};
use moat_vmm::virtio::{Fault, feature};

use super::driver::{
    BUFFERS, Guest, INDIRECT, MEMORY_BYTES, NEXT, WRITE, available, descriptors, readable, used, writable,
};
use super::probe::Probe;

/// Random bytes that can be recognised.
struct Fives;

impl Entropy for Fives {
    fn fill(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        to.fill(5);
        Ok(())
    }
}

fn rng(features: u64) -> Guest<Rng<Fives>> {
    Guest::started(Rng::new(Fives, RateLimit::none()), features)
}

fn fault(guest: &mut Guest<Rng<Fives>>) -> Fault {
    guest.notify(0);
    assert!(guest.needs_reset());
    assert_eq!(guest.take_used(0), []);
    guest.transport.take_fault().unwrap()
}

/// Section 2.7.5: a chain is its descriptors' buffers in their order, and the device writes no others.
#[test]
fn a_chain_is_written_in_its_order_and_nothing_else_is() {
    let mut guest = rng(0);
    guest.put(BUFFERS, &[1; 64]);
    let length = guest.ask(0, &[writable(BUFFERS + 8, 3), writable(BUFFERS, 2), writable(BUFFERS + 20, 1)]);
    assert_eq!(length, 6);
    let expected = [5, 5, 1, 1, 1, 1, 1, 1, 5, 5, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 1];
    assert_eq!(guest.get(BUFFERS, 22), expected);
}

/// Section 2.7.4.2: device-readable buffers come first; the device does not write to them.
#[test]
fn a_readable_buffer_is_not_written() {
    let mut guest = rng(0);
    assert_eq!(guest.ask(0, &[readable(BUFFERS, 4), writable(BUFFERS + 8, 4)]), 4);
    assert_eq!(guest.get(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5]);
    guest.chain(0, &[writable(BUFFERS, 4), readable(BUFFERS, 4)]);
    assert_eq!(fault(&mut guest), Fault::Order);
}

/// Section 2.7.5.3: indirect tables, alone or behind direct descriptors, and the write-only flag of the
/// descriptor that leads to one means nothing.
#[test]
fn an_indirect_table_is_followed() {
    let table = BUFFERS + 0x1000;
    for flags in [INDIRECT, INDIRECT | WRITE] {
        let mut guest = rng(feature::INDIRECT_DESC);
        guest.write_descriptor(table, 0, BUFFERS, 2, WRITE | NEXT, 2);
        guest.write_descriptor(table, 2, BUFFERS + 4, 2, WRITE, 0);
        guest.write_descriptor(descriptors(0), 0, table, 48, flags, 0);
        guest.offer(0, 0);
        guest.notify(0);
        assert_eq!(guest.take_used(0), [(0, 4)]);
        // Behind a direct one.
        guest.write_descriptor(descriptors(0), 1, BUFFERS + 8, 3, WRITE | NEXT, 0);
        guest.offer(0, 1);
        guest.notify(0);
        assert_eq!(guest.take_used(0), [(1, 7)]);
    }
}

/// Section 2.7.5.3.1: what an indirect descriptor must not be.
#[test]
fn an_indirect_table_that_can_not_be_is_refused() {
    let table = BUFFERS + 0x1000;
    let cases: [(u64, u32, u16, &str); 5] = [
        (feature::INDIRECT_DESC, 16, INDIRECT | NEXT, "has a next one"),
        (feature::INDIRECT_DESC, 0, INDIRECT, "is not whole descriptors long"),
        (feature::INDIRECT_DESC, 17, INDIRECT, "is not whole descriptors long"),
        (feature::INDIRECT_DESC, 32, INDIRECT, "stands in an indirect table"),
        (0, 16, INDIRECT, "was not negotiated"),
    ];
    for (features, length, flags, why) in cases {
        let mut guest = rng(features);
        let inner = if length == 32 { INDIRECT } else { WRITE };
        guest.write_descriptor(table, 0, BUFFERS, 16, inner, 0);
        guest.write_descriptor(descriptors(0), 0, table, length, flags, 0);
        guest.offer(0, 0);
        assert_eq!(fault(&mut guest), Fault::Indirect(why));
    }
    let mut guest = rng(feature::INDIRECT_DESC);
    guest.write_descriptor(descriptors(0), 0, MEMORY_BYTES - 8, 16, INDIRECT, 0);
    guest.offer(0, 0);
    assert!(matches!(fault(&mut guest), Fault::Buffer { .. }));
}

/// Section 2.7.13.3 (2.7.6): several chains are taken in the order in which they were made available, and
/// the indices wrap.
#[test]
fn indices_wrap() {
    let mut guest = rng(feature::EVENT_IDX);
    for round in 0..70_000_u32 {
        let parts = [writable(BUFFERS + u64::from(round % 7), 1 + (round % 3) as usize)];
        assert_eq!(guest.ask(0, &parts), 1 + round % 3);
    }
    assert_eq!(guest.get16(used(0) + 2), 70_000_u32 as u16);
}

/// Section 2.7.8.2: the used length is what was written.
#[test]
fn the_used_length_is_what_was_written() {
    let mut guest = rng(0);
    assert_eq!(guest.ask(0, &[writable(BUFFERS, 100_000)]), 4096);
    assert_eq!(guest.ask(0, &[readable(BUFFERS, 10)]), 0);
    assert_eq!(guest.ask(0, &[writable(BUFFERS, 0), writable(BUFFERS, 1)]), 1);
}

/// Section 2.7.7.2: without EVENT_IDX the driver's flag suppresses interrupts.
#[test]
fn a_flag_suppresses_interrupts() {
    let mut guest = rng(0);
    guest.ask(0, &[writable(BUFFERS, 1)]);
    assert_eq!(guest.line.take(), 1);
    guest.put16(available(0), 1);
    guest.ask(0, &[writable(BUFFERS, 1)]);
    assert_eq!(guest.line.take(), 0);
    guest.put16(available(0), 0);
    guest.ask(0, &[writable(BUFFERS, 1)]);
    assert_eq!(guest.line.take(), 1);
}

/// Section 2.7.7.2: with EVENT_IDX the flag means nothing, and used_event says when to interrupt.
#[test]
fn an_index_says_when_to_interrupt() {
    let mut guest = rng(feature::EVENT_IDX);
    let event = available(0) + 4 + 64 * 2;
    guest.put16(available(0), 1);
    guest.put16(event, 2);
    for expected in [0, 0, 1, 0, 0] {
        guest.ask(0, &[writable(BUFFERS, 1)]);
        assert_eq!(guest.line.take(), expected);
    }
    // Passed in a batch.
    guest.put16(event, 6);
    for _ in 0..4 {
        guest.chain(0, &[writable(BUFFERS, 1)]);
    }
    guest.notify(0);
    assert_eq!((guest.take_used(0).len(), guest.line.take()), (4, 1));
}

/// Section 2.7.10.1: with EVENT_IDX the device says by avail_event when it wants to be notified: of the
/// next chain. Without, its flags stay 0, so it is notified always.
#[test]
fn the_device_asks_for_the_next_notification() {
    let mut guest = rng(feature::EVENT_IDX);
    let event = used(0) + 4 + 64 * 8;
    for round in 1..5 {
        guest.ask(0, &[writable(BUFFERS, 1)]);
        assert_eq!((guest.get16(event), guest.get16(used(0))), (round, 0));
    }
    let mut guest = rng(0);
    guest.ask(0, &[writable(BUFFERS, 1)]);
    assert_eq!((guest.get16(event), guest.get16(used(0))), (0, 0));
}

/// Section 2.7.1: a size smaller than the largest is used as set.
#[test]
fn a_smaller_queue_wraps_where_it_ends() {
    let mut guest = Guest::new(Rng::new(Fives, RateLimit::none()));
    assert!(guest.negotiate(feature::VERSION_1));
    guest.set_queue(0, 2);
    guest.set_status(15);
    for _ in 0..10 {
        assert_eq!(guest.ask(0, &[writable(BUFFERS, 1)]), 1);
    }
    guest.write(register::QUEUE_SEL, 0);
    assert_eq!(guest.read(register::QUEUE_NUM_MAX), 64);
}

/// A notification of a queue that does not exist or is not ready is none.
#[test]
fn a_notification_of_nothing_is_nothing() {
    let mut guest = Guest::new(Probe::new());
    assert!(guest.negotiate(feature::VERSION_1));
    guest.set_queue(0, 8);
    guest.set_status(15);
    let before = guest.transport.lifecycle().device().told.lock().unwrap().len();
    for queue in [1, 2, 3, 4, 0xffff, 0x1_0000, u32::MAX] {
        guest.write(register::QUEUE_NOTIFY, queue);
    }
    assert_eq!(guest.transport.lifecycle().device().told.lock().unwrap().len(), before);
}
