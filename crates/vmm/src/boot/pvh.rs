//! PVH: the guest gets a list of what there is, in Xen's form.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
};
use vm_memory::{Bytes, GuestAddress};

use super::{Initrd, Region, layout, regions};
use crate::memory::Memory;
use crate::{Error, Result};

/// Writes start info, module list and memory map.
pub(super) fn write(memory: &Memory, initrd: Option<Initrd>, root_pointer: u64) -> Result<()> {
    let regions = regions(memory.size_bytes());
    let mut info = Vec::new();
    for number in [XEN_HVM_START_MAGIC_VALUE, 1, 0, u32::from(initrd.is_some())] {
        info.extend_from_slice(&number.to_le_bytes());
    }
    let modules = initrd.map_or(0, |_| layout::MODULES);
    for address in [modules, layout::COMMAND_LINE, root_pointer, layout::MEMORY_MAP] {
        info.extend_from_slice(&address.to_le_bytes());
    }
    info.extend_from_slice(&(regions.len() as u32).to_le_bytes());
    info.extend_from_slice(&0_u32.to_le_bytes());
    put(memory, layout::START_INFO, &info)?;
    if let Some(Initrd { address, size }) = initrd {
        let entry = [address, size, 0, 0].map(u64::to_le_bytes);
        put(memory, layout::MODULES, entry.as_flattened())?;
    }
    let mut map = Vec::new();
    for Region { start, size, usable } in regions {
        map.extend_from_slice(&start.to_le_bytes());
        map.extend_from_slice(&size.to_le_bytes());
        let kind = if usable { XEN_HVM_MEMMAP_TYPE_RAM } else { XEN_HVM_MEMMAP_TYPE_RESERVED };
        map.extend_from_slice(&u64::from(kind).to_le_bytes());
    }
    put(memory, layout::MEMORY_MAP, &map)
}

fn put(memory: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
    let written = memory.guest().write_slice(bytes, GuestAddress(at));
    written.map_err(|error| Error::new(format!("PVH structure at {at:#x}: {error}")))
}
