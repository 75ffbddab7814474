//! Saving a paused machine, and making one from what was saved.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use moat_model::vmm::MachineSpec;
use vm_memory::{Bytes, GuestAddress};

use super::{Machine, Timeline, check, create_vm, runnable};
use crate::boot::layout;
use crate::isolation::{self, Thread};
use crate::lock::lock;
use crate::memory::Memory;
use crate::processor::End;
use crate::snapshot::{LateCheck, MachineState, Sums};
use crate::{Context, Error, Result};

impl Machine {
    /// Saves everything but the memory. The guest waits.
    pub(crate) fn save(&self) -> Result<MachineState> {
        let saved_msrs = self.kvm.saved_msrs()?;
        // The devices first: what they finish may raise an interrupt, which the controllers must hold.
        let virtio = self.virtio.iter().map(|virtio| lock(&virtio.transport).save()).collect();
        let serial = self.serial.as_ref().map(|serial| lock(serial).save());
        let chips = self.vm.save_chips()?;
        let clock = self.vm.save_clock()?;
        let mut vcpus = Vec::new();
        for vcpu in self.processors.vcpus() {
            let vcpu = lock(vcpu);
            let index = vcpu.index();
            vcpus.push(vcpu.save(&saved_msrs).context(|| format!("virtual processor {index}"))?);
        }
        let spec = serde_json::to_string(&self.spec)
            .map_err(|error| Error::new(format!("the machine's specification: {error}")))?;
        Ok(MachineState { spec, vcpus, chips, clock, virtio, serial, memory: Sums::default() })
    }

    /// Makes a machine from a saved one. `spec` is the saved one, perhaps with other files and taps. The
    /// guest waits, and learns by a new generation id that it is a clone.
    pub(crate) fn restore(
        state: &MachineState,
        memory: Memory,
        spec: MachineSpec,
        folders: &[BorrowedFd<'_>],
        timeline: &mut Timeline,
    ) -> Result<Self> {
        check(&spec)?;
        if spec.flat.is_none() {
            runnable()?;
        }
        if state.vcpus.len() != usize::from(spec.cpus) || spec.memory_bytes != memory.size_bytes() {
            return Err(Error::new("its state is not that of the machine which it describes"));
        }
        let (kvm, vm) = create_vm(&memory, spec.kvm.as_deref())?;
        timeline.mark("VM, memory slots, interrupt controllers");
        let mut vcpus = Vec::new();
        for (index, saved) in (0..).zip(&state.vcpus) {
            let vcpu = vm.create_vcpu(index)?;
            vcpu.restore(saved).context(|| format!("virtual processor {index}"))?;
            vcpus.push(vcpu);
        }
        vm.restore_chips(&state.chips)?;
        vm.restore_clock(state.clock)?;
        new_generation(&memory)?;
        timeline.mark("virtual processors");
        let machine = Self::assemble(spec, memory, kvm, vm, vcpus, folders, timeline)?;
        machine.restore_devices(state)?;
        timeline.mark("state of the devices");
        Ok(machine)
    }

    /// Checks the memory's sums while the guest runs; a wrong one ends it.
    pub(crate) fn check_late(&self, check: LateCheck) -> Result<()> {
        let ending = Arc::clone(&self.ending);
        let filter = isolation::filter(Thread::Check)?;
        let work = move || {
            if let Err(error) = isolation::enter(&filter).and_then(|()| check.run()) {
                ending.tell(End::Failed(error));
            }
        };
        // Nobody waits for it: when the guest ends first, it ends with the process.
        let thread = std::thread::Builder::new().name("check".to_owned()).spawn(work);
        thread.map(drop).context(|| "thread that checks the memory")
    }

    fn restore_devices(&self, state: &MachineState) -> Result<()> {
        if state.virtio.len() != self.virtio.len() || state.serial.is_some() != self.serial.is_some() {
            return Err(Error::new("its devices are not those of the machine which it describes"));
        }
        for (virtio, saved) in self.virtio.iter().zip(&state.virtio) {
            let restored = lock(&virtio.transport).restore(saved);
            restored.map_err(|error| Error::new(format!("{}: {error}", virtio.name)))?;
            // An interrupt that was on its way when the machine was saved is lost; one too many is none of
            // the driver's concern.
            virtio.line.trigger();
        }
        if let (Some(serial), Some(saved)) = (&self.serial, &state.serial) {
            lock(serial).restore(saved);
        }
        // "The generation id has changed."
        self.generation.write(1).context(|| "telling the new generation id")
    }
}

/// Gives the machine an identity of its own.
pub(super) fn new_generation(memory: &Memory) -> Result<()> {
    let mut id = [0_u8; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).context(|| "random bytes")?;
    let written = memory.guest().write_slice(&id, GuestAddress(layout::GENERATION_ID));
    written.map_err(|error| Error::new(format!("writing the generation id: {error}")))
}
