//! One device of each type, each with a back-end that is there.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use moat_vmm::backend::{FileDisk, OsEntropy, UnixVsock};
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::virtio::VirtioDevice;
use moat_vmm::virtio::block::{Block, BlockOptions};
use moat_vmm::virtio::console::{Console, PortOptions};
use moat_vmm::virtio::net::{Net, NetOptions};
use moat_vmm::virtio::rng::Rng;
use moat_vmm::virtio::vsock::Vsock;
use rustix::fs::MemfdFlags;

use crate::idle::Idle;

#[allow(dead_code, reason = "several test programs use parts of this")]
pub(crate) fn file(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// A path in the folder for temporary files that nobody else has.
pub(crate) fn path(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    std::env::temp_dir().join(format!("moat-attack-{}-{number}-{name}", std::process::id()))
}

pub(crate) fn all() -> Vec<Box<dyn VirtioDevice>> {
    let block = Block::new(
        FileDisk::new(file(1 << 20)).unwrap(),
        BlockOptions { queues: 2, ..BlockOptions::default() },
    );
    let ports = [("", true), ("second", false)];
    let ports =
        ports.map(|(name, console)| (Idle::default(), PortOptions { name: name.to_owned(), console }));
    vec![
        Box::new(block),
        Box::new(Net::new([Idle::default(), Idle::default()], NetOptions::default())),
        Box::new(Console::new(ports)),
        Box::new(Rng::new(OsEntropy, RateLimit::none())),
        Box::new(Vsock::new(UnixVsock::bind(&path("vsock")).unwrap(), 3)),
    ]
}
