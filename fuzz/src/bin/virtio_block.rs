//! Any driver of the block device, over a disk in memory that does some things at once and some late; nothing
//! but whole sectors that are there is ever asked of it.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_linux::Errno;
use moat_vmm::virtio::block::{Block, BlockOptions, Disk, Done, Operation, SECTOR_BYTES};

const SIZE: u64 = 8192;

struct Ram {
    bytes: Vec<u8>,
    late: VecDeque<(u64, Operation)>,
    done: VecDeque<Done>,
    read_only: bool,
}

impl Ram {
    fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
        assert!(offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES));
        let end = offset.checked_add(length).expect("no operation overflows");
        assert!(end <= SIZE, "{end} is beyond the disk");
        offset as usize..end as usize
    }

    fn perform(&mut self, operation: &Operation) {
        match operation {
            Operation::Read { offset_bytes, buffers } => {
                let range = Self::range(*offset_bytes, buffers.len() as u64);
                buffers.fill(&self.bytes[range]).expect("buffers are in memory");
            }
            Operation::Write { offset_bytes, buffers, .. } => {
                assert!(!self.read_only);
                let range = Self::range(*offset_bytes, buffers.len() as u64);
                buffers.copy_to(&mut self.bytes[range]).expect("buffers are in memory");
            }
            Operation::Flush => {}
            Operation::Discard { offset_bytes, length_bytes }
            | Operation::Zero { offset_bytes, length_bytes, .. } => {
                assert!(!self.read_only);
                self.bytes[Self::range(*offset_bytes, *length_bytes)].fill(0);
            }
        }
    }
}

impl Disk for Ram {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        if tag % 3 == 0 {
            self.late.push_back((tag, operation));
        } else {
            self.perform(&operation);
            let result = if tag % 7 == 0 { Err(Errno::IO) } else { Ok(()) };
            self.done.push_back(Done { tag, result });
        }
    }

    fn commit(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), Errno> {
        if let Some((tag, operation)) = self.late.pop_front() {
            self.perform(&operation);
            self.done.push_back(Done { tag, result: Ok(()) });
        }
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let read_only = script.u8() % 4 == 0;
    let device = || {
        let disk =
            Ram { bytes: vec![1; SIZE as usize], late: VecDeque::new(), done: VecDeque::new(), read_only };
        Block::new(disk, BlockOptions { read_only, queues: 2, ..BlockOptions::default() })
    };
    play(script, device, |_| ());
});
