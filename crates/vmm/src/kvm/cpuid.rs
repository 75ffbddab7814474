//! CPUID: what the guest is told of its processor.
//!
//! The start is what KVM can show on this host. Then every virtual processor gets its own number and the
//! topology (one socket, one core for each processor), and what a guest shall not use is masked: nested
//! virtualization unless it is asked for, performance counters, SGX, processor tracing.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::Kvm;
use crate::{Error, Result};

/// A wish for the processor of a guest.
#[derive(Clone, Copy, Debug)]
pub struct CpuidSpec {
    /// How many virtual processors there are.
    pub cpus: u8,
    /// Whether VMX and SVM are shown, so that the guest can run guests.
    pub nested: bool,
}

/// The leaves of one guest, made once; [`Leaves::of`] numbers them for each processor.
pub struct Leaves {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
}

impl Leaves {
    /// Asks KVM and masks.
    pub fn new(kvm: &Kvm, spec: CpuidSpec) -> Result<Self> {
        let mut entries = kvm.supported_cpuid()?.as_slice().to_vec();
        let hidden = |leaf: u32| match leaf {
            // Performance counters, SGX, processor tracing; both topologies are written anew.
            0xa | 0x12 | 0x14 | 0xb | 0x1f => true,
            0x8000_000a => !spec.nested,
            _ => false,
        };
        entries.retain(|entry| !hidden(entry.function));
        for entry in &mut entries {
            mask(entry, spec, kvm.has_deadline_timer());
        }
        topology(&mut entries, spec.cpus);
        Ok(Self { entries, cpus: spec.cpus })
    }

    /// The leaves of one processor.
    pub fn of(&self, index: u8) -> Result<CpuId> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => {
                    let own = u32::from(index) << 24 | u32::from(self.cpus) << 16;
                    entry.ebx = entry.ebx & 0xffff | own;
                }
                0xb | 0x1f => entry.edx = index.into(),
                // AMD: the number, one thread in a core, one node.
                0x8000_001e => {
                    entry.eax = index.into();
                    entry.ebx = index.into();
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| Error::new("there are too many CPUID leaves"))
    }

    /// The value of a leaf, for those who show it.
    pub fn leaf(&self, function: u32) -> Option<[u32; 4]> {
        let entry = self.entries.iter().find(|entry| entry.function == function)?;
        Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !(1 << bit) | u32::from(on) << bit;
}

fn mask(entry: &mut kvm_cpuid_entry2, spec: CpuidSpec, deadline: bool) {
    match (entry.function, entry.index) {
        (0, _) => entry.eax = entry.eax.max(0xb),
        (1, _) => {
            let vmx = spec.nested && entry.ecx & 1 << 5 != 0;
            set(&mut entry.ecx, 5, vmx);
            // The kernel has these two in its interrupt controller, and does not list them.
            set(&mut entry.ecx, 24, deadline);
            set(&mut entry.ecx, 21, true);
            // "There is a hypervisor", and performance counters' capabilities.
            set(&mut entry.ecx, 31, true);
            set(&mut entry.ecx, 15, false);
            // More than one processor in the package.
            set(&mut entry.edx, 28, spec.cpus > 1);
        }
        (7, 0) => {
            set(&mut entry.ebx, 2, false);
            set(&mut entry.ebx, 25, false);
            set(&mut entry.ecx, 30, false);
        }
        // Deterministic caches: none is shared, and there are as many cores as processors.
        (4, _) if entry.eax & 0x1f != 0 => {
            let cores = u32::from(spec.cpus.next_power_of_two()) - 1;
            entry.eax = entry.eax & 0x3fff | cores << 26;
        }
        (0x8000_0001, _) => {
            let svm = spec.nested && entry.ecx & 1 << 2 != 0;
            set(&mut entry.ecx, 2, svm);
            // AMD's performance counters.
            set(&mut entry.ecx, 23, false);
            set(&mut entry.ecx, 24, false);
            set(&mut entry.ecx, 28, false);
        }
        (0x8000_0008, _) => {
            let bits = u32::from(spec.cpus).next_power_of_two().trailing_zeros();
            entry.ecx = bits << 12 | (u32::from(spec.cpus) - 1);
        }
        _ => {}
    }
}

/// Leaf 0xb: one thread in a core, all cores in one package.
fn topology(entries: &mut Vec<kvm_cpuid_entry2>, cpus: u8) {
    let bits = u32::from(cpus).next_power_of_two().trailing_zeros();
    let level = |index: u32, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        ..kvm_cpuid_entry2::default()
    };
    entries.extend([level(0, 0, 1, 1), level(1, bits, cpus.into(), 2), level(2, 0, 0, 0)]);
}
