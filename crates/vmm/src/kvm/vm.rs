//! One VM: memory slots, the interrupt controllers in the kernel, doorbells and interrupt lines.
//!
//! Order matters: a memory slot or a filter that is set after the interrupt controllers costs 7 ms instead of
//! 0.1, since the kernel then waits for readers of the old tables.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, MsrFilterDefaultAction, NoDatamatch, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{Named, Vcpu, msr};
use crate::memory::Memory;
use crate::{Context, Result};

/// A VM. It holds its memory: the kernel writes there as long as the VM lives.
pub struct Vm {
    pub(super) fd: Arc<VmFd>,
    memory: Option<Memory>,
}

/// Where a guest's write rings: the event comes without an exit to the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// The guest physical address.
    pub address: u64,
    /// The 32-bit value that must be written; any when `None`.
    pub value: Option<u32>,
}

/// The saved state of the interrupt controllers in the kernel: both 8259, and the I/O APIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChipState(Vec<kvm_irqchip>);

/// Where Intel processors without real mode support keep a task state segment, in the hole of the memory.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

impl Vm {
    pub(super) fn new(fd: VmFd) -> Self {
        Self { fd: Arc::new(fd), memory: None }
    }

    /// Shows the memory to the guest; before the interrupt controllers are made.
    pub fn set_memory(&mut self, memory: &Memory) -> Result<()> {
        for slot in memory.slots() {
            let Some(userspace_addr) = memory.host_address(slot.guest) else { continue };
            let region = kvm_userspace_memory_region {
                slot: slot.number,
                flags: 0,
                guest_phys_addr: slot.guest,
                memory_size: slot.size_bytes,
                userspace_addr,
            };
            // SAFETY: the region is a mapping of exactly this size, and `self.memory` keeps it for as
            // long as the VM.
            unsafe { self.fd.set_user_memory_region(region) }
                .named("KVM_SET_USER_MEMORY_REGION")
                .context(|| format!("memory slot {} at {:#x}", slot.number, slot.guest))?;
        }
        self.memory = Some(memory.clone());
        Ok(())
    }

    /// Makes the interrupt controllers in the kernel, and the rest that every x86 VM has.
    pub fn create_chips(&self) -> Result<()> {
        self.fd.set_tss_address(TSS_ADDRESS).named("KVM_SET_TSS_ADDR")?;
        self.fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).named("KVM_SET_IDENTITY_MAP_ADDR")?;
        self.fd.create_irq_chip().named("KVM_CREATE_IRQCHIP")
    }

    /// Denies every model specific register that is not in the list; before the interrupt controllers are made. A
    /// denied access comes out as an exit.
    pub fn filter_msrs(&self) -> Result<()> {
        let cap = kvm_bindings::kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(kvm_bindings::KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
            ..kvm_bindings::kvm_enable_cap::default()
        };
        self.fd.enable_cap(&cap).named("KVM_CAP_X86_USER_SPACE_MSR")?;
        let bitmaps = msr::bitmaps();
        let ranges = msr::ranges(&bitmaps);
        self.fd.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).named("KVM_X86_SET_MSR_FILTER")
    }

    /// Makes a virtual processor. `index` is its number and the id of its interrupt controller.
    pub fn create_vcpu(&self, index: u8) -> Result<Vcpu> {
        let fd = self.fd.create_vcpu(u64::from(index)).named("KVM_CREATE_VCPU");
        let fd = fd.context(|| format!("virtual processor {index}"))?;
        Ok(Vcpu::new(index, fd, self.fd.run_size(), self.memory.clone()))
    }

    /// Has the kernel signal `event` when the guest writes there.
    pub fn add_doorbell(&self, event: &EventFd, bell: Doorbell) -> Result<()> {
        let address = IoEventAddress::Mmio(bell.address);
        match bell.value {
            Some(value) => self.fd.register_ioevent(event, &address, value),
            None => self.fd.register_ioevent(event, &address, NoDatamatch),
        }
        .named("KVM_IOEVENTFD")
        .context(|| format!("doorbell at {:#x}", bell.address))
    }

    /// Has the kernel raise an edge on an input of the I/O APIC whenever `event` is signalled.
    pub fn add_interrupt(&self, event: &EventFd, line: u32) -> Result<()> {
        self.fd.register_irqfd(event, line).named("KVM_IRQFD").context(|| format!("interrupt line {line}"))
    }

    /// The VM's statistics in the kernel.
    pub fn statistics(&self) -> Result<moat_linux::kvm::Statistics> {
        // SAFETY: the descriptor lives as long as this borrow of it.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        Ok(moat_linux::kvm::Statistics::open(fd)?)
    }

    /// Reads the interrupt controllers.
    pub fn save_chips(&self) -> Result<ChipState> {
        let mut chips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            self.fd.get_irqchip(&mut chip).named("KVM_GET_IRQCHIP")?;
            chips.push(chip);
        }
        Ok(ChipState(chips))
    }

    /// Puts the interrupt controllers into a saved state.
    pub fn restore_chips(&self, state: &ChipState) -> Result<()> {
        for chip in &state.0 {
            self.fd.set_irqchip(chip).named("KVM_SET_IRQCHIP")?;
        }
        Ok(())
    }
}
