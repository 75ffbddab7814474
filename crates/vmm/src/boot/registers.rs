//! The registers with which the first processor starts, in the three modes that images ask for.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::kvm::Vcpu;
use crate::memory::GuestMemory;
use crate::{Error, Result};

/// How the first instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Real mode, all segments at 0.
    Real {
        /// The first instruction's address, below 64 KiB.
        address: u16,
    },
    /// 32-bit protected mode without paging, flat segments: what PVH asks for.
    Protected {
        /// The first instruction's address.
        address: u32,
        /// What EBX holds.
        start_info: u32,
    },
    /// 64-bit mode, the first 4 GiB mapped to themselves: what Linux's 64-bit protocol asks for.
    Long {
        /// The first instruction's address.
        address: u64,
        /// What RSI holds.
        zero_page: u64,
    },
}

/// Flat segments; the table's entries are made of the same numbers.
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x0000_8b00_0000_0067;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

impl Entry {
    /// Writes the tables that this mode needs and sets the registers.
    pub fn apply(self, vcpu: &Vcpu, memory: &GuestMemory) -> Result<()> {
        let mut system = vcpu.system_registers()?;
        let mut registers = kvm_regs { rflags: 2, ..kvm_regs::default() };
        match self {
            Self::Real { address } => {
                registers.rip = address.into();
                registers.rsp = layout::STACK;
                for segment in [
                    &mut system.cs,
                    &mut system.ds,
                    &mut system.es,
                    &mut system.ss,
                    &mut system.fs,
                    &mut system.gs,
                ] {
                    (segment.base, segment.selector) = (0, 0);
                }
            }
            Self::Protected { address, start_info } => {
                registers.rip = address.into();
                registers.rbx = start_info.into();
                flat(&mut system, CODE_32, memory)?;
                system.cr0 = CR0_PE | CR0_ET;
                system.cr4 = 0;
            }
            Self::Long { address, zero_page } => {
                registers.rip = address;
                registers.rsi = zero_page;
                registers.rsp = layout::STACK;
                registers.rbp = layout::STACK;
                flat(&mut system, CODE_64, memory)?;
                identity_map(memory)?;
                system.cr3 = layout::PAGE_TABLES;
                system.cr4 |= CR4_PAE;
                system.cr0 |= CR0_PE | CR0_PG;
                system.efer |= EFER_LME | EFER_LMA;
            }
        }
        vcpu.set_system_registers(&system)?;
        vcpu.set_registers(&registers)
    }
}

fn put(memory: &GuestMemory, at: u64, value: u64) -> Result<()> {
    let written = memory.write_slice(&value.to_le_bytes(), GuestAddress(at));
    written.map_err(|error| Error::new(format!("boot table at {at:#x}: {error}")))
}

/// A descriptor as the processor holds it.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bit = |place: u32| (descriptor >> place & 1) as u8;
    let pages = bit(55);
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        limit: if pages == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        present: bit(47),
        dpl: (descriptor >> 45 & 3) as u8,
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: pages,
        avl: bit(52),
        unusable: 0,
        padding: 0,
    }
}

fn flat(system: &mut kvm_bindings::kvm_sregs, code: u64, memory: &GuestMemory) -> Result<()> {
    // The Linux protocol asks for code at 0x10 and data at 0x18.
    let table = [0, 0, code, DATA, TASK];
    for (place, descriptor) in (0..).zip(table) {
        put(memory, layout::GDT + place * 8, descriptor)?;
    }
    system.gdt =
        kvm_dtable { base: layout::GDT, limit: (table.len() * 8 - 1) as u16, ..kvm_dtable::default() };
    system.idt = kvm_dtable::default();
    system.cs = segment(code, 0x10);
    let data = segment(DATA, 0x18);
    (system.ds, system.es, system.ss, system.fs, system.gs) = (data, data, data, data, data);
    system.tr = segment(TASK, 0x20);
    Ok(())
}

/// The first 4 GiB at the same addresses, in pages of 2 MiB.
fn identity_map(memory: &GuestMemory) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let (pointers, directories) = (layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    put(memory, layout::PAGE_TABLES, pointers | PRESENT_WRITABLE)?;
    for gigabyte in 0..4 {
        put(memory, pointers + gigabyte * 8, (directories + gigabyte * 0x1000) | PRESENT_WRITABLE)?;
    }
    let mut entries = Vec::with_capacity(4 * 0x1000);
    for page in 0..4 * 512_u64 {
        entries.extend_from_slice(&(page << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes());
    }
    let written = memory.write_slice(&entries, GuestAddress(directories));
    written.map_err(|error| Error::new(format!("page directories at {directories:#x}: {error}")))
}
