//! A guest that errs as fast as it can, so that logs or memory of the host fill up.
//!
//! A fault is a value of numbers, of which a device keeps the last one; so a million faults leave the memory
//! of the process where it was. The monitor prints them through a budget.

use moat_vmm::device::BusDevice;
use moat_vmm::virtio::{Fault, feature};

use super::devices;
use super::driver::{BUFFERS, Guest, readable, writable};

/// Resident memory in bytes.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn flood(rounds: u32) -> u64 {
    let mut faults = 0;
    for device in devices::all() {
        let mut guest = Guest::new(device);
        let features = guest.offered() & !feature::EVENT_IDX;
        for round in 0..rounds {
            guest.start(features);
            let queue = (round % guest.transport.lifecycle().queue_count() as u32) as u16;
            guest.offer(queue, 0xffff);
            guest.notify(queue);
            guest.transport.ready(0);
            faults += u64::from(guest.needs_reset());
            guest.start(features);
            guest.chain(queue, &[readable(BUFFERS, 64), writable(BUFFERS, 64)]);
            guest.notify(queue);
            guest.transport.write(u64::from(round) % 0x60, &[0xff; 4]);
        }
        assert!(matches!(guest.transport.take_fault(), None | Some(Fault::DescriptorIndex { .. })));
        assert_eq!(guest.transport.take_fault(), None);
    }
    faults
}

#[test]
fn a_million_errors_cost_no_memory() {
    flood(500);
    let before = resident_bytes();
    assert!(flood(20_000) > 40_000);
    let grown = resident_bytes().saturating_sub(before);
    // Five devices are made anew, each with its guest's memory; nothing grows with the rounds.
    assert!(grown < 2 << 20, "{grown} bytes more");
}
