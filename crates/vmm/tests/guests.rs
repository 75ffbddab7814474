//! Tiny guests on the real KVM: some instructions each, so they run where KVM interprets them, too.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails, and says where")]

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use moat_vmm::boot::{self, Entry, layout};
use moat_vmm::bus::Bus;
use moat_vmm::device::BusDevice;
use moat_vmm::device::power::Power;
use moat_vmm::exits::{Cause, ExitReport};
use moat_vmm::kvm::cpuid::{CpuidSpec, Leaves};
use moat_vmm::kvm::{Kvm, Space};
use moat_vmm::memory::{Memory, MemorySpec};
use moat_vmm::processor::{End, Ending, Processors, Surroundings};

/// Keeps what is written to its ports.
#[derive(Default)]
struct Sink(Vec<u8>);

impl BusDevice for Sink {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0x40 + offset as u8);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.0.extend_from_slice(data);
    }
}

struct Guest {
    processors: Processors,
    ending: Arc<Ending>,
    sink: Arc<Mutex<Sink>>,
    bus: Arc<Bus>,
}

const CODE: u64 = 0x1000;
const SINK_PORT: u64 = 0x3f8;
const SINK_ADDRESS: u64 = 0xd000_0000;

impl Guest {
    fn new(code: &mut CodeAssembler, long: bool) -> Self {
        let entry = if long {
            Entry::Long { address: CODE, zero_page: 0 }
        } else {
            Entry::Real { address: CODE as u16 }
        };
        let bytes = code.assemble(CODE).unwrap();
        let memory = Memory::new(MemorySpec { size_bytes: 4 << 20, hugepages: false }).unwrap();
        boot::load_flat(&memory, &mut bytes.as_slice(), entry).unwrap();
        let kvm = Kvm::open().unwrap();
        let mut vm = kvm.create_vm().unwrap();
        vm.set_memory(&memory).unwrap();
        vm.filter_msrs().unwrap();
        vm.create_chips().unwrap();
        let leaves = Leaves::new(&kvm, CpuidSpec { cpus: 1, nested: false }).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid(&leaves.of(0).unwrap()).unwrap();
        entry.apply(&vcpu, memory.guest()).unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let sink = Arc::new(Mutex::new(Sink::default()));
        let mut bus = Bus::default();
        bus.add(Space::Port, SINK_PORT, 8, "sink", sink.clone());
        bus.add(Space::Memory, SINK_ADDRESS, 4096, "sink", sink.clone());
        let power = Arc::new(Mutex::new(Power::new(Arc::clone(&ending))));
        bus.add(Space::Port, layout::POWER_PORT.into(), layout::POWER_PORTS.into(), "power", power);
        let bus = Arc::new(bus);
        let around = Surroundings { bus: Arc::clone(&bus), ending: Arc::clone(&ending), symbols: None };
        let processors = Processors::new(vec![vcpu], &around, || Ok(())).unwrap();
        Self { processors, ending, sink, bus }
    }

    /// Runs to the end of the guest.
    fn run(&mut self) -> End {
        self.processors.resume();
        self.ending.event().read().ok();
        let end = loop {
            if let Some(end) = self.ending.told() {
                break end;
            }
            std::thread::yield_now();
        };
        self.processors.stop().unwrap();
        end
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.sink.lock().unwrap().0).into_owned()
    }

    fn report(&self) -> ExitReport {
        ExitReport::new(self.processors.exit_logs(), self.bus.names(), |_| None)
    }
}

/// Ends the guest with an exit code.
fn leave(code: &mut CodeAssembler, value: u32) {
    code.mov(dx, u32::from(layout::POWER_PORT) + 3).unwrap();
    code.mov(al, value).unwrap();
    code.out(dx, al).unwrap();
    let mut forever = code.create_label();
    code.set_label(&mut forever).unwrap();
    code.jmp(forever).unwrap();
}

#[test]
fn a_guest_in_real_mode_says_hello_and_every_exit_is_counted() {
    let mut code = CodeAssembler::new(16).unwrap();
    code.mov(dx, SINK_PORT as u32).unwrap();
    for letter in b"hello" {
        code.mov(al, u32::from(*letter)).unwrap();
        code.out(dx, al).unwrap();
    }
    code.add(dx, 5).unwrap();
    code.in_(al, dx).unwrap();
    // What was read is the exit code.
    code.mov(bl, al).unwrap();
    code.mov(dx, u32::from(layout::POWER_PORT) + 3).unwrap();
    code.mov(al, bl).unwrap();
    code.out(dx, al).unwrap();
    code.hlt().unwrap();
    let mut guest = Guest::new(&mut code, false);
    assert_eq!(guest.run(), End::PowerOff(0x45));
    assert_eq!(guest.said(), "hello");
    let report = guest.report();
    let row = |register: u64, direction: &str| {
        report
            .rows
            .iter()
            .find(|row| row.device == "sink" && row.register == register && row.direction == direction)
            .unwrap()
    };
    assert_eq!((row(0, "write").exits, row(0, "write").bytes), (5, 5));
    assert_eq!(row(5, "read").exits, 1);
    assert!(row(0, "write").total_ns > 0);
    assert!(report.to_string().contains("sink"), "{report}");
}

#[test]
fn a_string_instruction_is_told_part_by_part() {
    let mut code = CodeAssembler::new(16).unwrap();
    code.cld().unwrap();
    code.mov(di, 0x2000).unwrap();
    for letter in b"string" {
        code.mov(al, u32::from(*letter)).unwrap();
        code.stosb().unwrap();
    }
    code.mov(dx, SINK_PORT as u32).unwrap();
    code.mov(si, 0x2000).unwrap();
    code.mov(cx, 6).unwrap();
    code.rep().outsb().unwrap();
    // Read two bytes back by a string, say them again.
    code.mov(di, 0x3000).unwrap();
    code.mov(cx, 2).unwrap();
    code.rep().insb().unwrap();
    code.mov(si, 0x3000).unwrap();
    code.mov(cx, 2).unwrap();
    code.rep().outsb().unwrap();
    leave(&mut code, 0);
    let mut guest = Guest::new(&mut code, false);
    assert_eq!(guest.run(), End::PowerOff(0));
    assert_eq!(guest.said(), "string@@");
}

#[test]
fn a_guest_in_long_mode_reaches_registers_by_address_in_every_width() {
    let mut code = CodeAssembler::new(64).unwrap();
    code.mov(rbx, SINK_ADDRESS).unwrap();
    code.mov(rax, 0x6867_6665_6463_6261_u64).unwrap();
    code.mov(ptr(rbx), al).unwrap();
    code.mov(ptr(rbx + 8), ax).unwrap();
    code.mov(ptr(rbx + 16), eax).unwrap();
    code.mov(ptr(rbx + 24), rax).unwrap();
    // A read of 4 bytes at offset 2 gives 0x42424242, whose lowest byte is said.
    code.mov(eax, ptr(rbx + 2)).unwrap();
    code.shr(eax, 24).unwrap();
    code.mov(ptr(rbx), al).unwrap();
    leave(&mut code, 0);
    let mut guest = Guest::new(&mut code, true);
    assert_eq!(guest.run(), End::PowerOff(0));
    assert_eq!(guest.said(), "aababcdabcdefghB");
    let report = guest.report();
    assert_eq!(report.rows.iter().filter(|row| row.cause == Cause::Mmio).count(), 5);
}

#[test]
fn a_triple_fault_names_the_place() {
    let mut code = CodeAssembler::new(64).unwrap();
    code.ud2().unwrap();
    let mut guest = Guest::new(&mut code, true);
    let End::TripleFault(place) = guest.run() else { panic!("no triple fault") };
    assert!(place.contains("at 0x1000"), "{place}");
}
