//! The guest's memory: one file that is only memory, mapped once, shown to the guest in two pieces.
//!
//! ```text
//! guest address          file offset
//! 0 .. 3 GiB             0 .. 3 GiB
//! 3 GiB .. 4 GiB         -              the hole: device registers, interrupt controllers
//! 4 GiB .. 4 GiB + rest  3 GiB .. end
//! ```
//!
//! The memory is a file from the start and mapped shared, so that another process (a vhost back-end, a
//! snapshot's writer) can be given it. A clone of a snapshot maps the snapshot's file privately instead: it
//! reads the pages that all clones share and keeps the ones it writes.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::{Context, Error, Result};

/// Where the hole begins; memory up to here lies at the same address in the guest as in the file.
pub const HOLE_START: u64 = 3 << 30;
/// Where memory goes on behind the hole.
pub const HOLE_END: u64 = 4 << 30;
/// The least that a machine can have: the boot structures and a flat image need it.
pub const LEAST_BYTES: u64 = 1 << 20;
/// The most that a machine can have: the physical addresses that every x86-64 processor has, less the hole.
pub const MOST_BYTES: u64 = (1 << 36) - (1 << 30);
/// The size and alignment of a large page.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;

const PAGE_BYTES: u64 = 4096;

/// The guest's memory as the devices see it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// A wish for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// A multiple of 4096, or of 2 MiB with `hugepages`.
    pub size_bytes: u64,
    /// Take pages of 2 MiB from the host's reserved pool.
    pub hugepages: bool,
}

/// Memory that is there.
#[derive(Clone, Debug)]
pub struct Memory {
    map: Arc<GuestMemory>,
    file: Arc<File>,
    size_bytes: u64,
    /// The file holds what the guest has written, too.
    shared: bool,
}

/// One piece of memory: where the guest sees it, where it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// KVM's number of it.
    pub number: u32,
    /// Guest physical address of its first byte.
    pub guest: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// The pieces of a memory of this size.
pub fn slots(size_bytes: u64) -> Vec<Slot> {
    let low = size_bytes.min(HOLE_START);
    let mut slots = vec![Slot { number: 0, guest: 0, offset: 0, size_bytes: low }];
    if size_bytes > low {
        slots.push(Slot { number: 1, guest: HOLE_END, offset: low, size_bytes: size_bytes - low });
    }
    slots
}

impl Memory {
    /// Makes new memory, all zero. No page of it is taken before it is touched, except of the reserved pool.
    pub fn new(spec: MemorySpec) -> Result<Self> {
        let MemorySpec { size_bytes, hugepages } = spec;
        let unit = if hugepages { LARGE_PAGE_BYTES } else { PAGE_BYTES };
        if !(LEAST_BYTES..=MOST_BYTES).contains(&size_bytes) || !size_bytes.is_multiple_of(unit) {
            return Err(Error::new(format!(
                "the guest's memory of {size_bytes} bytes is not a multiple of {unit} between {LEAST_BYTES} \
                 and {MOST_BYTES}"
            )));
        }
        let host_bytes = host_bytes();
        if size_bytes > host_bytes {
            return Err(Error::new(format!(
                "the guest shall have {size_bytes} bytes of memory, and this host has {host_bytes} with its swap"
            ))
            .hint("give the guest less, for it would be killed as soon as it uses what it was told it has"));
        }
        let what = || format!("guest memory of {size_bytes} bytes");
        let file = match (hugepages, large_page_file()) {
            (false, Ok(file)) => file,
            _ => memory_file(hugepages, size_bytes).context(what)?,
        };
        if file.metadata().context(what)?.len() != size_bytes {
            file.set_len(size_bytes).context(what)?;
        }
        // Pages of the pool are claimed now: a machine that finds it empty later would be killed. Others are taken when
        // they are touched.
        let reserve = if hugepages { 0 } else { libc::MAP_NORESERVE };
        let map = map(&Arc::new(file), size_bytes, libc::MAP_SHARED | reserve);
        map.map_err(|error| {
            error.hint(if hugepages {
                "the host reserves pages of 2 MiB by /proc/sys/vm/nr_hugepages"
            } else {
                "the guest's memory, or the limit of this process's (ulimit -v), has to be another"
            })
        })
    }

    /// Maps a snapshot's memory file: pages that the guest writes become its own, the file stays as it is.
    pub fn private(file: File, size_bytes: u64) -> Result<Self> {
        map(&Arc::new(file), size_bytes, libc::MAP_PRIVATE | libc::MAP_NORESERVE)
    }

    /// The mapping, as devices and loaders use it.
    pub fn guest(&self) -> &Arc<GuestMemory> {
        &self.map
    }

    /// The file behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads what the guest has at an offset of the file; false, and nothing read, where it is known to be
    /// zero throughout. Takes no page that was not taken before.
    pub fn read_file(&self, offset: u64, to: &mut [u8]) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        if self.shared {
            let data = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset));
            if data.map_or_else(|errno| errno == rustix::io::Errno::NXIO, |at| at >= offset + to.len() as u64)
            {
                return Ok(false);
            }
            self.file.read_exact_at(to, offset)?;
            return Ok(true);
        }
        // The guest's own pages are in the mapping; reading the others takes those of the file.
        for slot in self.slots() {
            let (start, end) =
                (slot.offset.max(offset), (slot.offset + slot.size_bytes).min(offset + to.len() as u64));
            if start < end
                && let Some(part) = to.get_mut((start - offset) as usize..(end - offset) as usize)
            {
                let from = GuestAddress(slot.guest + (start - slot.offset));
                let read = self.map.read_slice(part, from);
                read.map_err(|error| Error::new(format!("reading guest memory: {error}")))?;
            }
        }
        Ok(true)
    }

    /// How much there is.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its pieces, as KVM is told them.
    pub fn slots(&self) -> Vec<Slot> {
        slots(self.size_bytes)
    }

    /// The address in this process at which a guest physical address lies; `None` outside of memory.
    pub fn host_address(&self, guest: u64) -> Option<u64> {
        self.map.get_host_address(GuestAddress(guest)).ok().map(|pointer| pointer as u64)
    }
}

/// All the memory that this host could ever give.
fn host_bytes() -> u64 {
    let host = rustix::system::sysinfo();
    // The types of these numbers differ between architectures.
    #[allow(clippy::useless_conversion, reason = "see above")]
    let (ram, swap) = (u64::from(host.totalram), u64::from(host.totalswap));
    ram.saturating_add(swap).saturating_mul(u64::from(host.mem_unit).max(1))
}

/// A file that is only memory, in which the kernel takes 2 MiB at once where it has them. A memory file proper
/// gets single pages on most hosts (`shmem_enabled` is `never`), and each page that the guest touches is then
/// an exit of its own: seven times as many in a boot. So the file lies on a tmpfs of its own, which nobody else
/// sees and which goes with it.
///
/// Fails without the privilege to mount, as in most sandboxes.
fn large_page_file() -> moat_linux::Result<File> {
    use moat_linux::mount::{FsContext, attr};
    let tmpfs = FsContext::open("tmpfs")?;
    tmpfs.set("huge", "always")?;
    tmpfs.set("mode", "0700")?;
    // The file is the limit.
    tmpfs.set("size", "0")?;
    let mount = tmpfs.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    moat_linux::fs::open_at(mount.as_fd(), std::path::Path::new("."), flags, 0o600).map(File::from)
}

/// A memory file, which cannot be shrunk beneath the mapping by whoever is given it.
fn memory_file(hugepages: bool, size_bytes: u64) -> Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = rustix::fs::memfd_create("guest-memory", flags)?;
    rustix::fs::ftruncate(&file, size_bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(file))
}

fn map(file: &Arc<File>, size_bytes: u64, flags: i32) -> Result<Memory> {
    let mut regions = Vec::new();
    for slot in slots(size_bytes) {
        let what = || format!("mapping {} bytes of guest memory at {:#x}", slot.size_bytes, slot.guest);
        let size = usize::try_from(slot.size_bytes).map_err(|_| Error::new(what()))?;
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .with_file_offset(FileOffset::from_arc(Arc::clone(file), slot.offset))
            .build()
            .map_err(|error| Error::new(error.to_string()))
            .context(what)?;
        let region = GuestRegionMmap::new(region, GuestAddress(slot.guest));
        regions.push(region.ok_or_else(|| Error::new(what()))?);
    }
    let map = GuestMemory::from_regions(regions).map_err(|error| Error::new(error.to_string()));
    Ok(Memory {
        map: Arc::new(map.context(|| "guest memory")?),
        file: Arc::clone(file),
        size_bytes,
        shared: flags & libc::MAP_SHARED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    #[test]
    fn memory_goes_on_behind_the_hole() {
        let memory = Memory::new(MemorySpec { size_bytes: HOLE_START + 4096, hugepages: false }).unwrap();
        memory.guest().write_slice(b"behind", GuestAddress(HOLE_END)).unwrap();
        let mut bytes = [0; 6];
        memory.file().read_exact_at(&mut bytes, HOLE_START).unwrap();
        assert_eq!(&bytes, b"behind");
        assert!(memory.guest().write_slice(b"x", GuestAddress(HOLE_START)).is_err());
        assert!(memory.guest().write_slice(b"x", GuestAddress(HOLE_END + 4096)).is_err());
        assert_eq!(memory.host_address(HOLE_START), None);
    }

    #[test]
    fn a_private_mapping_leaves_the_file_alone() {
        let first = Memory::new(MemorySpec { size_bytes: LEAST_BYTES, hugepages: false }).unwrap();
        first.guest().write_slice(b"first", GuestAddress(0)).unwrap();
        let second = Memory::private(first.file().try_clone().unwrap(), LEAST_BYTES).unwrap();
        second.guest().write_slice(b"other", GuestAddress(0)).unwrap();
        let mut bytes = [0; 5];
        first.guest().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert_eq!(&bytes, b"first");
    }

    #[test]
    fn sizes_that_are_no_memory_are_refused() {
        for size_bytes in [0, 4096, LEAST_BYTES + 1, MOST_BYTES + 4096] {
            let error = Memory::new(MemorySpec { size_bytes, hugepages: false }).unwrap_err();
            assert!(error.to_string().contains("is not a multiple of 4096"), "{error}");
        }
    }

    #[test]
    fn the_file_can_not_be_shrunk_beneath_the_mapping() {
        let file = memory_file(false, LEAST_BYTES).unwrap();
        let error = file.set_len(4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
