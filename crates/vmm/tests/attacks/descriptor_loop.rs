//! Descriptors that lead back to themselves, so that a device walks for ever.

use moat_vmm::virtio::{Fault, feature};

use super::devices;
use super::driver::{BUFFERS, Guest, INDIRECT, NEXT, WRITE, descriptors};

#[test]
fn a_loop_ends_at_the_size_of_the_queue() {
    for number in 0..devices::all().len() {
        let sizes = devices::all().remove(number).queue_sizes().to_vec();
        for (queue, size) in sizes.iter().enumerate() {
            let queue = queue as u16;
            // The first is its own next; two are each other's; the last of all leads to the first.
            for turn in [1, 2, *size] {
                let mut guest = Guest::new(devices::all().remove(number));
                let features = guest.offered();
                guest.start(features);
                for index in 0..turn {
                    let next = (index + 1) % turn;
                    guest.write_descriptor(descriptors(queue), index, BUFFERS, 1, WRITE | NEXT, next);
                }
                guest.offer(queue, 0);
                guest.notify(queue);
                assert_eq!(guest.take_used(queue), []);
                let fault = guest.transport.take_fault();
                // A receive queue with nothing to receive has not been looked at.
                assert!(fault.is_none() || fault == Some(Fault::ChainLength { size: *size }), "{fault:?}");
                assert_eq!(fault.is_some(), guest.needs_reset());
            }
        }
    }
}

#[test]
fn an_indirect_table_does_not_make_a_chain_longer() {
    let table = BUFFERS + 0x1_0000;
    let mut guest = Guest::started(devices::all().remove(3), feature::INDIRECT_DESC);
    for index in 0..1000 {
        guest.write_descriptor(table, index, BUFFERS, 1, WRITE | NEXT, index + 1);
    }
    guest.write_descriptor(descriptors(0), 0, table, 16 * 1000, INDIRECT, 0);
    guest.offer(0, 0);
    guest.notify(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::ChainLength { size: 64 }));
    // As long as the queue is right.
    guest.start(feature::INDIRECT_DESC | feature::VERSION_1);
    guest.write_descriptor(table, 63, BUFFERS, 1, WRITE, 0);
    guest.write_descriptor(descriptors(0), 0, table, 16 * 1000, INDIRECT, 0);
    guest.offer(0, 0);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(0, 64)]);
    // A next beyond the table.
    guest.write_descriptor(table, 0, BUFFERS, 1, WRITE | NEXT, 2);
    guest.write_descriptor(descriptors(0), 0, table, 32, INDIRECT, 0);
    guest.offer(0, 0);
    guest.notify(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::DescriptorIndex { index: 2, size: 2 }));
}

#[test]
fn an_available_index_that_jumps_is_a_fault() {
    let mut guest = Guest::started(devices::all().remove(3), 0);
    guest.put16(super::driver::available(0) + 2, 65);
    guest.notify(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::AvailableIndex { moved: 65, size: 64 }));
    guest.start(feature::VERSION_1);
    guest.put16(super::driver::available(0) + 2, u16::MAX);
    guest.notify(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::AvailableIndex { moved: u16::MAX, size: 64 }));
}
