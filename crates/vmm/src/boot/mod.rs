//! From files to a guest that is ready for its first instruction.
//!
//! Three kinds of kernel: an ELF file with a PVH note starts in 32-bit mode with a list of what there is;
//! one without, and a bzImage, start by Linux's 64-bit protocol; a flat image starts in real or 64-bit mode
//! with nothing but itself.

pub(crate) mod acpi;
pub mod layout;
mod linux;
mod pvh;
mod registers;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

pub(crate) use acpi::{Hardware, RESET_VALUE};
pub use registers::Entry;

use crate::memory::{HOLE_END, HOLE_START, Memory};
use crate::{Context, Error, Result};

/// A kernel as its file shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An uncompressed 64-bit ELF file, vmlinux.
    Elf,
    /// A compressed kernel with its own loader, as distributions ship it.
    BzImage,
}

/// What is booted: files that are open already.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    pub(crate) kernel: &'a mut File,
    pub(crate) initrd: Option<&'a mut File>,
    pub(crate) command_line: &'a str,
}

/// A piece of the map of memory that the guest is given.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    size: u64,
    usable: bool,
}

/// Where the initial file system lies.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    address: u64,
    size: u64,
}

/// Tells what a file is by its first bytes.
pub fn format(kernel: &File) -> Result<Format> {
    let mut head = [0; 0x206];
    let size = kernel.read_at(&mut head, 0)?;
    match (head.get(..4), head.get(0x202..0x206)) {
        (Some(b"\x7fELF"), _) => Ok(Format::Elf),
        (_, Some(b"HdrS")) if size == head.len() => Ok(Format::BzImage),
        _ => Err(Error::new("this is no kernel: neither an ELF file nor a bzImage")
            .hint("give a vmlinux or a distribution's vmlinuz for x86-64")),
    }
}

/// Loads kernel, initial file system, command line and tables.
pub(crate) fn load(memory: &Memory, payload: Payload<'_>, hardware: Hardware) -> Result<Entry> {
    let format = format(payload.kernel)?;
    let guest = &**memory.guest();
    let root_pointer = acpi::write(guest, hardware)?;
    let high = Some(GuestAddress(layout::HIGH_START));
    let loaded = match format {
        Format::Elf => Elf::load(guest, None, payload.kernel, high),
        Format::BzImage => BzImage::load(guest, None, payload.kernel, high),
    };
    let size_bytes = memory.size_bytes();
    let loaded = loaded.map_err(|error| {
        Error::new(format!("it does not load into {} MiB of memory: {error}", size_bytes >> 20))
            .hint("it may need more memory, or be damaged")
    })?;
    let header = loaded.setup_header.unwrap_or_default();
    // A compressed kernel unpacks itself behind its image.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    let kernel_end = loaded.kernel_end.max(unpacked);
    if kernel_end > size_bytes.min(HOLE_START) {
        let (need, have) = (kernel_end.div_ceil(1 << 20), size_bytes >> 20);
        return Err(Error::new(format!("the kernel needs {need} MiB, and there are {have} MiB of memory"))
            .hint("give it more with --memory"));
    }
    let initrd = match payload.initrd {
        Some(file) => Some(load_initrd(memory, file, kernel_end, &header)?),
        None => None,
    };
    write_command_line(memory, payload.command_line)?;
    match (loaded.pvh_boot_cap, format) {
        (PvhBootCapability::PvhEntryPresent(address), Format::Elf) => {
            pvh::write(memory, initrd, root_pointer)?;
            let address =
                u32::try_from(address.0).map_err(|_| Error::new("its PVH entry is beyond 4 GiB"))?;
            Ok(Entry::Protected { address, start_info: layout::START_INFO as u32 })
        }
        (_, Format::Elf) => {
            linux::write(memory, setup_header::default(), initrd, root_pointer)?;
            Ok(Entry::Long { address: loaded.kernel_load.0, zero_page: layout::ZERO_PAGE })
        }
        (_, Format::BzImage) => {
            linux::check(&header)?;
            linux::write(memory, header, initrd, root_pointer)?;
            let address = loaded.kernel_load.0 + linux::ENTRY_64;
            Ok(Entry::Long { address, zero_page: layout::ZERO_PAGE })
        }
    }
}

/// As high as it may lie, so that the kernel does not unpack over it.
fn load_initrd(memory: &Memory, file: &mut File, kernel_end: u64, header: &setup_header) -> Result<Initrd> {
    const PAGE: u64 = 4096;
    let size = file.metadata().context(|| "initial file system")?.len();
    let mut top = memory.size_bytes().min(HOLE_START);
    if header.initrd_addr_max != 0 {
        top = top.min(u64::from(header.initrd_addr_max) + 1);
    }
    let address = top.checked_sub(size).map_or(0, |address| address / PAGE * PAGE);
    if address < kernel_end {
        let (size, left) = (size.div_ceil(1 << 20), top.saturating_sub(kernel_end) >> 20);
        return Err(Error::new(format!(
            "the initial file system has {size} MiB, and beside the kernel {left} MiB of memory are left"
        ))
        .hint("give it more with --memory"));
    }
    let count = usize::try_from(size).map_err(|_| Error::new("the initial file system is too large"))?;
    let read = memory.guest().read_exact_volatile_from(GuestAddress(address), file, count);
    read.map_err(|error| Error::new(format!("reading the initial file system: {error}")))?;
    Ok(Initrd { address, size })
}

fn write_command_line(memory: &Memory, line: &str) -> Result<()> {
    if line.len() >= layout::COMMAND_LINE_BYTES || line.contains('\0') {
        return Err(Error::new(format!(
            "the command line of {} bytes is longer than {} or holds a zero byte",
            line.len(),
            layout::COMMAND_LINE_BYTES - 1
        )));
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    let written = memory.guest().write_slice(&bytes, GuestAddress(layout::COMMAND_LINE));
    written.map_err(|error| Error::new(format!("writing the command line: {error}")))
}

/// The map: conventional memory, the reserved rest of the first MiB, high memory up to and behind the hole.
fn regions(size_bytes: u64) -> Vec<Region> {
    let low_end = size_bytes.min(HOLE_START);
    let mut regions = vec![
        Region { start: 0, size: layout::LOW_END, usable: true },
        Region { start: layout::LOW_END, size: layout::HIGH_START - layout::LOW_END, usable: false },
        Region { start: layout::HIGH_START, size: low_end - layout::HIGH_START, usable: true },
    ];
    if size_bytes > HOLE_START {
        regions.push(Region { start: HOLE_END, size: size_bytes - HOLE_START, usable: true });
    }
    regions
}

/// Loads a flat image: bytes that are code from the first on.
pub fn load_flat(memory: &Memory, image: &mut impl Read, entry: Entry) -> Result<Entry> {
    let mut bytes = Vec::new();
    image.take(memory.size_bytes() + 1).read_to_end(&mut bytes).context(|| "flat image")?;
    let address = match entry {
        Entry::Real { address } => u64::from(address),
        Entry::Protected { address, .. } => u64::from(address),
        Entry::Long { address, .. } => address,
    };
    let written = memory.guest().write_slice(&bytes, GuestAddress(address));
    written.map_err(|_| {
        let size_bytes = memory.size_bytes();
        Error::new(format!("the flat image does not fit at {address:#x} into {size_bytes} bytes of memory"))
            .hint("give it more with --memory")
    })?;
    Ok(entry)
}
