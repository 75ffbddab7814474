//! virtio over MMIO (section 4.2): a window of 32-bit registers, and the configuration space behind it.
//!
//! The control registers take aligned accesses of 32 bits and nothing else (section 4.2.2.2); any other
//! access reads as zero or is ignored. The configuration space takes every width.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::lifecycle::{Area, Lifecycle, LifecycleState};
use super::queue::Queue;
use super::{Cause, Fault, Interrupt, Memory, StateError, VirtioDevice};
use crate::device::BusDevice;
pub use crate::device::InterruptLine;

/// Size of the window in bytes.
pub const WINDOW_BYTES: u64 = 4096;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MOAT".
const VENDOR: u32 = 0x5441_4f4d;

/// Offsets of the registers (section 4.2.2).
pub mod register {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bit of InterruptStatus: buffers were used.
pub const USED_BUFFER: u32 = 1;
/// Bit of InterruptStatus: the configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// InterruptStatus and the wire.
struct InterruptRegister {
    status: AtomicU32,
    line: Arc<dyn InterruptLine>,
}

impl Interrupt for InterruptRegister {
    fn signal(&self, cause: Cause) {
        let bit = match cause {
            Cause::Queue(_) => USED_BUFFER,
            Cause::Config => CONFIG_CHANGE,
        };
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.trigger();
    }
}

/// A transport as saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    interrupt_status: u32,
    lifecycle: LifecycleState,
}

/// A device behind MMIO registers.
pub struct Transport<D> {
    lifecycle: Lifecycle<D>,
    interrupt: Arc<InterruptRegister>,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl<D: VirtioDevice> Transport<D> {
    /// Registers after reset.
    pub fn new(device: D, memory: Memory, line: Arc<dyn InterruptLine>) -> Self {
        let interrupt = Arc::new(InterruptRegister { status: AtomicU32::new(0), line });
        let lifecycle = Lifecycle::new(device, memory, Arc::clone(&interrupt) as Arc<dyn Interrupt>);
        Self { lifecycle, interrupt, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 }
    }

    /// The part that does not depend on the transport.
    pub fn lifecycle(&self) -> &Lifecycle<D> {
        &self.lifecycle
    }

    /// The part that does not depend on the transport.
    pub fn lifecycle_mut(&mut self) -> &mut Lifecycle<D> {
        &mut self.lifecycle
    }

    /// The driver wrote `queue` to QueueNotify, which an ioeventfd may have taken in its place.
    pub fn notify(&mut self, queue: u32) {
        self.lifecycle.notify(queue);
    }

    /// The back-end behind `token` is ready.
    pub fn ready(&mut self, token: u64) {
        self.lifecycle.ready(token);
    }

    /// When to call [`Transport::ready`] with [`super::TIMER`], though nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        self.lifecycle.wake_at()
    }

    /// The last fault, once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.lifecycle.take_fault()
    }

    /// Finishes what is in flight.
    pub fn drain(&mut self) {
        self.lifecycle.drain();
    }

    /// What survives a snapshot. Drains first.
    pub fn save(&mut self) -> TransportState {
        let lifecycle = self.lifecycle.save();
        TransportState {
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            lifecycle,
        }
    }

    /// Takes a saved state into a device that has just been made.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        self.lifecycle.restore(&state.lifecycle)?;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        self.interrupt.status.store(state.interrupt_status & (USED_BUFFER | CONFIG_CHANGE), Ordering::SeqCst);
        Ok(())
    }

    /// After a pause or a restore: serves what came meanwhile.
    pub fn resume(&mut self) {
        self.lifecycle.resume();
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.lifecycle.queue(self.queue_sel);
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.lifecycle.device().device_type() as u32,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.device_features_sel {
                0 => self.lifecycle.offered() as u32,
                1 => (self.lifecycle.offered() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.maximum().into()),
            register::QUEUE_READY => queue.is_some_and(Queue::is_ready).into(),
            register::INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            register::STATUS => self.lifecycle.status().into(),
            register::CONFIG_GENERATION => self.lifecycle.generation(),
            // There is no shared memory region, whichever is selected.
            register::SHM_LEN_LOW
            | register::SHM_LEN_HIGH
            | register::SHM_BASE_LOW
            | register::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let queue = self.queue_sel;
        let mut address = |area, high| self.lifecycle.set_queue_address(queue, area, high, value);
        match offset {
            register::QUEUE_DESC_LOW => address(Area::Descriptors, false),
            register::QUEUE_DESC_HIGH => address(Area::Descriptors, true),
            register::QUEUE_DRIVER_LOW => address(Area::Driver, false),
            register::QUEUE_DRIVER_HIGH => address(Area::Driver, true),
            register::QUEUE_DEVICE_LOW => address(Area::Device, false),
            register::QUEUE_DEVICE_HIGH => address(Area::Device, true),
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.lifecycle.set_features(self.driver_features_sel, value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NUM => self.lifecycle.set_queue_size(queue, value),
            register::QUEUE_READY => self.lifecycle.set_queue_ready(queue, value & 1 != 0),
            register::QUEUE_NOTIFY => self.lifecycle.notify(value),
            register::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            register::STATUS => self.write_status(value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        // Bits beyond the eighth do not exist; a value that has only those is no reset.
        if value > 0xff {
            return;
        }
        self.lifecycle.set_status(value as u8);
        if value == 0 {
            // Section 4.2.2.1: a reset clears InterruptStatus.
            self.interrupt.status.store(0, Ordering::SeqCst);
            self.device_features_sel = 0;
            self.driver_features_sel = 0;
            self.queue_sel = 0;
        }
    }
}

impl<D: VirtioDevice> BusDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.lifecycle.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data)
            && offset.is_multiple_of(4)
        {
            *data = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.lifecycle.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}
