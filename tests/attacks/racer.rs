//! A thread that keeps exchanging two names, as a container does with which a volume is shared.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Exchanges until it is dropped.
pub(crate) struct Racer {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    /// Exchanges `one` and `other`.
    pub(crate) fn new(one: PathBuf, other: PathBuf) -> Self {
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&turns));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                counts.fetch_add(1, Ordering::Relaxed);
            }
            // An even number of turns leaves the names as they were.
            if counts.load(Ordering::Relaxed) % 2 == 1 {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        Self { stop, turns, thread: Some(thread) }
    }

    /// How often the names were exchanged.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
