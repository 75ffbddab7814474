//! Linux's own boot protocol, entered in 64-bit mode: the "zero page" tells what there is.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{Initrd, Region, layout, regions};
use crate::memory::Memory;
use crate::{Error, Result};

/// Where the 64-bit entry lies behind the start of a compressed kernel.
pub(super) const ENTRY_64: u64 = 0x200;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first version of the protocol with `xloadflags`.
const VERSION_64: u16 = 0x020c;
const KERNEL_64: u16 = 1;
/// "A loader without a number."
const LOADER: u8 = 0xff;
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// Whether a compressed kernel can be entered in 64-bit mode.
pub(super) fn check(header: &setup_header) -> Result<()> {
    let (version, flags) = (header.version, header.xloadflags);
    if version < VERSION_64 || flags & KERNEL_64 == 0 {
        return Err(Error::new(format!(
            "this bzImage (boot protocol {}.{}) has no 64-bit entry",
            version >> 8,
            version & 0xff
        ))
        .hint("give a kernel for x86-64, Linux 3.8 or newer"));
    }
    Ok(())
}

/// Writes the zero page. An ELF kernel has no header of its own; it gets the fields that it reads.
pub(super) fn write(
    memory: &Memory,
    header: setup_header,
    initrd: Option<Initrd>,
    root_pointer: u64,
) -> Result<()> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: root_pointer, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = layout::COMMAND_LINE_BYTES as u32;
    if let Some(Initrd { address, size }) = initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
        params.ext_ramdisk_image = (address >> 32) as u32;
        params.ext_ramdisk_size = (size >> 32) as u32;
    }
    let mut count = 0;
    let mut table = params.e820_table;
    for (entry, Region { start, size, usable }) in table.iter_mut().zip(regions(memory.size_bytes())) {
        *entry = boot_e820_entry { addr: start, size, r#type: if usable { USABLE } else { RESERVED } };
        count += 1;
    }
    params.e820_table = table;
    params.e820_entries = count;
    let written = memory.guest().write_slice(params.as_slice(), GuestAddress(layout::ZERO_PAGE));
    written.map_err(|error| Error::new(format!("the zero page: {error}")))
}
