//! The address walk: from an address that the guest's program uses to where its byte lies on the host, with
//! every page-table entry on the way.
//!
//! ```text
//! GVA  the guest's linear address
//!  |   CR3 and the guest's page tables: PML5, PML4, PDPT, PD, PT      read from the guest's memory
//! GPA  the guest's physical address
//!  |   the memory slot, which KVM was told
//! HVA  this process's address
//!  |   the host's page tables                                         told by /proc/self/pagemap
//! HPA  the host's physical address
//! ```
//!
//! The processor itself goes from GPA to HPA in one step, by tables (EPT, NPT) that no user space can read.
//! They must come out where the last two steps do, which is why that line of a report says that it is
//! inferred.

use std::fmt;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::Vcpu;
use crate::memory::{GuestMemory, Memory, Slot};
use crate::{Context, Result};

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const PAGE_BYTES: u64 = 4096;

/// What decides how a processor walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Paging {
    /// Paging on or off.
    pub cr0: u64,
    /// Where the tables begin.
    pub cr3: u64,
    /// How many levels, and which sizes.
    pub cr4: u64,
    /// Long mode, no-execute.
    pub efer: u64,
    /// How many bits a physical address has.
    pub address_bits: u8,
    /// Pages of 1 GiB exist.
    pub gigabyte_pages: bool,
    /// The processor keeps bit 8 of the upper tables reserved, as AMD's do.
    pub amd: bool,
}

/// One entry that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Which table it stands in.
    pub table: &'static str,
    /// Its guest physical address.
    pub address: u64,
    /// What it holds.
    pub value: u64,
}

/// Why a walk ends before a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// The upper bits of the address are not all as its sign.
    NonCanonical {
        /// How many bits the tables translate.
        bits: u8,
    },
    /// The last entry is not present.
    NotPresent,
    /// The last entry has bits that must be zero.
    Reserved {
        /// Those bits.
        bits: u64,
    },
    /// The next table is not in memory.
    NoTable {
        /// Where it would be.
        address: u64,
    },
}

/// What all entries together allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rights {
    /// The page may be written.
    pub write: bool,
    /// A program may use it, not only the kernel.
    pub user: bool,
    /// It may hold code.
    pub execute: bool,
}

/// The page that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Page {
    /// The guest physical address of the byte, not of the page.
    pub guest: u64,
    /// Size of the page.
    pub page_bytes: u64,
    /// What may be done with it.
    pub rights: Rights,
}

/// Where a guest physical address lies on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// KVM's number of the memory slot.
    pub slot: u32,
    /// The slot's first guest physical address.
    pub slot_start: u64,
    /// Offset in the guest's memory file.
    pub file_offset: u64,
    /// Address in this process.
    pub host_virtual: u64,
    /// Where that is.
    pub host_physical: HostPhysical,
}

/// What the host tells of its own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostPhysical {
    /// The byte's address.
    Address(u64),
    /// Nobody has touched the page, or it is swapped out.
    NotThere,
    /// The host does not tell this process: it lacks CAP_SYS_ADMIN, or /proc.
    Untold,
}

/// A walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// Where it began.
    pub linear: u64,
    /// What decided how.
    pub paging: Paging,
    /// How the tables are called together.
    pub mode: &'static str,
    /// Every entry that was read.
    pub entries: Vec<Entry>,
    /// Where it ended.
    pub page: std::result::Result<Page, Fault>,
    /// Where that is on the host; `None` where the guest has no memory.
    pub place: Option<Place>,
}

/// One level of tables.
struct Level {
    table: &'static str,
    /// The lowest bit of the index.
    shift: u8,
    index_bits: u8,
}

const fn level(table: &'static str, shift: u8, index_bits: u8) -> Level {
    Level { table, shift, index_bits }
}

const LONG: [Level; 5] = [
    level("PML5", 48, 9),
    level("PML4", 39, 9),
    level("PDPT", 30, 9),
    level("PD", 21, 9),
    level("PT", 12, 9),
];
const PAE: [Level; 3] = [level("PDPT", 30, 2), level("PD", 21, 9), level("PT", 12, 9)];
const LEGACY: [Level; 2] = [level("PD", 22, 10), level("PT", 12, 10)];

/// Bits `low` to `high`, both counted.
fn bits(low: u8, high: u8) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - (high - low))) << low }
}

impl Paging {
    /// How a processor that stands still walks.
    pub fn of(vcpu: &Vcpu) -> Result<Self> {
        let registers = vcpu.system_registers()?;
        let cpuid = vcpu.cpuid()?;
        let leaf =
            |function: u32| cpuid.iter().find(|leaf| leaf.function == function).copied().unwrap_or_default();
        let address_bits = match leaf(0x8000_0008).eax as u8 {
            0 => 36,
            bits => bits.min(52),
        };
        Ok(Self {
            cr0: registers.cr0,
            cr3: registers.cr3,
            cr4: registers.cr4,
            efer: registers.efer,
            address_bits,
            gigabyte_pages: leaf(0x8000_0001).edx >> 26 & 1 != 0,
            // "Auth" of "AuthenticAMD", "Hygo" of "HygonGenuine".
            amd: matches!(&leaf(0).ebx.to_le_bytes(), b"Auth" | b"Hygo"),
        })
    }

    fn levels(&self) -> (&'static str, &'static [Level]) {
        if self.cr0 & CR0_PG == 0 {
            ("no paging", &[])
        } else if self.efer & EFER_LMA != 0 {
            if self.cr4 & CR4_LA57 != 0 { ("5-level", &LONG) } else { ("4-level", &LONG[1..]) }
        } else if self.cr4 & CR4_PAE != 0 {
            ("PAE", &PAE)
        } else {
            ("32-bit", &LEGACY)
        }
    }

    fn is_long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Whether an entry of `table` that has the bit maps a large page.
    fn may_be_large(&self, table: &str) -> bool {
        match table {
            "PDPT" => self.is_long() && self.gigabyte_pages,
            "PD" => self.is_long() || self.cr4 & (CR4_PAE | CR4_PSE) != 0,
            _ => false,
        }
    }

    /// The bits of an entry that must be zero.
    fn reserved(&self, table: &str, large: bool) -> u64 {
        let wide = self.is_long() || self.cr4 & CR4_PAE != 0;
        if !wide {
            // Bits 13 to 20 of a large page are the upper ones of its address (PSE-36).
            let past = 13 + self.address_bits.clamp(32, 40) - 32;
            return if large { bits(past, 21) } else { 0 };
        }
        let high = bits(self.address_bits, 51);
        if !self.is_long() && table == "PDPT" {
            return high | bits(52, 63) | bits(5, 8) | bits(1, 2);
        }
        let no_execute = if self.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        let outside_long = if self.is_long() { 0 } else { bits(52, 62) };
        let this = match (table, large) {
            ("PML5" | "PML4", _) => LARGE | if self.amd { 1 << 8 } else { 0 },
            ("PDPT", true) => bits(13, 29),
            ("PDPT", false) if !self.gigabyte_pages => LARGE,
            ("PD", true) => bits(13, 20),
            _ => 0,
        };
        high | no_execute | outside_long | this
    }

    /// Where the first table is.
    fn root(&self) -> u64 {
        if self.is_long() {
            self.cr3 & bits(12, 51) & bits(0, self.address_bits - 1)
        } else if self.cr4 & CR4_PAE != 0 {
            self.cr3 & bits(5, 31)
        } else {
            self.cr3 & bits(12, 31)
        }
    }
}

/// Walks from `linear` on. Reads the guest's memory as it is now.
fn walk_tables(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
) -> (Vec<Entry>, std::result::Result<Page, Fault>) {
    let (_, levels) = paging.levels();
    let mut entries = Vec::new();
    let mut rights = Rights { write: true, user: true, execute: true };
    let Some(first) = levels.first() else {
        return (entries, Ok(Page { guest: linear & 0xffff_ffff, page_bytes: PAGE_BYTES, rights }));
    };
    let linear = if paging.is_long() { linear } else { linear & 0xffff_ffff };
    let width = first.shift + first.index_bits;
    let upper = linear >> (width - 1);
    if paging.is_long() && upper != 0 && upper != u64::MAX >> (width - 1) {
        return (entries, Err(Fault::NonCanonical { bits: width }));
    }
    let wide = paging.is_long() || paging.cr4 & CR4_PAE != 0;
    let mut table = paging.root();
    for level in levels {
        let index = linear >> level.shift & bits(0, level.index_bits - 1);
        let address = table + index * if wide { 8 } else { 4 };
        let value = if wide {
            memory.read_obj::<u64>(GuestAddress(address))
        } else {
            memory.read_obj::<u32>(GuestAddress(address)).map(u64::from)
        };
        let Ok(value) = value else { return (entries, Err(Fault::NoTable { address })) };
        entries.push(Entry { table: level.table, address, value });
        if value & PRESENT == 0 {
            return (entries, Err(Fault::NotPresent));
        }
        let large = value & LARGE != 0 && paging.may_be_large(level.table);
        let wrong = value & paging.reserved(level.table, large);
        if wrong != 0 {
            return (entries, Err(Fault::Reserved { bits: wrong }));
        }
        // The four entries of PAE's first table say nothing about rights.
        if wide && !paging.is_long() && level.table == "PDPT" {
            table = value & bits(12, 51);
            continue;
        }
        rights.write &= value & WRITABLE != 0;
        rights.user &= value & USER != 0;
        rights.execute &= !wide || value & NO_EXECUTE == 0;
        if large || level.table == "PT" {
            let page_bytes = 1_u64 << level.shift;
            let mut start = value & bits(level.shift, 51);
            if large && !wide {
                start = value & bits(22, 31) | (value & bits(13, 20)) << 19;
            }
            let guest = start | linear & (page_bytes - 1);
            return (entries, Ok(Page { guest, page_bytes, rights }));
        }
        table = value & bits(12, 51);
    }
    (entries, Err(Fault::NotPresent))
}

/// The whole way from `linear` to the host.
pub fn walk(memory: &Memory, paging: Paging, linear: u64) -> Walk {
    let (entries, page) = walk_tables(memory.guest(), &paging, linear);
    let (mode, _) = paging.levels();
    let place = page.ok().and_then(|page| place(memory, page.guest));
    Walk { linear, paging, mode, entries, page, place }
}

/// The way of one processor, which must stand still.
pub fn walk_of(vcpu: &Vcpu, memory: &Memory, linear: u64) -> Result<Walk> {
    Ok(walk(memory, Paging::of(vcpu).context(|| "the processor's registers")?, linear))
}

fn place(memory: &Memory, guest: u64) -> Option<Place> {
    let slots = memory.slots();
    let inside = |slot: &&Slot| guest.checked_sub(slot.guest).is_some_and(|offset| offset < slot.size_bytes);
    let slot = slots.iter().find(inside)?;
    let host_virtual = memory.host_address(guest)?;
    Some(Place {
        slot: slot.number,
        slot_start: slot.guest,
        file_offset: slot.offset + (guest - slot.guest),
        host_virtual,
        host_physical: host_physical(host_virtual),
    })
}

fn host_physical(address: u64) -> HostPhysical {
    const THERE: u64 = 1 << 63;
    let mut entry = [0; 8];
    let read = std::fs::File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entry, address / PAGE_BYTES * 8));
    let entry = u64::from_le_bytes(entry);
    match (read, entry & bits(0, 54)) {
        (Err(_), _) => HostPhysical::Untold,
        (Ok(()), _) if entry & THERE == 0 => HostPhysical::NotThere,
        (Ok(()), 0) => HostPhysical::Untold,
        (Ok(()), frame) => HostPhysical::Address(frame * PAGE_BYTES + address % PAGE_BYTES),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonCanonical { bits } => {
                write!(f, "the address is not canonical: bits {} to 63 are not all the same", bits - 1)
            }
            Self::NotPresent => write!(f, "the entry is not present: a page fault"),
            Self::Reserved { bits } => {
                write!(f, "the entry has bits that must be zero ({bits:#x}): a page fault with RSVD")
            }
            Self::NoTable { address } => write!(f, "the table at {address:#x} is not in the guest's memory"),
        }
    }
}

impl fmt::Display for HostPhysical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address:#x}"),
            Self::NotThere => write!(f, "no page of the host yet"),
            Self::Untold => write!(f, "the host does not tell (CAP_SYS_ADMIN)"),
        }
    }
}

/// The letters of an entry's flags.
fn flags(value: u64) -> String {
    const LETTERS: [(u64, char); 9] = [
        (PRESENT, 'P'),
        (WRITABLE, 'W'),
        (USER, 'U'),
        (1 << 3, 'T'),
        (1 << 4, 'C'),
        (1 << 5, 'A'),
        (1 << 6, 'D'),
        (LARGE, 'S'),
        (NO_EXECUTE, 'X'),
    ];
    LETTERS.iter().map(|(bit, letter)| if value & bit != 0 { *letter } else { '-' }).collect()
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Paging { cr0, cr3, cr4, efer, .. } = self.paging;
        writeln!(f, "GVA   {:#018x}", self.linear)?;
        writeln!(f, "      {}: CR0 {cr0:#x}, CR3 {cr3:#x}, CR4 {cr4:#x}, EFER {efer:#x}", self.mode)?;
        for Entry { table, address, value } in &self.entries {
            writeln!(f, "{table:<5} {value:#018x} at {address:#x}  {}", flags(*value))?;
        }
        let page = match &self.page {
            Ok(page) => page,
            Err(fault) => return writeln!(f, "      {fault}"),
        };
        let Rights { write, user, execute } = page.rights;
        let right = |given, letter| if given { letter } else { '-' };
        let (w, u, x) = (right(write, 'w'), right(user, 'u'), right(execute, 'x'));
        writeln!(f, "GPA   {:#018x}  a page of {} KiB, {w}{x}{u}", page.guest, page.page_bytes >> 10)?;
        let Some(place) = &self.place else {
            return writeln!(f, "      no memory slot: a device, or nothing");
        };
        let Place { slot, slot_start, file_offset, host_virtual, host_physical } = place;
        writeln!(f, "slot  {slot}, from {slot_start:#x} on, offset {file_offset:#x} in the memory file")?;
        writeln!(f, "HVA   {host_virtual:#018x}")?;
        writeln!(f, "HPA   {host_physical}")?;
        writeln!(
            f,
            "      EPT or NPT: {:#x} -> {host_physical} (inferred: user space can not read it)",
            page.guest
        )
    }
}
