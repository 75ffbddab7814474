//! A reset while operations are in flight: what they write lands in memory that the guest uses for something
//! else by then.
//!
//! Precedent: CVE-2026-45782. The reset register is written while a disk works; when the write returns, no
//! operation may touch the guest's memory any more, and nothing of the old life shows up in the new one.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;

use moat_linux::Errno;
use moat_vmm::backend::UringDisk;
use moat_vmm::virtio::block::{Block, BlockOptions, Disk, Done, Operation, feature as block};
use moat_vmm::virtio::feature;
use moat_vmm::virtio::mmio::register;

use super::devices;
use super::driver::{BUFFERS, Guest, readable, writable};

const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1_0000;

/// A disk that does what it was asked only when it is waited for, in reverse order.
#[derive(Default)]
struct Slow {
    waiting: Vec<(u64, Operation)>,
    done: VecDeque<Done>,
}

impl Disk for Slow {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        self.waiting.push((tag, operation));
    }

    fn commit(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), Errno> {
        if let Some((tag, operation)) = self.waiting.pop() {
            if let Operation::Read { buffers, .. } = operation {
                buffers.fill(&vec![0xdd; buffers.len()]).unwrap();
            }
            self.done.push_back(Done { tag, result: Ok(()) });
        }
        Ok(())
    }
}

fn read_requests<D: Disk>(guest: &mut Guest<Block<D>>, count: u64) {
    guest.put(BUFFERS, &[0; 16]);
    for number in 0..count {
        let data = writable(DATA + number * 4096, 4096);
        guest.chain(0, &[readable(BUFFERS, 16), data, writable(STATUS + number, 1)]);
    }
    guest.notify(0);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let mut guest = Guest::started(Block::new(Slow::default(), BlockOptions::default()), block::FLUSH);
    read_requests(&mut guest, 20);
    assert_eq!(guest.take_used(0), []);
    guest.write(register::STATUS, 0);
    assert!(guest.transport.lifecycle().device().is_idle());
    // All was written before the reset was over.
    assert_eq!(guest.get(DATA, 20 * 4096), vec![0xdd; 20 * 4096]);
    guest.put(DATA, &[0; 20 * 4096]);
    guest.start(block::FLUSH | feature::VERSION_1);
    guest.transport.ready(0);
    assert_eq!(guest.take_used(0), []);
    assert_eq!(guest.get(DATA, 20 * 4096), vec![0; 20 * 4096]);
    read_requests(&mut guest, 1);
    guest.transport.drain();
    assert_eq!(guest.take_used(0).len(), 1);
}

#[test]
fn a_queue_that_is_stopped_waits_too() {
    let mut guest = Guest::started(Block::new(Slow::default(), BlockOptions::default()), block::FLUSH);
    read_requests(&mut guest, 20);
    guest.write(register::QUEUE_SEL, 0);
    guest.write(register::QUEUE_READY, 0);
    assert!(guest.transport.lifecycle().device().is_idle());
    assert_eq!(guest.take_used(0).len(), 20);
}

#[test]
fn a_driver_that_breaks_its_rings_is_waited_for_too() {
    let mut guest = Guest::started(Block::new(Slow::default(), BlockOptions::default()), block::FLUSH);
    read_requests(&mut guest, 20);
    guest.offer(0, 999);
    guest.notify(0);
    assert!(guest.needs_reset());
    guest.write(register::STATUS, 0);
    assert!(guest.transport.lifecycle().device().is_idle());
}

#[test]
fn the_same_chain_over_and_over_is_a_fault() {
    let mut guest = Guest::started(Block::new(Slow::default(), BlockOptions::default()), block::FLUSH);
    read_requests(&mut guest, 1);
    for _ in 0..300 {
        guest.offer(0, 0);
        guest.notify(0);
    }
    assert_eq!(guest.transport.take_fault(), Some(moat_vmm::virtio::Fault::InFlight { size: 256 }));
}

#[test]
fn nothing_is_written_after_a_reset_over_the_kernels_ring() {
    let file = devices::file(1 << 20);
    file.write_all_at(&[0xdd; 1 << 20], 0).unwrap();
    let disk = UringDisk::new(file).unwrap();
    let mut guest = Guest::started(Block::new(disk, BlockOptions::default()), block::FLUSH);
    for _ in 0..300 {
        read_requests(&mut guest, 20);
        guest.write(register::STATUS, 0);
        guest.put(DATA, &[0; 20 * 4096]);
        std::thread::yield_now();
        assert!(guest.get(DATA, 20 * 4096).iter().all(|byte| *byte == 0));
        guest.start(block::FLUSH | feature::VERSION_1);
    }
    // The machine may also go while its disk works.
    read_requests(&mut guest, 20);
    drop(guest);
}
