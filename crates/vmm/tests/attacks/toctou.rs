//! A guest that changes what a device has already checked.
//!
//! A thread, as a second vCPU, flips the header of a block request, the descriptors and the available ring
//! while the device reads them. Whatever the device sees, it sees once: a write that was let through lands
//! where it was let through, so the guarded half of the disk stays as it was, and guarded memory, too.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use moat_vmm::backend::FileDisk;
use moat_vmm::virtio::block::{Block, BlockOptions, feature as block};
use moat_vmm::virtio::feature;
use vm_memory::{Bytes, GuestAddress};

use super::devices;
use super::driver::{BUFFERS, Guest, MEMORY_BYTES, descriptors, readable, writable};

const SECTORS: u64 = 128;
const STATUS: u64 = BUFFERS + 0x2000;
const DATA: u64 = BUFFERS + 0x1000;

#[test]
fn a_header_that_is_flipped_is_seen_once() {
    let file = devices::file(SECTORS * 512);
    let disk = FileDisk::new(file.try_clone().unwrap()).unwrap();
    let mut guest =
        Guest::started(Block::new(disk, BlockOptions::default()), block::FLUSH | feature::INDIRECT_DESC);
    // Behind what the device may write lie guards.
    guest.put(BUFFERS + 0x8000, &[0x77; 4096]);
    let stop = Arc::new(AtomicBool::new(false));
    let flipper = {
        let (memory, stop) = (Arc::clone(&guest.memory), Arc::clone(&stop));
        std::thread::spawn(move || {
            let put = |address: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address)).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // The last sector that is there, and one far beyond.
                put(BUFFERS + 8, &(SECTORS - 1).to_le_bytes());
                put(BUFFERS + 8, &(1_u64 << 54).to_le_bytes());
                // Read or write.
                put(BUFFERS, &[0, 0, 0, 0]);
                put(BUFFERS, &[1, 0, 0, 0]);
                // The length of the data: a sector, or far too much; its place: memory, or none.
                put(descriptors(0) + 16 + 8, &u32::MAX.to_le_bytes());
                put(descriptors(0) + 16 + 8, &512_u32.to_le_bytes());
                put(descriptors(0) + 16, &(MEMORY_BYTES - 1).to_le_bytes());
                put(descriptors(0) + 16, &DATA.to_le_bytes());
                // And the chain: a loop, or not.
                put(descriptors(0) + 16 + 14, &[1, 0]);
                put(descriptors(0) + 16 + 14, &[2, 0]);
            }
        })
    };
    let (mut done, mut refused, mut faults) = (0, 0, 0);
    for _ in 0..20_000 {
        guest.chain(0, &[readable(BUFFERS, 16), readable(DATA, 512), writable(STATUS, 1)]);
        guest.notify(0);
        match guest.take_used(0)[..] {
            [_] if guest.get(STATUS, 1) == [0] => done += 1,
            [_] => refused += 1,
            _ => {
                assert!(guest.needs_reset());
                faults += 1;
            }
        }
        guest.start(block::FLUSH | feature::INDIRECT_DESC | feature::VERSION_1);
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
    assert!(done > 0 && refused > 0 && faults > 0, "{done} {refused} {faults}");
    let mut disk = vec![1; (SECTORS as usize - 1) * 512];
    file.read_exact_at(&mut disk, 0).unwrap();
    assert!(disk.iter().all(|byte| *byte == 0), "a write went where none was let through");
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(guest.get(BUFFERS + 0x8000, 4096), [0x77; 4096]);
}
