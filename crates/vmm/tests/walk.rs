//! The address walk against the kernel's own (KVM_TRANSLATE), on the real KVM, over random tables.
#![allow(clippy::print_stdout, reason = "which kinds of tables there were is worth reading")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use moat_vmm::boot::Entry;
use moat_vmm::kvm::cpuid::{CpuidSpec, Leaves};
use moat_vmm::kvm::{Kvm, Vcpu, Vm};
use moat_vmm::memory::{Memory, MemorySpec};
use moat_vmm::walk::{Fault, HostPhysical, Paging, walk, walk_of};
use vm_memory::{Bytes, GuestAddress};

const MEMORY_BYTES: u64 = 8 << 20;
const ROOT: u64 = 0x10_0000;

/// A machine that never runs.
struct Machine {
    vcpu: Vcpu,
    memory: Memory,
    _vm: Vm,
}

impl Machine {
    /// Long mode, with the first table at [`ROOT`].
    fn new() -> Self {
        let memory = Memory::new(MemorySpec { size_bytes: MEMORY_BYTES, hugepages: false }).unwrap();
        let kvm = Kvm::open().unwrap();
        let mut vm = kvm.create_vm().unwrap();
        vm.set_memory(&memory).unwrap();
        vm.create_chips().unwrap();
        let leaves = Leaves::new(&kvm, CpuidSpec { cpus: 1, nested: false }).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid(&leaves.of(0).unwrap()).unwrap();
        Entry::Long { address: 0x1000, zero_page: 0 }.apply(&vcpu, memory.guest()).unwrap();
        let this = Self { vcpu, memory, _vm: vm };
        this.set(|registers| {
            registers.cr3 = ROOT;
            registers.efer |= 1 << 11;
        });
        this
    }

    fn set(&self, change: impl FnOnce(&mut kvm_bindings::kvm_sregs)) {
        let mut registers = self.vcpu.system_registers().unwrap();
        change(&mut registers);
        self.vcpu.set_system_registers(&registers).unwrap();
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.guest().write_obj(value, GuestAddress(address)).unwrap();
    }

    /// What KVM and what we find; they must be the same.
    fn agree(&self, paging: Paging, linear: u64) -> Option<u64> {
        let ours = walk(&self.memory, paging, linear);
        let theirs = self.vcpu.translate(linear).unwrap();
        assert_eq!(ours.page.ok().map(|page| page.guest), theirs, "{ours}");
        theirs
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// How many tables there are, the root among them.
const TABLES: u64 = 64;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_NXE: u64 = 1 << 11;

/// An entry that leads to another table, or maps a page, or is wrong in some way.
fn entry(random: &mut Random, level: u32, tables: u64) -> u64 {
    let table = ROOT + 0x1000 * random.below(tables);
    let flags = random.next() & 0x8000_0000_0000_0f7e;
    match random.below(16) {
        0 => flags | table,
        1 => random.next() | PRESENT,
        2 => table | flags | PRESENT | 1 << (12 + random.below(52)),
        3..=6 if level == 2 || level == 1 => {
            let shift = 12 + 9 * level;
            random.next() & 0xf_ffff_ffff & (u64::MAX << shift) | flags | LARGE | PRESENT
        }
        _ if level == 0 => random.next() & 0xf_ffff_f000 | flags | PRESENT,
        _ => table | flags & !0x100 | PRESENT,
    }
}

/// Fills tables at random, level by level, so that walks of every length and end exist.
fn fill(machine: &Machine, random: &mut Random, root_level: u32) {
    for table in 0..TABLES {
        // The root, then tables that are used at any level.
        let level = if table == 0 { root_level } else { random.below(root_level.into()) as u32 };
        for index in 0..512 {
            machine.put(ROOT + table * 0x1000 + index * 8, entry(random, level, TABLES));
        }
    }
}

fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

/// Thousands of random addresses in random tables: the same answer as KVM's, whatever it is.
#[test]
fn walks_agree_with_the_kernels() {
    let machine = Machine::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut found, mut faults) = ([0_u32; 3], 0_u32);
    for round in 0..8 {
        fill(&machine, &mut random, 3);
        // No-execute on and off: then its bit is reserved.
        machine.set(|registers| {
            registers.efer = registers.efer & !(1 << 11) | if round % 2 == 0 { 1 << 11 } else { 0 };
        });
        let paging = Paging::of(&machine.vcpu).unwrap();
        for _ in 0..4000 {
            let linear = canonical(random.next());
            match machine.agree(paging, linear) {
                Some(_) => match walk(&machine.memory, paging, linear).page.unwrap().page_bytes {
                    0x1000 => found[0] += 1,
                    0x20_0000 => found[1] += 1,
                    _ => found[2] += 1,
                },
                None => faults += 1,
            }
        }
    }
    println!("4 KiB, 2 MiB, 1 GiB: {found:?}; faults: {faults}");
    let gigabytes = Paging::of(&machine.vcpu).unwrap().gigabyte_pages;
    assert!(found[0] > 500 && found[1] > 500 && (found[2] > 500 || !gigabytes) && faults > 500);
}

/// Pages of each size, exactly.
#[test]
fn pages_of_each_size_are_found() {
    let machine = Machine::new();
    let table = |number: u64| ROOT + number * 0x1000;
    machine.put(table(0) + 8, table(1) | 7);
    machine.put(table(1) + 16, table(2) | 7);
    machine.put(table(1) + 24, 0x4000_0000 | LARGE | 3);
    machine.put(table(2) + 32, table(3) | 5);
    machine.put(table(2) + 40, 0x40_0000 | LARGE | 1 << 63 | 7);
    machine.put(table(3) + 48, 0x12_3000 | 7);
    let paging = Paging::of(&machine.vcpu).unwrap();
    let base = (1 << 39) + (2 << 30);
    for (linear, guest, page_bytes, rights) in [
        (base + (4 << 21) + (6 << 12) + 0x789, 0x12_3789, 0x1000, (false, true, true)),
        (base + (5 << 21) + 0x1_2345, 0x41_2345, 0x20_0000, (true, true, false)),
        ((1 << 39) + (3 << 30) + 0x123_4567, 0x4123_4567, 0x4000_0000, (true, false, true)),
    ] {
        if page_bytes == 0x4000_0000 && !paging.gigabyte_pages {
            continue;
        }
        let walk = walk_of(&machine.vcpu, &machine.memory, linear).unwrap();
        let page = walk.page.unwrap();
        assert_eq!((page.guest, page.page_bytes), (guest, page_bytes));
        assert_eq!((page.rights.write, page.rights.user, page.rights.execute), rights);
        assert_eq!(machine.vcpu.translate(linear).unwrap(), Some(guest));
        let place = walk.place;
        assert_eq!(place.is_some(), guest < MEMORY_BYTES);
        if let Some(place) = place {
            assert_eq!((place.slot, place.file_offset), (0, guest));
            assert_eq!(Some(place.host_virtual), machine.memory.host_address(guest));
        }
    }
}

/// Each kind of fault is told with the entry at which it happens.
#[test]
fn faults_are_explained() {
    let machine = Machine::new();
    let table = |number: u64| ROOT + number * 0x1000;
    let explain = |linear: u64| walk_of(&machine.vcpu, &machine.memory, linear).unwrap();
    assert_eq!(explain(1 << 47).page, Err(Fault::NonCanonical { bits: 48 }));
    assert_eq!((explain(0).page, explain(0).entries.len()), (Err(Fault::NotPresent), 1));
    machine.put(table(0), table(1) | 3);
    assert_eq!((explain(0).page, explain(0).entries.len()), (Err(Fault::NotPresent), 2));
    machine.put(table(1), (MEMORY_BYTES + 0x5000) | 3);
    assert_eq!(explain(0x20_0000).page, Err(Fault::NoTable { address: MEMORY_BYTES + 0x5008 }));
    machine.put(table(1), table(2) | 3);
    machine.put(table(2), 0x2000 | LARGE | 3);
    assert_eq!(explain(0).page, Err(Fault::Reserved { bits: 0x2000 }));
    assert!(explain(0).to_string().contains("must be zero (0x2000)"), "{}", explain(0));
    machine.put(table(2), LARGE | 3);
    let text = explain(0x123).to_string();
    assert!(text.contains("GPA   0x0000000000000123  a page of 2048 KiB, wx-"), "{text}");
    assert!(text.contains("inferred"), "{text}");
    for linear in [0, 1, 0x1f_ffff, 0x20_0000, 1 << 30, 1 << 39] {
        machine.agree(Paging::of(&machine.vcpu).unwrap(), linear);
    }
}

/// The host's address is that of the page: a byte that is written there is seen by the guest.
#[test]
fn the_hosts_address_is_told_where_it_is() {
    let machine = Machine::new();
    machine.put(ROOT, (ROOT + 0x1000) | 3);
    machine.put(ROOT + 0x1000, (ROOT + 0x2000) | 3);
    machine.put(ROOT + 0x2000, 0x40_0000 | LARGE | 3);
    let untouched = walk_of(&machine.vcpu, &machine.memory, 0).unwrap().place.unwrap();
    machine.put(0x40_0000, 1);
    let touched = walk_of(&machine.vcpu, &machine.memory, 0).unwrap().place.unwrap();
    match touched.host_physical {
        HostPhysical::Address(address) => {
            assert_eq!(untouched.host_physical, HostPhysical::NotThere);
            assert_eq!(address % 4096, 0);
        }
        other => assert_eq!(other, HostPhysical::Untold),
    }
}

/// Without paging an address is its own.
#[test]
fn without_paging_an_address_stays_what_it_is() {
    let machine = Machine::new();
    machine.set(|registers| {
        registers.cr0 &= !(1 << 31);
        registers.cr4 = 0;
        registers.efer = 0;
        registers.cs.l = 0;
    });
    Entry::Protected { address: 0x1000, start_info: 0 }.apply(&machine.vcpu, machine.memory.guest()).unwrap();
    let paging = Paging::of(&machine.vcpu).unwrap();
    assert_eq!(machine.agree(paging, 0x12_3456), Some(0x12_3456));
    assert_eq!(walk(&machine.memory, paging, 0).mode, "no paging");
}

impl Machine {
    /// Paging as before long mode. False where this KVM forgets it: one that interprets every instruction has no
    /// use for it.
    fn set_older_paging(&self, cr4: u64, efer: u64) -> bool {
        self.set(|registers| {
            registers.cs.l = 0;
            registers.efer = efer;
            registers.cr0 |= CR0_PG;
            registers.cr3 = ROOT;
            registers.cr4 = registers.cr4 & !(CR4_PSE | CR4_PAE) | cr4;
        });
        self.vcpu.system_registers().unwrap().cr0 & CR0_PG != 0
    }

    /// How many of these addresses lead to a page of each size, and how many to a fault; KVM says the same.
    fn compare(&self, linears: impl Iterator<Item = u64>) -> std::collections::BTreeMap<u64, u32> {
        let paging = Paging::of(&self.vcpu).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for linear in linears {
            let size = match self.agree(paging, linear) {
                Some(_) => walk(&self.memory, paging, linear).page.unwrap().page_bytes,
                None => 0,
            };
            *counts.entry(size).or_default() += 1;
        }
        counts
    }
}

/// Two levels, with pages of 4 KiB, and of 4 MiB where they are switched on.
fn two_levels(random: &mut Random) -> bool {
    for pse in [0, CR4_PSE] {
        let machine = Machine::new();
        if !machine.set_older_paging(pse, 0) {
            return false;
        }
        for table in 0..TABLES {
            for index in 0..1024 {
                let flags = random.next() & 0xfff;
                // KVM knows 36 bits of an address in a page of 4 MiB, so bits 17 to 20 are reserved to it whatever
                // the processor has.
                let page = random.next() & 0xffc1_e000;
                let place = ROOT + random.below(TABLES) * 0x1000;
                let target = if table == 0 && flags & LARGE == 0 { place } else { page };
                let entry = (target | flags | u64::from(!flags.is_multiple_of(8))) as u32;
                let at = GuestAddress(ROOT + table * 0x1000 + index * 4);
                machine.memory.guest().write_obj(entry, at).unwrap();
            }
        }
        assert_eq!(walk_of(&machine.vcpu, &machine.memory, 0).unwrap().mode, "32-bit");
        let counts = machine.compare((0..6000).map(|_| random.next() & 0xffff_ffff));
        println!("32-bit, PSE {}: {counts:?}", pse != 0);
        assert!(counts[&0] > 100 && counts[&0x1000] > 100);
        assert_eq!(counts.get(&0x40_0000).is_some_and(|count| *count > 100), pse != 0);
    }
    true
}

/// Three levels, with pages of 4 KiB and 2 MiB, and no-execute on and off.
fn three_levels(random: &mut Random) -> bool {
    for efer in [0, EFER_NXE] {
        let machine = Machine::new();
        fill(&machine, random, 2);
        // The four entries of the first table are read when CR3 is set, and wrong ones are refused there.
        for (index, entry) in [ROOT + 0x1001, 0, ROOT + 0x2e19, ROOT + 0x3001].into_iter().enumerate() {
            machine.put(ROOT + index as u64 * 8, entry);
        }
        if !machine.set_older_paging(CR4_PAE, efer) {
            return false;
        }
        assert_eq!(walk_of(&machine.vcpu, &machine.memory, 0).unwrap().mode, "PAE");
        let counts = machine.compare((0..6000).map(|_| random.next() & 0xffff_ffff));
        println!("PAE, no-execute {}: {counts:?}", efer != 0);
        assert!(counts[&0] > 100 && counts[&0x1000] > 100 && counts[&0x20_0000] > 100);
    }
    true
}

/// Five levels. False where the processor has no such.
fn five_levels(random: &mut Random) -> bool {
    let machine = Machine::new();
    let leaf =
        |function| machine.vcpu.cpuid().unwrap().iter().find(|leaf| leaf.function == function).copied();
    if leaf(7).is_none_or(|leaf| leaf.ecx >> 16 & 1 == 0) {
        return false;
    }
    fill(&machine, random, 4);
    machine.set(|registers| registers.cr4 |= CR4_LA57);
    assert_eq!(walk_of(&machine.vcpu, &machine.memory, 0).unwrap().mode, "5-level");
    let canonical = |address: u64| ((address << 7) as i64 >> 7) as u64;
    let counts = machine.compare((0..20_000).map(|_| canonical(random.next())));
    println!("5-level: {counts:?}");
    assert!(counts[&0] > 100 && counts[&0x1000] > 50 && counts[&0x20_0000] > 50);
    true
}

/// The other kinds of tables. Where this machine's KVM has not all of them, the emulated host's does.
#[test]
fn older_and_deeper_tables_agree_too() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (two, three) = (two_levels(&mut random), three_levels(&mut random));
    let five = five_levels(&mut random);
    let inside = std::env::var_os("MOAT_LAB").is_some();
    if !five {
        println!("5-level: this KVM shows no LA57");
    }
    if inside {
        assert!(two && three, "the lab's KVM forgets paging without long mode");
    } else if !(two && three && five) {
        println!("32-bit {two}, PAE {three}, 5-level {five} here; now in the emulated host");
        in_the_lab("older_and_deeper_tables_agree_too");
    }
}

/// Runs a test of this program once more, in the emulated host.
fn in_the_lab(name: &str) {
    use std::process::Command;
    let own = std::env::current_exe().unwrap();
    let mut lab = match std::env::var_os("MOAT_XTASK") {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.arg("xtask").current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
            cargo
        }
    };
    let inside = std::path::Path::new("/tmp/lab").join(own.file_name().unwrap());
    lab.arg("lab").arg("--copy").arg(&own).arg("--").arg(inside);
    let status = lab.args(["--exact", name, "--nocapture", "--test-threads=1"]).status().unwrap();
    assert!(status.success(), "{lab:?}: {status}");
}

/// What the older tables refuse, entry by entry; no processor is asked.
#[test]
fn faults_of_older_tables_are_explained() {
    let machine = Machine::new();
    let long = Paging::of(&machine.vcpu).unwrap();
    let (cr0, cr4) = (long.cr0 | CR0_PG, long.cr4 & !(CR4_PSE | CR4_PAE));
    let put32 =
        |address: u64, value: u32| machine.memory.guest().write_obj(value, GuestAddress(address)).unwrap();
    let legacy = Paging { cr0, cr4: cr4 | CR4_PSE, efer: 0, cr3: ROOT, address_bits: 36, ..long };
    // Not present, at the first entry and at the second.
    assert_eq!(walk(&machine.memory, legacy, 0x40_1000).page, Err(Fault::NotPresent));
    put32(ROOT + 4, (ROOT + 0x1000) as u32 | 7);
    let explained = walk(&machine.memory, legacy, 0x40_1000);
    assert_eq!((explained.page, explained.entries.len()), (Err(Fault::NotPresent), 2));
    let tables: Vec<_> = explained.entries.iter().map(|entry| (entry.table, entry.address)).collect();
    assert_eq!(tables, [("PD", ROOT + 4), ("PT", ROOT + 0x1004)]);
    // A page of 4 MiB beyond 4 GiB by its bits 13 to 16; bit 17 is one too many for 36 bits.
    put32(ROOT + 8, 0x0040_0000 | 1 << 13 | 0x87);
    let page = walk(&machine.memory, legacy, 0x80_1234).page.unwrap();
    assert_eq!((page.guest, page.page_bytes), (0x1_0040_1234, 0x40_0000));
    put32(ROOT + 8, 0x0040_0000 | 1 << 17 | 0x87);
    assert_eq!(walk(&machine.memory, legacy, 0x80_1234).page, Err(Fault::Reserved { bits: 1 << 17 }));
    // Without PSE the same entry leads to a table.
    let without = Paging { cr4, ..legacy };
    assert_eq!(walk(&machine.memory, without, 0x80_1234).entries.len(), 2);
    // PAE: the first table's entries have bits of their own that must be zero.
    let pae = Paging { cr4: cr4 | CR4_PAE, ..legacy };
    machine.put(ROOT, (ROOT + 0x1000) | 3);
    assert_eq!(walk(&machine.memory, pae, 0).page, Err(Fault::Reserved { bits: 2 }));
    machine.put(ROOT, (ROOT + 0x1000) | 1);
    machine.put(ROOT + 0x1000, 1 << 63 | 0x20_0000 | LARGE | 3);
    assert_eq!(walk(&machine.memory, pae, 0).page, Err(Fault::Reserved { bits: 1 << 63 }));
    let page = walk(&machine.memory, Paging { efer: EFER_NXE, ..pae }, 0x1234).page.unwrap();
    assert_eq!((page.guest, page.page_bytes, page.rights.execute), (0x20_1234, 0x20_0000, false));
}
