//! What all transports have in common: a device from reset to DRIVER_OK and back (sections 2.1, 2.2, 3.1).
//!
//! ```text
//!            ACKNOWLEDGE     DRIVER        FEATURES_OK          DRIVER_OK
//!   reset ------------> . ------------> . -------------> . ----------------> live
//!     ^                          features may be       queues may be          |
//!     |                          written               written                | fault
//!     |                                                                       v
//!     +---------------------- status = 0 (drains) ---------------------- NEEDS_RESET
//! ```
//!
//! Only the driver moves to the right, only a fault moves down, and only status 0 leads back. What the
//! driver writes out of its turn is ignored: features once FEATURES_OK is set, a queue's settings once it is
//! ready or DRIVER_OK is set. So nothing can move beneath a live device.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::queue::{Queue, QueueState};
use super::{Cause, DeviceState, Fault, Interrupt, Io, Memory, StateError, VirtioDevice, feature};

/// Bits of the device status (section 2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Features are negotiated.
    pub const FEATURES_OK: u8 = 8;
    /// The device can not go on.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// The steps of initialization in their order (section 3.1.1).
const STEPS: [u8; 4] = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];

/// One of a queue's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Descriptor table.
    Descriptors,
    /// Available ring.
    Driver,
    /// Used ring.
    Device,
}

/// A lifecycle as saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleState {
    status: u8,
    features: u64,
    generation: u32,
    queues: Vec<QueueState>,
    device: DeviceState,
}

/// A device and what its driver has set.
pub struct Lifecycle<D> {
    device: D,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    status: u8,
    /// What the driver accepts.
    features: u64,
    generation: u32,
    queues: Vec<Queue>,
    fault: Option<Fault>,
    faults: u64,
    /// The device has stopped in the middle, so that others have their turn.
    again: bool,
}

fn fresh(sizes: &[u16]) -> Vec<Queue> {
    sizes.iter().zip(0..).map(|(maximum, index)| Queue::new(index, *maximum)).collect()
}

impl<D: VirtioDevice> Lifecycle<D> {
    /// A device after reset.
    pub fn new(device: D, memory: Memory, interrupt: Arc<dyn Interrupt>) -> Self {
        let queues = fresh(device.queue_sizes());
        Self {
            device,
            memory,
            interrupt,
            status: 0,
            features: 0,
            generation: 0,
            queues,
            fault: None,
            faults: 0,
            again: false,
        }
    }

    /// The device, for what concerns neither its driver nor the transport.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, as above.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// All features on offer.
    pub fn offered(&self) -> u64 {
        self.device.features() | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1
    }

    /// What the driver has accepted so far.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Counts changes of the configuration space.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// A queue, if there is one of this number.
    pub fn queue(&self, index: u32) -> Option<&Queue> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The last fault, once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// How many faults there were.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Whether it may touch the driver's buffers.
    pub fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK
    }

    /// The driver accepts features: bits 0 to 31 as word 0, 32 to 63 as word 1.
    pub fn set_features(&mut self, word: u32, value: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK | status::FAILED) != status::DRIVER {
            return;
        }
        match word {
            0 => self.features = self.features >> 32 << 32 | u64::from(value),
            1 => self.features = self.features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// The driver writes the status.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let own = status::NEEDS_RESET;
        // Section 2.1.1: the driver clears no bit but by a reset; the device's own bit is not the driver's.
        if self.status & !own & !value != 0 || self.status & status::FAILED != 0 {
            return;
        }
        if value & status::FAILED != 0 {
            self.status |= status::FAILED;
            return;
        }
        for step in STEPS {
            if self.status & step != 0 {
                continue;
            }
            if value & step == 0 || !self.advance(step) {
                break;
            }
        }
    }

    /// One step of initialization; false if the driver has to stop there.
    fn advance(&mut self, step: u8) -> bool {
        match step {
            status::FEATURES_OK => {
                let unknown = self.features & !self.offered();
                // Sections 2.2.2 and 6.2: no such subset, no FEATURES_OK.
                if unknown != 0
                    || self.features & feature::VERSION_1 == 0
                    || !self.device.accepts(self.features)
                {
                    return false;
                }
                self.status |= step;
            }
            status::DRIVER_OK => {
                self.status |= step;
                self.start();
            }
            _ => self.status |= step,
        }
        true
    }

    fn start(&mut self) {
        let started = self.queues.iter_mut().try_for_each(|queue| queue.start(&self.memory, self.features));
        match started {
            Ok(()) => self.with(|device, io| device.activate(io)),
            Err(fault) => self.fail(fault),
        }
    }

    /// Calls the device while it is live; its fault is the end of that.
    fn with(&mut self, call: impl FnOnce(&mut D, &mut Io<'_>) -> Result<(), Fault>) {
        if self.is_live()
            && let Err(fault) = self.call(call)
        {
            self.fail(fault);
        }
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut D, &mut Io<'_>) -> T) -> T {
        let mut io = Io {
            memory: &self.memory,
            queues: &mut self.queues,
            features: self.features,
            interrupt: &*self.interrupt,
            generation: &mut self.generation,
            turn: super::TURN,
            again: false,
        };
        let result = call(&mut self.device, &mut io);
        self.again |= io.again;
        result
    }

    /// Section 2.1.2: the device says that it needs a reset, and interrupts a driver that is ready for it.
    fn fail(&mut self, fault: Fault) {
        self.fault = Some(fault);
        self.faults += 1;
        self.status |= status::NEEDS_RESET;
        if self.status & status::DRIVER_OK != 0 {
            self.interrupt.signal(Cause::Config);
        }
    }

    /// Back to the beginning. Returns when the device works on none of the driver's buffers any more.
    pub fn reset(&mut self) {
        if self.status & status::DRIVER_OK != 0 {
            // Whatever the driver has done to its rings meanwhile, it wants none of them any more.
            let _ = self.call(|device, io| device.drain(io));
        }
        self.device.reset();
        self.queues = fresh(self.device.queue_sizes());
        self.status = 0;
        self.features = 0;
        self.again = false;
    }

    /// A queue whose settings the driver may write now.
    fn settable(&mut self, index: u32) -> Option<&mut Queue> {
        let needed = status::DRIVER | status::FEATURES_OK;
        let frozen = status::DRIVER_OK | status::NEEDS_RESET | status::FAILED;
        if self.status & (needed | frozen) != needed {
            return None;
        }
        let queue = self.queues.get_mut(usize::try_from(index).ok()?)?;
        (!queue.state.ready).then_some(queue)
    }

    /// The driver sets a queue's size. A wrong one is found when the queue starts.
    pub fn set_queue_size(&mut self, index: u32, size: u32) {
        if let Some(queue) = self.settable(index) {
            queue.state.size = u16::try_from(size).unwrap_or(u16::MAX);
        }
    }

    /// The driver sets half of an address.
    pub fn set_queue_address(&mut self, index: u32, area: Area, high: bool, value: u32) {
        let Some(queue) = self.settable(index) else { return };
        let address = match area {
            Area::Descriptors => &mut queue.state.descriptors,
            Area::Driver => &mut queue.state.available,
            Area::Device => &mut queue.state.used,
        };
        *address = if high {
            *address & 0xffff_ffff | u64::from(value) << 32
        } else {
            *address >> 32 << 32 | u64::from(value)
        };
    }

    /// The driver enables a queue, or wants no more of it: then it is served no more until the next reset,
    /// and nothing of it is in flight when this returns.
    pub fn set_queue_ready(&mut self, index: u32, ready: bool) {
        if ready {
            if let Some(queue) = self.settable(index) {
                queue.state.ready = true;
            }
            return;
        }
        if self.status & status::DRIVER_OK != 0 && self.queue(index).is_some_and(Queue::is_ready) {
            self.drain();
        }
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index));
        if let Some(queue) = queue {
            queue.state.ready = false;
        }
    }

    /// The driver notifies of new chains.
    pub fn notify(&mut self, index: u32) {
        if let (true, Ok(queue)) = (self.queue(index).is_some_and(Queue::is_ready), u16::try_from(index)) {
            self.with(|device, io| device.notify(queue, io));
        }
    }

    /// The back-end behind `token` is ready.
    pub fn ready(&mut self, token: u64) {
        if token == super::TIMER {
            self.again = false;
        }
        self.with(|device, io| device.ready(token, io));
    }

    /// When the device wants to be called though nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.is_live() {
            true if self.again => Some(Instant::now()),
            true => self.device.wake_at(),
            false => None,
        }
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes to it; only a driver may.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & (status::DRIVER | status::FAILED) == status::DRIVER {
            self.device.write_config(offset, data);
        }
    }

    /// The configuration space reads otherwise now.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.is_live() {
            self.interrupt.signal(Cause::Config);
        }
    }

    /// Finishes what is in flight.
    pub fn drain(&mut self) {
        if self.status & status::DRIVER_OK == 0 {
            return;
        }
        let live = self.is_live();
        if let Err(fault) = self.call(|device, io| device.drain(io))
            && live
        {
            self.fail(fault);
        }
    }

    /// What survives a snapshot. Drains first.
    pub fn save(&mut self) -> LifecycleState {
        self.drain();
        LifecycleState {
            status: self.status,
            features: self.features,
            generation: self.generation,
            queues: self.queues.iter().map(|queue| *queue.state()).collect(),
            device: self.device.save(),
        }
    }

    /// Takes a saved state into a device that has just been made. [`Lifecycle::resume`] sets it going.
    pub fn restore(&mut self, state: &LifecycleState) -> Result<(), StateError> {
        if state.queues.len() != self.queues.len() {
            return Err(StateError::Mismatch("it has another number of queues"));
        }
        let known = STEPS.iter().fold(status::NEEDS_RESET | status::FAILED, |known, step| known | step);
        if state.status & !known != 0 {
            return Err(StateError::Mismatch("its status has bits that do not exist"));
        }
        let mut queues = fresh(self.device.queue_sizes());
        for (queue, saved) in queues.iter_mut().zip(&state.queues) {
            queue.state = *saved;
            let live = state.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK;
            if live && queue.start(&self.memory, state.features).is_err() {
                return Err(StateError::Mismatch("a queue does not lie in this guest's memory"));
            }
        }
        self.device.restore(&state.device)?;
        // What is offered may follow from what was restored, as a terminal's size.
        if state.status & status::FEATURES_OK != 0 && state.features & !self.offered() != 0 {
            return Err(StateError::Mismatch("its driver uses features that are not offered here"));
        }
        self.queues = queues;
        self.status = state.status;
        self.features = state.features;
        self.generation = state.generation;
        Ok(())
    }

    /// After a pause or a restore: serves what came meanwhile.
    pub fn resume(&mut self) {
        self.with(|device, io| device.activate(io));
    }
}
