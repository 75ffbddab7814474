//! Snapshots: a paused machine as two files in a folder of its own, from which any number of clones start.
//!
//! | file | what |
//! |---|---|
//! | `state` | magic, version, length, SHA-256; then the state of processors, devices and chips |
//! | `memory` | the guest's memory, sparse: at each offset what lies there, holes where it is zero |
//!
//! A clone maps `memory` privately, so all clones share the pages that none of them writes. The state says
//! for each 2 MiB of memory what its sum is; they are checked before the guest goes on. The state's own sum
//! is keyed (HMAC) where a key is given, and then nobody without it can make a snapshot that is accepted:
//! the sums of the memory are part of what it covers.

mod format;
mod pages;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_model::vmm::MachineSpec;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use format::{decode, encode};
pub(crate) use pages::Sums;

use crate::device::serial::SerialState;
use crate::kvm::{ChipState, ClockState, VcpuState};
use crate::memory::Memory;
use crate::virtio::mmio::TransportState;
use crate::{Context, Error, Result};

/// The name of the file with the state.
const STATE: &str = "state";
/// The name of the file with the memory.
const MEMORY: &str = "memory";

/// The saved state of a machine, all but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// What it was made from, as JSON.
    pub(crate) spec: String,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) chips: ChipState,
    pub(crate) clock: ClockState,
    pub(crate) virtio: Vec<TransportState>,
    pub(crate) serial: Option<SerialState>,
    pub(crate) memory: Sums,
}

impl MachineState {
    /// What the machine was made from.
    pub fn spec(&self) -> Result<MachineSpec> {
        serde_json::from_str(&self.spec)
            .map_err(|error| Error::new(format!("the machine's specification: {error}")))
    }
}

/// A key that authenticates snapshots.
pub type Key = [u8; 32];

/// Reads a key: a file of exactly 32 bytes.
pub fn read_key(name: &str) -> Result<Key> {
    let what = || format!("key {name}");
    let mut bytes = Vec::new();
    crate::machine::files::open("key", name)?.take(33).read_to_end(&mut bytes).context(what)?;
    Key::try_from(bytes.as_slice()).map_err(|_| Error::new("it is not 32 bytes long")).context(what)
}

/// Where a machine puts its snapshots: a folder that was opened before the guest began.
#[derive(Debug)]
pub struct Shelf {
    folder: OwnedFd,
    key: Option<Key>,
}

impl Shelf {
    /// Snapshots go into subfolders of this folder.
    pub fn new(folder: OwnedFd, key: Option<Key>) -> Self {
        Self { folder, key }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Writes a snapshot under a new name. A failed one leaves nothing behind.
    pub(crate) fn write(&self, name: &str, mut state: MachineState, memory: &Memory) -> Result<()> {
        let what = || format!("snapshot {name:?}");
        let letters = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(letters) {
            return Err(Error::new("a name has letters, digits, `-`, `_` and `.`, 64 at most")).context(what);
        }
        rustix::fs::mkdirat(&self.folder, name, Mode::from_raw_mode(0o700)).context(what)?;
        let written = self.fill(name, &mut state, memory);
        if written.is_err() {
            self.remove(name);
        }
        written.context(what)
    }

    fn fill(&self, name: &str, state: &mut MachineState, memory: &Memory) -> Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        let file = create(folder.as_fd(), MEMORY)?;
        state.memory = pages::write(memory, &file, Sums::none(self.key.is_some()))?;
        let mut file = create(folder.as_fd(), STATE)?;
        file.write_all(&encode(state, self.key.as_ref())?)?;
        Ok(())
    }

    fn remove(&self, name: &str) {
        // Best effort: the error that brought us here is the one to tell.
        if let Ok(folder) =
            rustix::fs::openat(&self.folder, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        {
            for file in [STATE, MEMORY] {
                let _ = rustix::fs::unlinkat(&folder, file, rustix::fs::AtFlags::empty());
            }
        }
        let _ = rustix::fs::unlinkat(&self.folder, name, rustix::fs::AtFlags::REMOVEDIR);
    }
}

fn create(folder: BorrowedFd<'_>, name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)).context(|| name)?;
    Ok(File::from(fd))
}

/// When the memory's sums are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Before the guest goes on.
    First,
    /// While it runs; a wrong one ends it. For snapshots that nobody else can write to, where the sums only
    /// find what a disk has lost.
    Late,
}

/// A snapshot that was opened.
#[derive(Debug)]
pub struct Saved {
    /// The state, whose sum was right.
    pub state: MachineState,
    /// The memory, mapped privately.
    pub memory: Memory,
    /// What is still to be checked.
    pub(crate) late: Option<LateCheck>,
}

/// The memory's file and its sums.
#[derive(Debug)]
pub(crate) struct LateCheck {
    file: File,
    size_bytes: u64,
    sums: Sums,
    authenticated: bool,
}

impl LateCheck {
    /// Whether each sum is right.
    pub(crate) fn run(&self) -> Result<()> {
        pages::check(&self.file, self.size_bytes, &self.sums, self.authenticated)
            .context(|| "its file memory")
    }
}

/// Opens a snapshot and checks it: the state's sum and version at once, the memory's sums when it is said.
pub fn open(folder: &OwnedFd, key: Option<&Key>, when: Check) -> Result<Saved> {
    const MOST_STATE_BYTES: u64 = 16 << 20;
    let file = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        rustix::fs::openat(folder, name, flags, Mode::empty())
            .map(File::from)
            .context(|| format!("its file {name}"))
    };
    let mut bytes = Vec::new();
    file(STATE)?.take(MOST_STATE_BYTES).read_to_end(&mut bytes).context(|| "its file state")?;
    let mut state = decode(&bytes, key)?;
    let size_bytes = state.spec()?.memory_bytes;
    let memory = file(MEMORY)?;
    if memory.metadata().context(|| "its file memory")?.len() != size_bytes {
        return Err(Error::new(format!(
            "its file memory is not {size_bytes} bytes long, as the guest's memory was"
        )));
    }
    let sums = std::mem::take(&mut state.memory);
    let clone = memory.try_clone().context(|| "its file memory")?;
    let check = LateCheck { file: clone, size_bytes, sums, authenticated: key.is_some() };
    let late = match when {
        Check::First => {
            check.run()?;
            None
        }
        Check::Late => Some(check),
    };
    Ok(Saved { state, memory: Memory::private(memory, size_bytes)?, late })
}
