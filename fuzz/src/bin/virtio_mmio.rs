//! Any accesses to the registers of the MMIO transport, in any order; the status machine keeps its order.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::Script;
use moat_vmm::device::{BusDevice, InterruptLine};
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::virtio::lifecycle::status;
use moat_vmm::virtio::mmio::{Transport, register};
use moat_vmm::virtio::rng::{Entropy, Rng};
use vm_memory::{GuestAddress, GuestMemoryMmap};

struct Zeroes;

impl Entropy for Zeroes {
    fn fill(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        to.fill(0);
        Ok(())
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn trigger(&self) {}
}

fuzz_target!(|bytes: &[u8]| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10)]).expect("a guest's memory");
    let device = Rng::new(Zeroes, RateLimit::none());
    let mut transport = Transport::new(device, Arc::new(memory), Arc::new(NoLine));
    let mut script = Script(bytes);
    while script.goes_on() {
        let kind = script.u8();
        let before = transport.lifecycle().status();
        let queue = transport.lifecycle().queue(0).map(|queue| *queue.state());
        // Mostly whole registers; the status often, since it leads to the rest.
        let (offset, value) = match kind % 8 {
            0 => (register::STATUS, u64::from(script.u8())),
            1 => (register::STATUS, [1, 3, 11, 15][usize::from(script.u8()) % 4]),
            2 => (u64::from(script.u16()), script.u64()),
            3 => (register::DRIVER_FEATURES, u64::from(script.u8() & 1)),
            4 => (register::DRIVER_FEATURES_SEL, u64::from(script.u8() & 3)),
            _ => (u64::from(script.u8() & 0x3f) * 4, u64::from(script.u16())),
        };
        let width = if kind % 8 == 2 { usize::from(kind >> 3) % 9 } else { 4 };
        transport.write(offset, &value.to_le_bytes()[..width]);
        let mut data = [0; 8];
        transport.read(offset, &mut data[..width]);
        let after = transport.lifecycle().status();
        assert!(after == 0 || after & before == before, "bits were cleared: {before:#x} {after:#x}");
        let order = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];
        let steps = order.iter().take_while(|step| after & *step != 0).count();
        assert!(order[steps..].iter().all(|step| after & step == 0), "steps out of order: {after:#x}");
        if before & after & status::DRIVER_OK != 0 {
            let now = transport.lifecycle().queue(0).map(|queue| *queue.state());
            let place = |state: &moat_vmm::virtio::queue::QueueState| {
                (state.size, state.descriptors, state.available, state.used)
            };
            assert_eq!(queue.as_ref().map(place), now.as_ref().map(place), "a live queue has moved");
        }
    }
});
