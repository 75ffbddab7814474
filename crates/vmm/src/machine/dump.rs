//! What a person looks at: the registers of each processor, and what a VMCS or a VMCB holds of the guest.

use serde::Serialize;

use super::Machine;
use crate::Result;
use crate::kvm::VcpuDump;
use crate::lock::lock;

/// A segment register with its hidden part.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentDump {
    /// Its name.
    pub name: &'static str,
    /// The visible part.
    pub selector: u16,
    /// Where it starts.
    pub base: u64,
    /// Its last byte.
    pub limit: u32,
    /// Type, level and flags, as VMX's access rights encode them.
    pub access: u32,
}

/// One processor.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessorDump {
    /// Its number.
    pub index: u8,
    /// Running, halted, or waiting to be started.
    pub activity: &'static str,
    /// Name and value: general, control and debug registers, EFER.
    pub registers: Vec<(&'static str, u64)>,
    /// Segments and descriptor tables.
    pub segments: Vec<SegmentDump>,
    /// Model specific registers by name.
    pub msrs: Vec<(String, u64)>,
    /// What is about to be delivered.
    pub pending: String,
    /// The function that it is in, where the guest's symbols are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
}

impl Machine {
    /// Looks at every processor. The guest waits.
    pub fn dump(&self) -> Result<Vec<ProcessorDump>> {
        let mut all = Vec::new();
        for vcpu in self.processors.vcpus() {
            let vcpu = lock(vcpu);
            let dump = vcpu.dump()?;
            let symbol = self
                .symbols
                .as_ref()
                .and_then(|symbols| symbols.name(symbols.place(dump.regs.rip)?).map(str::to_owned));
            all.push(describe(vcpu.index(), &dump, symbol));
        }
        Ok(all)
    }
}

fn describe(index: u8, dump: &VcpuDump, symbol: Option<String>) -> ProcessorDump {
    let (regs, system, debug) = (&dump.regs, &dump.sregs, &dump.debug_regs);
    let registers = vec![
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("cr0", system.cr0),
        ("cr2", system.cr2),
        ("cr3", system.cr3),
        ("cr4", system.cr4),
        ("cr8", system.cr8),
        ("efer", system.efer),
        ("apic_base", system.apic_base),
        ("dr0", debug.db[0]),
        ("dr1", debug.db[1]),
        ("dr2", debug.db[2]),
        ("dr3", debug.db[3]),
        ("dr6", debug.dr6),
        ("dr7", debug.dr7),
    ];
    let table = |name, table: &kvm_bindings::kvm_dtable| SegmentDump {
        name,
        selector: 0,
        base: table.base,
        limit: table.limit.into(),
        access: 0,
    };
    ProcessorDump {
        index,
        activity: match dump.mp_state {
            kvm_bindings::KVM_MP_STATE_RUNNABLE => "running",
            kvm_bindings::KVM_MP_STATE_HALTED => "halted",
            kvm_bindings::KVM_MP_STATE_UNINITIALIZED => "waiting to be started",
            kvm_bindings::KVM_MP_STATE_INIT_RECEIVED | kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED => {
                "being started"
            }
            _ => "unknown",
        },
        registers,
        segments: vec![
            segment("cs", &system.cs),
            segment("ds", &system.ds),
            segment("es", &system.es),
            segment("fs", &system.fs),
            segment("gs", &system.gs),
            segment("ss", &system.ss),
            segment("tr", &system.tr),
            segment("ldt", &system.ldt),
            table("gdt", &system.gdt),
            table("idt", &system.idt),
        ],
        msrs: dump.msrs.iter().map(|(number, value)| (msr_name(*number), *value)).collect(),
        pending: pending(&dump.events),
        symbol,
    }
}

fn segment(name: &'static str, segment: &kvm_bindings::kvm_segment) -> SegmentDump {
    let bits = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (segment.present, 7),
        (segment.avl, 12),
        (segment.l, 13),
        (segment.db, 14),
        (segment.g, 15),
        (segment.unusable, 16),
    ];
    let access = bits.iter().fold(0, |access, (value, place)| access | u32::from(*value) << place);
    SegmentDump { name, selector: segment.selector, base: segment.base, limit: segment.limit, access }
}

fn msr_name(number: u32) -> String {
    let name = match number {
        0x10 => "tsc",
        0x174 => "sysenter_cs",
        0x175 => "sysenter_esp",
        0x176 => "sysenter_eip",
        0x1d9 => "debugctl",
        0x277 => "pat",
        0xc000_0081 => "star",
        0xc000_0082 => "lstar",
        0xc000_0083 => "cstar",
        0xc000_0084 => "sfmask",
        0xc000_0102 => "kernel_gs_base",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

fn pending(events: &kvm_bindings::kvm_vcpu_events) -> String {
    let mut all = Vec::new();
    if events.exception.injected != 0 {
        all.push(format!("exception {}", events.exception.nr));
    }
    if events.interrupt.injected != 0 {
        all.push(format!("interrupt {}", events.interrupt.nr));
    }
    if events.interrupt.shadow != 0 {
        all.push("interrupts held back for one instruction".to_owned());
    }
    if events.nmi.pending != 0 || events.nmi.injected != 0 {
        all.push("NMI".to_owned());
    }
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

impl std::fmt::Display for ProcessorDump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "processor {}: {}, pending: {}", self.index, self.activity, self.pending)?;
        if let Some(symbol) = &self.symbol {
            writeln!(f, "  in {symbol}")?;
        }
        for row in self.registers.chunks(4) {
            for (name, value) in row {
                write!(f, "  {name:<9} {value:016x}")?;
            }
            writeln!(f)?;
        }
        for SegmentDump { name, selector, base, limit, access } in &self.segments {
            writeln!(f, "  {name:<4} {selector:04x} base {base:016x} limit {limit:08x} access {access:05x}")?;
        }
        for (name, value) in &self.msrs {
            writeln!(f, "  {name:<15} {value:016x}")?;
        }
        Ok(())
    }
}
