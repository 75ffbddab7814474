//! A guest that tries to run guests: the most intricate code of KVM is reached by nobody who was not given it.

use super::hands::{Do, Exception, FREE, Folder, Machine, PROTECTION, UNDEFINED};

const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
const CR4_VMXE: u64 = 1 << 13;
const EFER: u64 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;

#[test]
fn vmx_and_svm_are_neither_shown_nor_there() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--no-serial", "--no-rng"]);
    let [_, _, ecx, _] = machine.cpuid(1);
    assert_eq!(ecx & VMX, 0, "CPUID shows VMX");
    // The guest knows that it is one.
    assert_ne!(ecx & 1 << 31, 0);
    let [_, _, ecx, _] = machine.cpuid(0x8000_0001);
    assert_eq!(ecx & SVM, 0, "CPUID shows SVM");
    assert_eq!(machine.cpuid(0x8000_000a), [0; 4], "CPUID describes SVM");
    // Neither can be switched on.
    let cr4 = machine.run(Do::ReadCr4, 0, 0);
    assert_eq!(machine.attempt(Do::WriteCr4, 0, cr4 | CR4_VMXE), Err(PROTECTION));
    let efer = machine.run(Do::ReadMsr, EFER, 0);
    assert_eq!(machine.attempt(Do::WriteMsr, EFER, efer | EFER_SVME), Err(PROTECTION));
    // The registers that describe VMX and SVM.
    for register in (0x480..0x492).chain([0xc001_0114, 0xc001_0117]) {
        assert_eq!(
            machine.attempt(Do::ReadMsr, register, 0),
            Err::<u64, Exception>(PROTECTION),
            "{register:#x}"
        );
    }
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

/// Their instructions do not exist. A KVM that interprets every instruction knows them as little as the guest should,
/// and ends the guest there.
#[test]
fn the_instructions_of_vmx_and_svm_do_not_exist() {
    for what in [Do::Vmxon, Do::Vmrun] {
        let folder = Folder::new();
        let machine = Machine::new(&folder, &["--no-serial", "--no-rng"]);
        if moat_vmm::kvm::hardware_virtualization() {
            assert_eq!(machine.attempt(what, FREE, 0), Err(UNDEFINED), "{what:?}");
            assert_eq!(machine.leave(0).0.code(), Some(0));
            continue;
        }
        machine.ask(what, FREE, 0);
        if let Some(answer) = machine.answer_or_end() {
            assert_eq!(answer, Err(UNDEFINED), "{what:?}");
            assert_eq!(machine.leave(0).0.code(), Some(0));
            continue;
        }
        let (status, _, errors) = machine.end();
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("KVM could not emulate an instruction"), "{errors}");
    }
}
