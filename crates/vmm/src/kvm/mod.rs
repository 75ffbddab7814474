//! KVM: the only module that knows it. A VM is made here, and what its processors do comes out as values.
#![allow(
    unsafe_code,
    reason = "guest memory is handed to the kernel, and exits are read from a page it shares"
)]

mod clock;
pub mod cpuid;
mod msr;
mod vcpu;
mod vm;

pub use clock::ClockState;
pub use msr::{ALLOWED as ALLOWED_MSRS, MsrRange};
pub use vcpu::{Access, Kick, Space, Vcpu, VcpuDump, VcpuState, VmEntry, VmExit};
pub use vm::{ChipState, Doorbell, Vm};

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Cap;

use crate::{Context, Error, Result};

/// The host's KVM.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
}

/// What the monitor can not do without.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
];

impl Kvm {
    /// Takes /dev/kvm from whoever has opened it.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is owned and given away here; what is no KVM fails the first request below.
        Self::checked(unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) })
    }

    /// Opens /dev/kvm, the only path that the monitor needs of the host.
    pub fn open() -> Result<Self> {
        Self::checked(kvm_ioctls::Kvm::new().map_err(|error| {
            let errno = moat_linux::Errno::from_raw_os_error(error.errno());
            let failed = Error::new(format!("/dev/kvm: {}", moat_linux::errno_name(errno)));
            match error.errno() {
                libc::ENOENT | libc::ENODEV | libc::ENXIO => failed.hint(
                    "load kvm_intel or kvm_amd; in a virtual machine its host must allow nested virtualization",
                ),
                libc::EACCES | libc::EPERM => failed.hint("join the group that owns /dev/kvm, or be root"),
                _ => failed,
            }
        })?)
    }

    fn checked(fd: kvm_ioctls::Kvm) -> Result<Self> {
        let version = fd.get_api_version();
        if version < 0 {
            return Err(Error::new("/dev/kvm: this is another device, and not KVM"));
        }
        if version != 12 {
            return Err(Error::new(format!("/dev/kvm: API version {version} instead of 12")));
        }
        for (cap, name) in NEEDED {
            if !fd.check_extension(cap) {
                return Err(Error::new(format!("/dev/kvm: this kernel lacks {name}"))
                    .hint("Linux 5.10 or newer has all that is needed"));
            }
        }
        Ok(Self { fd })
    }

    /// Makes an empty VM.
    pub fn create_vm(&self) -> Result<Vm> {
        loop {
            match self.fd.create_vm() {
                // The kernel's own threads can be interrupted while they start.
                Err(error) if error.errno() == libc::EINTR => {}
                other => return Ok(Vm::new(other.named("KVM_CREATE_VM")?)),
            }
        }
    }

    /// What the processor of this host can show to a guest.
    pub(crate) fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId> {
        self.fd.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).named("KVM_GET_SUPPORTED_CPUID")
    }

    /// Whether the local interrupt controller has the deadline mode of its timer.
    pub(crate) fn has_deadline_timer(&self) -> bool {
        self.fd.check_extension(Cap::TscDeadlineTimer)
    }

    /// The numbers of the model specific registers that KVM can save.
    pub(crate) fn saved_msrs(&self) -> Result<Vec<u32>> {
        let list = self.fd.get_msr_index_list().named("KVM_GET_MSR_INDEX_LIST")?;
        Ok(list.as_slice().to_vec())
    }
}

/// Whether this processor runs guests in hardware. Without, KVM interprets them instruction by instruction:
/// tiny guests run, no operating system does.
pub fn hardware_virtualization() -> bool {
    use std::arch::x86_64::__cpuid;
    let vmx = __cpuid(1).ecx & (1 << 5) != 0;
    let most = __cpuid(0x8000_0000).eax;
    let svm = most >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & (1 << 2) != 0;
    vmx || svm
}

/// Puts the call's name to the errno of a KVM call.
trait Named<T> {
    fn named(self, call: &str) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, kvm_ioctls::Error> {
    fn named(self, call: &str) -> Result<T> {
        self.map_err(|error| rustix::io::Errno::from_raw_os_error(error.errno())).context(|| call)
    }
}

/// An event's descriptor, borrowed as the rest of the program borrows descriptors.
pub(crate) fn borrow(event: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as the event, which outlives the borrow.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
