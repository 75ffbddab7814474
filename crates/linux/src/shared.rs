//! A page that a process shares with the children it forks.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Result, named};

/// A row of counters in memory that forked children share with their parent.
///
/// The child tells how long each step took without a system call of its own.
#[derive(Debug)]
pub struct Counters {
    start: NonNull<AtomicU64>,
    count: usize,
}

impl Counters {
    /// mmap(2) of `count` counters, all zero.
    pub fn new(count: usize) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let bytes = count.max(1) * size_of::<AtomicU64>();
        // SAFETY: a new anonymous mapping overlaps nothing.
        let mapped = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        };
        let start = named(mapped, "mmap", || format!("{bytes} bytes, MAP_SHARED|MAP_ANONYMOUS"))?;
        let start = NonNull::new(start.cast()).unwrap_or(NonNull::dangling());
        Ok(Self { start, count })
    }

    /// Stores one counter; an index that does not exist is left out.
    pub fn set(&self, index: usize, value: u64) {
        if let Some(counter) = self.at(index) {
            counter.store(value, Ordering::Release);
        }
    }

    /// One counter, 0 for an index that does not exist.
    pub fn get(&self, index: usize) -> u64 {
        self.at(index).map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    fn at(&self, index: usize) -> Option<&AtomicU64> {
        // SAFETY: the index is within the mapping, which is aligned to a page, zeroed, and lives as long as self.
        (index < self.count).then(|| unsafe { self.start.add(index).as_ref() })
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        let bytes = self.count.max(1) * size_of::<AtomicU64>();
        // SAFETY: this is the mapping that `new` made, and nothing borrows it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
