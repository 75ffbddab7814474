//! A descriptor whose buffer reaches beyond the guest's memory, or whose lengths overflow when they are added.
//!
//! Precedent: CVE-2019-18960, where the length of a descriptor let a device write beyond the guest's memory.

use moat_vmm::virtio::{Fault, feature};

use super::devices;
use super::driver::{BUFFERS, Guest, MEMORY_BYTES, WRITE, descriptors, readable, writable};

/// Places and lengths of which no part may be touched, because not all of it is there.
fn bad_buffers() -> Vec<(u64, u32)> {
    let mut bad = Vec::new();
    for length in [1, 2, 16, 4096, 1 << 20, 1 << 31, u32::MAX] {
        let at_end = MEMORY_BYTES - u64::from(length).min(MEMORY_BYTES) + 1;
        for address in [at_end, MEMORY_BYTES, 1 << 40, u64::MAX, u64::MAX - u64::from(length) + 1, 1 << 63] {
            bad.push((address, length));
        }
    }
    bad
}

#[test]
fn no_device_touches_a_buffer_that_is_not_all_there() {
    for number in 0..devices::all().len() {
        let device = || devices::all().remove(number);
        let queues = device().queue_sizes().len() as u16;
        for queue in 0..queues {
            let mut faults = 0;
            let mut guest = Guest::new(device());
            for (address, length) in bad_buffers() {
                for write in [false, true] {
                    let features = guest.offered();
                    guest.start(features);
                    guest.put(MEMORY_BYTES - 4096, &[0x11; 4096]);
                    let header = if write { readable(BUFFERS, 16) } else { readable(BUFFERS, 44) };
                    let part = if write {
                        writable(address, length as usize)
                    } else {
                        readable(address, length as usize)
                    };
                    guest.chain(queue, &[header, part, writable(BUFFERS, 1)]);
                    guest.notify(queue);
                    assert_eq!(guest.get(MEMORY_BYTES - 4096, 4096), [0x11; 4096]);
                    assert_eq!(guest.take_used(queue), []);
                    if let Some(fault) = guest.transport.take_fault() {
                        // The longest overflows with the other buffers before it is looked at.
                        let expected = Fault::Buffer { address, length_bytes: length };
                        assert!(fault == expected || fault == Fault::ChainBytes && length == u32::MAX);
                        faults += 1;
                    }
                }
            }
            // A device that had nothing to do with the chain has not looked at it.
            assert!(
                faults == bad_buffers().len() * 2 || faults == 0,
                "device {number}, queue {queue}: {faults}"
            );
        }
    }
}

#[test]
fn lengths_that_overflow_together_are_refused() {
    let mut guest = Guest::started(devices::all().remove(3), 0);
    // 64 buffers of 64 MiB do not fit in 32 bits; memory has 4 MiB, so each is refused for itself first.
    guest.chain(0, &[writable(0, 1 << 26)]);
    guest.notify(0);
    assert!(matches!(guest.transport.take_fault(), Some(Fault::Buffer { .. })));
    // Buffers may overlap, so their sum can overflow though each is there.
    let memory = std::sync::Arc::new(
        vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 31)]).unwrap(),
    );
    let mut guest = Guest::with_memory(devices::all().remove(3), memory);
    guest.start(feature::VERSION_1);
    guest.chain(0, &[writable(0x80_0000, 1 << 30); 4]);
    guest.notify(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::ChainBytes));
    guest.start(feature::VERSION_1);
    guest.chain(
        0,
        &[
            writable(0x80_0000, 1 << 30),
            writable(0x80_0000, 1 << 30),
            writable(0x80_0000, (1 << 31) - (1 << 24)),
        ],
    );
    guest.notify(0);
    assert_eq!((guest.transport.take_fault(), guest.take_used(0).len()), (None, 1));
}

#[test]
fn a_table_of_descriptors_that_is_not_there_is_not_read() {
    for (address, length) in
        [(MEMORY_BYTES - 16, 32), (u64::MAX - 15, 16), (MEMORY_BYTES, 16), (1 << 63, 1 << 20)]
    {
        let mut guest = Guest::started(devices::all().remove(3), feature::INDIRECT_DESC);
        guest.put(MEMORY_BYTES - 16, &[&BUFFERS.to_le_bytes()[..], &[1, 0, 0, 0], &[3, 0], &[1, 0]].concat());
        guest.write_descriptor(descriptors(0), 0, address, length, 4 | WRITE, 0);
        guest.offer(0, 0);
        guest.notify(0);
        assert!(matches!(guest.transport.take_fault(), Some(Fault::Buffer { .. })), "{address:#x}");
        assert_eq!(guest.take_used(0), []);
    }
}
