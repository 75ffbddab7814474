//! Model specific registers that a guest has no business with.
//!
//! Every register of the ranges that processors use is read, and those that the list lacks are written, too. What
//! is not on the list faults in the guest, whatever KVM would have answered.

use moat_vmm::kvm::ALLOWED_MSRS;

use super::hands::{Do, Folder, Machine, PROTECTION};

/// The registers of the local interrupt controller, which no filter reaches: they stay in the kernel.
const CONTROLLER: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

fn is_allowed(register: u32) -> bool {
    ALLOWED_MSRS.iter().any(|range| (range.first..=range.last).contains(&register))
}

fn sweep() -> impl Iterator<Item = u32> {
    let ranges = [0..0x1000, 0x4b56_4d00..0x4b56_4d20, 0xc000_0000..0xc000_0200, 0xc001_0000..0xc001_0200];
    let far = [0x4000_0000, 0x4000_0100, 0x8000_0000, 0xc001_1029, 0xc001_1022, 0xffff_ffff];
    ranges.into_iter().flatten().chain(far).filter(|register| !CONTROLLER.contains(register))
}

#[test]
fn what_is_not_on_the_list_faults() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--no-serial", "--no-rng"]);
    let mut readable = 0;
    for register in sweep() {
        let read = machine.attempt(Do::ReadMsr, register.into(), 0);
        if is_allowed(register) {
            readable += u32::from(read.is_ok());
            continue;
        }
        assert_eq!(read, Err(PROTECTION), "reading {register:#x}");
        for value in [0, u64::MAX] {
            let written = machine.attempt(Do::WriteMsr, register.into(), value);
            assert_eq!(written, Err(PROTECTION), "writing {value:#x} to {register:#x}");
        }
    }
    // The list is no list of nothing.
    assert!(readable > 30, "{readable}");
    assert_eq!(machine.leave(0).0.code(), Some(0));
}
