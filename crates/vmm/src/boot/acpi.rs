//! ACPI: how an unmodified kernel learns what there is. The tables say "hardware-reduced": no legacy
//! interrupt controller, no legacy timer, no keyboard, so the kernel looks for none of them.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::memory::GuestMemory;
use crate::{Error, Result};

const OEM: [u8; 6] = *b"MOAT  ";
const TABLE: [u8; 8] = *b"MOATVMM ";
const REVISION: u32 = 1;

/// "No VGA, no clock in CMOS", and of what a PC could have none is said to be there.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;
/// The value that the reset register takes.
pub(crate) const RESET_VALUE: u8 = 1;

/// What the tables tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardware {
    pub(crate) cpus: u8,
    /// How many virtio devices there are, one window and one line each, in order.
    pub(crate) virtio_devices: u8,
    pub(crate) serial: bool,
}

/// Writes all tables; returns the address of the root pointer.
pub(crate) fn write(memory: &GuestMemory, hardware: Hardware) -> Result<u64> {
    let mut writer = Writer { memory, next: layout::ACPI + Rsdp::len().next_multiple_of(16) as u64 };
    let dsdt = writer.table(&bytes(&dsdt(hardware)))?;
    let fadt = writer.table(&bytes(&fadt(dsdt)))?;
    let madt = writer.table(&bytes(&madt(hardware.cpus)))?;
    let mut root = XSDT::new(OEM, TABLE, REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let xsdt = writer.table(&bytes(&root))?;
    put(memory, layout::ACPI, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(layout::ACPI)
}

struct Writer<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Writer<'_> {
    fn table(&mut self, table: &[u8]) -> Result<u64> {
        let at = self.next;
        self.next = (at + table.len() as u64).next_multiple_of(16);
        if self.next > layout::GENERATION_ID {
            return Err(Error::new("the ACPI tables do not fit below the generation id"));
        }
        put(self.memory, at, table)?;
        Ok(at)
    }
}

fn put(memory: &GuestMemory, at: u64, table: &[u8]) -> Result<()> {
    memory
        .write_slice(table, GuestAddress(at))
        .map_err(|error| Error::new(format!("ACPI table at {at:#x}: {error}")))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.sleep_control_reg = port(layout::POWER_PORT);
    fadt.sleep_status_reg = port(layout::POWER_PORT + 1);
    fadt.reset_reg = port(layout::POWER_PORT + 2);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, local);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(hardware: Hardware) -> Sdt {
    let mut code = Vec::new();
    let five: u8 = 5;
    Name::new(Path::new("_S5_"), &Package::new(vec![&five])).to_aml_bytes(&mut code);
    let mut devices = Vec::new();
    for cpu in 0..hardware.cpus {
        processor(cpu, &mut devices);
    }
    for index in 0..hardware.virtio_devices {
        virtio(index, &mut devices);
    }
    if hardware.serial {
        serial(&mut devices);
    }
    generation(&mut devices);
    // `raw` puts the length in front of what is already there.
    code.extend(Scope::raw(Path::new("_SB_"), devices));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&code);
    table
}

fn processor(index: u8, sink: &mut dyn AmlSink) {
    Device::new(
        Path::new(&format!("C{index:03}")),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &index)],
    )
    .to_aml_bytes(sink);
}

/// A window of registers and a line: an edge, active high, of its own.
fn virtio(index: u8, sink: &mut dyn AmlSink) {
    let address = layout::VIRTIO + u64::from(index) * layout::VIRTIO_BYTES;
    let line = layout::FIRST_VIRTIO_LINE + u32::from(index);
    let registers = Memory32Fixed::new(true, address as u32, layout::VIRTIO_BYTES as u32);
    Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &Interrupt::new(true, true, false, false, line)]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn serial(sink: &mut dyn AmlSink) {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, layout::SERIAL_PORTS as u8);
    let line = Interrupt::new(true, true, false, false, layout::SERIAL_LINE);
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(sink);
}

/// The VM generation id, and the event device that tells the driver of a new one.
fn generation(sink: &mut dyn AmlSink) {
    let (low, high) = (layout::GENERATION_ID as u32, (layout::GENERATION_ID >> 32) as u32);
    Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"MOATVGEN"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(sink);
    let changed: u8 = 0x80;
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, layout::EVENT_LINE)]),
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&If::new(
                    &Equal::new(&Arg(0), &layout::EVENT_LINE),
                    vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &changed)],
                )],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Memory, MemorySpec};

    /// Follows the root pointer as a kernel does.
    #[test]
    fn every_table_is_found_from_the_root_and_has_a_sum_of_zero() {
        let memory = Memory::new(MemorySpec { size_bytes: 1 << 20, hugepages: false }).unwrap();
        let most = (layout::INTERRUPT_LINES - layout::FIRST_VIRTIO_LINE) as u8;
        let root = write(memory.guest(), Hardware { cpus: 32, virtio_devices: most, serial: true }).unwrap();
        let read = |at: u64, size: usize| {
            let mut bytes = vec![0; size];
            memory.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let table = |at: u64| {
            let head = read(at, 8);
            let size = u32::from_le_bytes(head[4..8].try_into().unwrap());
            let bytes = read(at, size as usize);
            let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{:?}", String::from_utf8_lossy(&head[..4]));
            bytes
        };
        let rsdp = read(root, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(number(&rsdp[24..32]));
        let tables: Vec<Vec<u8>> = xsdt[36..].chunks(8).map(|at| table(number(at))).collect();
        let names: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC"]);
        let dsdt = table(number(&tables[0][140..148]));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(dsdt.windows(8).filter(|text| text == b"LNRO0005").count(), usize::from(most));
    }
}
