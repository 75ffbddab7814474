//! One virtual processor: an entry goes in as a value, an exit comes out as one.
//!
//! Whoever holds a [`Vcpu`] may run it, look at it, save it. [`Kick`] is for everyone else: it makes the
//! processor come out, and loses no race against one that is about to go in.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::Named;
use crate::memory::Memory;
use crate::{Context, Error, Result};

/// Which address space an access was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// I/O ports.
    Port,
    /// Physical addresses without memory.
    Memory,
}

/// What the guest wanted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write this, little-endian.
    Write(u64),
}

/// Why the processor came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// An access of 1, 2, 4 or 8 bytes to a device. A read is answered by [`VmEntry::Value`].
    Io {
        /// Ports or addresses.
        space: Space,
        /// The port or address.
        address: u64,
        /// How wide.
        size: u8,
        /// Reading, or writing what.
        access: Access,
        /// This is a further part of a string instruction or of a wide access: no exit of its own.
        part: bool,
    },
    /// A model specific register that the filter denies. [`VmEntry::Fault`] makes the access fault.
    Msr {
        /// The register.
        index: u32,
        /// Reading, or writing what.
        access: Access,
    },
    /// The guest halted, and the kernel has no interrupt controller to wait with.
    Halted,
    /// The guest's processor gave up: a fault while it handled a double fault.
    TripleFault,
    /// Somebody kicked, or a signal came.
    Interrupted,
    /// The host's processor refused the guest's state.
    EntryFailed(u64),
    /// KVM could not emulate an instruction, or met its own limits.
    Internal(u32),
    /// The guest asked KVM for a reset or a power-off.
    SystemEvent(u32),
    /// A reason that this monitor never asked for.
    Other(u32),
}

/// How the processor goes back in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEntry {
    /// As it came out.
    Resume,
    /// With the value that was read, little-endian.
    Value(u64),
    /// With a general protection fault in place of the access to a register.
    Fault,
}

/// A string instruction, or other access in more than one part, that is being told part by part.
#[derive(Clone, Copy)]
struct Parts {
    next: u32,
    count: u32,
}

/// A virtual processor.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    index: u8,
    /// The size of the page that the kernel shares.
    run_bytes: usize,
    parts: Option<Parts>,
    /// The kernel writes there as long as the processor lives.
    _memory: Option<Memory>,
}

/// The saved state of a virtual processor.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
    cpuid: Vec<kvm_bindings::kvm_cpuid_entry2>,
    /// The frequency of the guest's time stamp counter; 0 when KVM does not say.
    tsc_khz: u32,
}

/// What a person looks at: registers, segments, control registers.
#[derive(Clone, Debug)]
pub struct VcpuDump {
    /// General registers, RIP and flags.
    pub regs: kvm_regs,
    /// Segments, descriptor tables, control registers, EFER.
    pub sregs: kvm_sregs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// Pending exceptions, interrupts, and whether they are shadowed.
    pub events: kvm_vcpu_events,
    /// Running, halted, waiting to be started.
    pub mp_state: u32,
    /// Model specific registers of interest: number and value.
    pub msrs: Vec<(u32, u64)>,
}

/// The registers that a dump reads: what a VMCS or a VMCB also holds of the guest.
const DUMPED_MSRS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0x1d9,
    0x10,
];

impl Vcpu {
    pub(super) fn new(index: u8, fd: VcpuFd, run_bytes: usize, memory: Option<Memory>) -> Self {
        Self { fd, index, run_bytes, parts: None, _memory: memory }
    }

    /// Its number.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Goes into the guest and comes out again.
    pub fn enter(&mut self, entry: VmEntry) -> Result<VmExit> {
        self.answer(entry);
        if let Some(Parts { next, count }) = self.parts.take()
            && next < count
        {
            self.parts = Some(Parts { next: next + 1, count });
            return Ok(self.port(next));
        }
        match self.fd.run() {
            Ok(_) => Ok(self.exit()),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                Ok(VmExit::Interrupted)
            }
            Err(error) => Err(error).named("KVM_RUN").context(|| format!("virtual processor {}", self.index)),
        }
    }

    /// Puts the answer where the kernel looks for it.
    fn answer(&mut self, entry: VmEntry) {
        let part = self.parts.map_or(0, |parts| parts.next.saturating_sub(1));
        let limit = self.run_bytes;
        let run = self.fd.get_kvm_run();
        match (entry, run.exit_reason) {
            (VmEntry::Value(value), KVM_EXIT_MMIO) => {
                // SAFETY: the reason says which member of the union the kernel wrote; it is plain data.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                mmio.data = value.to_le_bytes();
            }
            (VmEntry::Value(value), KVM_EXIT_IO) => {
                // SAFETY: as above.
                let io = unsafe { run.__bindgen_anon_1.io };
                let bytes = value.to_le_bytes();
                if let (Some(place), Some(bytes)) =
                    (port_data(run, limit, part), bytes.get(..usize::from(io.size)))
                {
                    // SAFETY: `port_data` gave the place of `io.size` bytes inside of the shared page.
                    unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
                }
            }
            (VmEntry::Value(value), KVM_EXIT_X86_RDMSR) => {
                // SAFETY: as above.
                let msr = unsafe { &mut run.__bindgen_anon_1.msr };
                (msr.data, msr.error) = (value, 0);
            }
            (VmEntry::Fault, KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR) => {
                // SAFETY: as above.
                let msr = unsafe { &mut run.__bindgen_anon_1.msr };
                msr.error = 1;
            }
            _ => {}
        }
    }

    /// One element of a port access.
    fn port(&mut self, part: u32) -> VmExit {
        let limit = self.run_bytes;
        let run = self.fd.get_kvm_run();
        // SAFETY: called for KVM_EXIT_IO only; the member is plain data.
        let io = unsafe { run.__bindgen_anon_1.io };
        let access = if u32::from(io.direction) == KVM_EXIT_IO_OUT {
            let mut bytes = [0_u8; 8];
            if let (Some(place), Some(to)) =
                (port_data(run, limit, part), bytes.get_mut(..usize::from(io.size)))
            {
                // SAFETY: `port_data` gave the place of `io.size` bytes inside of the shared page.
                unsafe { place.copy_to_nonoverlapping(NonNull::from(&mut *to).cast(), to.len()) };
            }
            Access::Write(u64::from_le_bytes(bytes))
        } else {
            Access::Read
        };
        VmExit::Io { space: Space::Port, address: io.port.into(), size: io.size, access, part: part > 0 }
    }

    /// The exit that the kernel wrote into the shared page.
    fn exit(&mut self) -> VmExit {
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let count = unsafe { run.__bindgen_anon_1.io }.count;
                self.parts = Some(Parts { next: 1, count });
                self.port(0)
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let mmio = unsafe { run.__bindgen_anon_1.mmio };
                let mut bytes = mmio.data;
                let size = mmio.len.min(8) as u8;
                bytes.iter_mut().skip(size.into()).for_each(|byte| *byte = 0);
                let access = match mmio.is_write {
                    0 => Access::Read,
                    _ => Access::Write(u64::from_le_bytes(bytes)),
                };
                VmExit::Io { space: Space::Memory, address: mmio.phys_addr, size, access, part: false }
            }
            reason @ (KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR) => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let msr = unsafe { run.__bindgen_anon_1.msr };
                let access =
                    if reason == KVM_EXIT_X86_RDMSR { Access::Read } else { Access::Write(msr.data) };
                VmExit::Msr { index: msr.index, access }
            }
            KVM_EXIT_HLT => VmExit::Halted,
            KVM_EXIT_SHUTDOWN => VmExit::TripleFault,
            KVM_EXIT_INTR => VmExit::Interrupted,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let failed = unsafe { run.__bindgen_anon_1.fail_entry };
                VmExit::EntryFailed(failed.hardware_entry_failure_reason)
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                VmExit::Internal(internal.suberror)
            }
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the reason says that the kernel wrote this member; it is plain data.
                let event = unsafe { run.__bindgen_anon_1.system_event };
                VmExit::SystemEvent(event.type_)
            }
            other => VmExit::Other(other),
        }
    }

    /// What makes this processor come out. To be made by the thread that will run it.
    pub fn kick(&self) -> Result<Kick> {
        Kick::new(&self.fd)
    }

    /// Ends the wish to come out: the next entry runs the guest again.
    pub fn clear_kick(&mut self) {
        let flag = std::ptr::from_mut(&mut self.fd.get_kvm_run().immediate_exit);
        // SAFETY: the byte lies in the page that is shared with the kernel and with `Kick`; all sides use it
        // as one atomic byte.
        unsafe { AtomicU8::from_ptr(flag) }.store(0, Ordering::SeqCst);
    }

    /// Tells the guest what its processor is.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<()> {
        self.fd.set_cpuid2(cpuid).named("KVM_SET_CPUID2")
    }

    /// The general registers.
    pub fn registers(&self) -> Result<kvm_regs> {
        self.fd.get_regs().named("KVM_GET_REGS")
    }

    /// Sets the general registers.
    pub fn set_registers(&self, registers: &kvm_regs) -> Result<()> {
        self.fd.set_regs(registers).named("KVM_SET_REGS")
    }

    /// Segments, control registers, descriptor tables.
    pub fn system_registers(&self) -> Result<kvm_sregs> {
        self.fd.get_sregs().named("KVM_GET_SREGS")
    }

    /// Sets segments, control registers, descriptor tables.
    pub fn set_system_registers(&self, registers: &kvm_sregs) -> Result<()> {
        self.fd.set_sregs(registers).named("KVM_SET_SREGS")
    }

    /// What the guest reads by CPUID.
    pub fn cpuid(&self) -> Result<Vec<kvm_bindings::kvm_cpuid_entry2>> {
        let most = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
        Ok(self.fd.get_cpuid2(most).named("KVM_GET_CPUID2")?.as_slice().to_vec())
    }

    /// The kernel's own walk of the guest's page tables; `None` where nothing is mapped.
    pub fn translate(&self, linear: u64) -> Result<Option<u64>> {
        let found = self.fd.translate_gva(linear).named("KVM_TRANSLATE")?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }

    /// The processor's statistics in the kernel.
    pub fn statistics(&self) -> Result<moat_linux::kvm::Statistics> {
        // SAFETY: the descriptor lives as long as this borrow of it.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        Ok(moat_linux::kvm::Statistics::open(fd)?)
    }

    /// Reads model specific registers; those that KVM does not give are left out.
    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
        let mut read = Vec::new();
        let mut rest: Vec<kvm_msr_entry> =
            indices.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
        while !rest.is_empty() {
            let mut msrs =
                Msrs::from_entries(&rest).map_err(|_| Error::new("the list of MSRs is too long"))?;
            let count = self.fd.get_msrs(&mut msrs).named("KVM_GET_MSRS")?;
            read.extend(msrs.as_slice().iter().take(count));
            // KVM stops at the first that it does not give; go on behind it.
            rest.drain(..(count + 1).min(rest.len()));
        }
        Ok(read)
    }

    /// What a person looks at.
    pub fn dump(&self) -> Result<VcpuDump> {
        let msrs = self.read_msrs(&DUMPED_MSRS)?;
        Ok(VcpuDump {
            regs: self.registers()?,
            sregs: self.system_registers()?,
            debug_regs: self.fd.get_debug_regs().named("KVM_GET_DEBUGREGS")?,
            events: self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?,
            mp_state: self.fd.get_mp_state().named("KVM_GET_MP_STATE")?.mp_state,
            msrs: msrs.iter().map(|msr| (msr.index, msr.data)).collect(),
        })
    }

    /// Saves everything. The processor must have come out with [`VmExit::Interrupted`], or never have been
    /// in: only then has the kernel finished the instruction that it came out for.
    pub fn save(&self, saved_msrs: &[u32]) -> Result<VcpuState> {
        Ok(VcpuState {
            // The kernel wants this order: the state of the processor may change the events.
            mp_state: self.fd.get_mp_state().named("KVM_GET_MP_STATE")?,
            regs: self.registers()?,
            sregs: self.system_registers()?,
            xsave: self.fd.get_xsave().named("KVM_GET_XSAVE")?,
            xcrs: self.fd.get_xcrs().named("KVM_GET_XCRS")?,
            debug_regs: self.fd.get_debug_regs().named("KVM_GET_DEBUGREGS")?,
            lapic: self.fd.get_lapic().named("KVM_GET_LAPIC")?,
            msrs: self.read_msrs(saved_msrs)?,
            events: self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?,
            cpuid: self.cpuid()?,
            tsc_khz: self.fd.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Puts a new processor into a saved state.
    pub fn restore(&self, state: &VcpuState) -> Result<()> {
        let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| Error::new("too many CPUID leaves"))?;
        self.set_cpuid(&cpuid)?;
        if state.tsc_khz != 0 && self.fd.get_tsc_khz().is_ok_and(|khz| khz != state.tsc_khz) {
            self.fd.set_tsc_khz(state.tsc_khz).named("KVM_SET_TSC_KHZ")?;
        }
        self.fd.set_mp_state(state.mp_state).named("KVM_SET_MP_STATE")?;
        self.set_registers(&state.regs)?;
        self.set_system_registers(&state.sregs)?;
        // SAFETY: KVM reads the 4096 bytes that the structure has; no feature with more is ever enabled.
        unsafe { self.fd.set_xsave(&state.xsave) }.named("KVM_SET_XSAVE")?;
        self.fd.set_xcrs(&state.xcrs).named("KVM_SET_XCRS")?;
        self.fd.set_debug_regs(&state.debug_regs).named("KVM_SET_DEBUGREGS")?;
        self.fd.set_lapic(&state.lapic).named("KVM_SET_LAPIC")?;
        self.restore_msrs(&state.msrs)?;
        self.fd.set_vcpu_events(&state.events).named("KVM_SET_VCPU_EVENTS")
    }

    fn restore_msrs(&self, entries: &[kvm_msr_entry]) -> Result<()> {
        // The deadline of the timer comes last: it is measured by the counter that another register sets.
        const DEADLINE: u32 = 0x6e0;
        let (last, first): (Vec<_>, Vec<_>) = entries.iter().copied().partition(|msr| msr.index == DEADLINE);
        let mut rest = first;
        rest.extend(last);
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(&rest).map_err(|_| Error::new("the list of MSRs is too long"))?;
            let count = self.fd.set_msrs(&msrs).named("KVM_SET_MSRS")?;
            // What can be read but not written (a capability) is the same on both sides, or this host's own.
            rest.drain(..(count + 1).min(rest.len()));
        }
        Ok(())
    }
}

/// Where the data of one element of a port access lies in the shared page.
fn port_data(run: &mut kvm_run, limit: usize, part: u32) -> Option<NonNull<u8>> {
    // SAFETY: called for KVM_EXIT_IO only; the member is plain data.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let offset = usize::try_from(io.data_offset).ok()?.checked_add(size.checked_mul(part as usize)?)?;
    if offset.checked_add(size)? > limit {
        return None;
    }
    // SAFETY: the sum stays inside of the page that kvm-ioctls has mapped, of which `run` is the start.
    Some(unsafe { NonNull::from(run).cast::<u8>().add(offset) })
}

/// Makes a processor come out of the guest, from any thread.
///
/// It has a mapping of its own of the page that the kernel shares, so it may outlive the processor.
pub struct Kick {
    flag: NonNull<u8>,
    bytes: usize,
    thread: AtomicI32,
}

// SAFETY: the flag is only used as an atomic byte, and the mapping lives as long as the value.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    fn new(fd: &VcpuFd) -> Result<Self> {
        let bytes = size_of::<kvm_run>().next_multiple_of(4096);
        // SAFETY: the descriptor lives through the call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let (protection, flags) =
            (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let page = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        let page = page.context(|| "the page that KVM shares")?;
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        let flag = NonNull::new(page.cast::<u8>()).ok_or_else(|| Error::new("a mapping at address 0"))?;
        // SAFETY: the offset lies inside of the mapping.
        Ok(Self { flag: unsafe { flag.add(offset) }, bytes, thread: AtomicI32::new(0) })
    }

    /// Says that the calling thread is the one to be interrupted.
    pub fn adopt(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
    }

    /// Makes the processor come out with [`VmExit::Interrupted`], now or at its next entry.
    pub fn kick(&self) -> Result<()> {
        // SAFETY: the byte lives as long as `self`, and all sides use it as one atomic byte.
        unsafe { AtomicU8::from_ptr(self.flag.as_ptr()) }.store(1, Ordering::SeqCst);
        match self.thread.load(Ordering::SeqCst) {
            0 => Ok(()),
            thread => Ok(moat_linux::thread::interrupt_thread(thread)?),
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the mapping was made by `new` with this size, and nobody can use it any more. That
        // unmapping it fails is out of the question, and would only leave it mapped.
        let _ = unsafe { rustix::mm::munmap(self.flag.as_ptr().sub(offset).cast(), self.bytes) };
    }
}
