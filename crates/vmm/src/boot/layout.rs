//! Where things lie in the guest's memory before its first instruction, and which interrupt lines exist.
//!
//! ```text
//! 0x0500    global descriptor table          0x6000    PVH start info, module list, memory map
//! 0x7000    zero page of the Linux protocol  0x9000    page tables, 2 MiB pages over the first 4 GiB
//! 0x20000   command line                     0x9fc00   end of conventional memory
//! 0xe0000   ACPI tables, VM generation id    0x100000  the kernel
//! ```

/// The global descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// PVH: `hvm_start_info`.
pub(crate) const START_INFO: u64 = 0x6000;
/// PVH: the list of modules, which is the initial file system.
pub(crate) const MODULES: u64 = 0x6100;
/// PVH: the map of memory.
pub(crate) const MEMORY_MAP: u64 = 0x6200;
/// Linux: `boot_params`.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// The stack of the first instruction grows down from here.
pub(crate) const STACK: u64 = 0x8ff0;
/// The page tables: one PML4, one page directory pointer table, four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x20000;
/// How long it may be, with the zero byte.
pub(crate) const COMMAND_LINE_BYTES: usize = 0x1_0000;
/// The end of conventional memory.
pub(crate) const LOW_END: u64 = 0x9_fc00;
/// The ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// The VM generation id, 16 bytes in a page of its own.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where high memory starts, and kernels with it.
pub(crate) const HIGH_START: u64 = 0x10_0000;

/// The I/O APIC's registers.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC's registers.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// How many inputs the I/O APIC has.
pub const INTERRUPT_LINES: u32 = 24;
/// The input of the serial port.
pub const SERIAL_LINE: u32 = 4;
/// The input of the event device, which tells of a new generation id.
pub const EVENT_LINE: u32 = 5;
/// The first input for virtio devices.
pub const FIRST_VIRTIO_LINE: u32 = 6;

/// The registers of the first virtio device.
pub const VIRTIO: u64 = 0xd000_0000;
/// How far the windows of two virtio devices are apart.
pub const VIRTIO_BYTES: u64 = 0x1000;

/// The serial port COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// How many ports it has.
pub const SERIAL_PORTS: u16 = 8;
/// The keyboard controller's command port, whose only use is a reset.
pub const KEYBOARD_PORT: u16 = 0x60;
/// How many ports it has.
pub const KEYBOARD_PORTS: u16 = 5;
/// Sleep control, sleep status, reset, exit code; see `device::power`.
pub const POWER_PORT: u16 = 0x600;
/// How many ports it has.
pub const POWER_PORTS: u16 = 4;
