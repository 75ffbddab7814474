//! virtio 1.2: devices that share memory with their driver.
//!
//! The rooms, from the guest inwards:
//!
//! - a transport (`mmio`) turns registers into calls of
//! - `lifecycle`, which holds what every transport has in common: feature negotiation, the status machine,
//!   the queues' settings, and the way from DRIVER_OK to DEVICE_NEEDS_RESET and back;
//! - `queue` walks the rings, and `chain` is the one checked way to a guest's buffers;
//! - a device (`block`, `net`, `vsock`, `rng`, `console`) is a pure machine behind [`VirtioDevice`]. It meets
//!   its driver through [`Io`] and the world through a small trait of its own (`Disk`, `Link`, ...).
//!
//! Sections named in comments and tests are those of "Virtual I/O Device (VIRTIO) Version 1.2".

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

pub mod block;
pub mod chain;
pub mod console;
mod fault;
mod io;
pub mod lifecycle;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
mod state;
pub mod vsock;

pub use fault::Fault;
pub use io::Io;
pub use state::{DeviceState, StateError};

/// The guest's memory. Whoever lets the kernel write to a part of it holds one of these meanwhile.
pub type Memory = Arc<GuestMemoryMmap>;

/// The token with which [`VirtioDevice::ready`] is told that the time of [`VirtioDevice::wake_at`] has come.
pub const TIMER: u64 = u64::MAX;

/// Feature bits that belong to no device type (section 6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device types (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Sockets between guest and host.
    Vsock = 19,
}

/// Why the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Buffers of this queue were used.
    Queue(u16),
    /// The configuration changed, or the device needs a reset.
    Config,
}

/// The way to interrupt the driver.
pub trait Interrupt: Send + Sync {
    /// Interrupts the driver; several at once may become one.
    fn signal(&self, cause: Cause);
}

/// How much a device takes in one call before others have their turn: a chain counts one, and one more for each
/// [`TURN_BYTES`] of its buffers. A driver may let buffers overlap, so a chain of some descriptors can have 4 GiB.
const TURN: u32 = 1024;
const TURN_BYTES: u32 = 64 << 10;

/// A device type: everything that does not depend on the transport.
///
/// The queues belong to the lifecycle; a device reaches them through [`Io`] for the length of a call. A
/// call that returns a fault stops the device until its driver resets it.
pub trait VirtioDevice: Send {
    /// Its number of section 5.
    fn device_type(&self) -> DeviceType;

    /// The features that it offers, without those of [`feature`], which the lifecycle adds.
    fn features(&self) -> u64;

    /// Whether these features go together; each is on offer.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; what lies beyond its end reads as zero. Never panics.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space; what is read-only stays.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver has set DRIVER_OK: serve what stands in the queues and what the back-end has.
    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault>;

    /// The driver has put chains into a queue.
    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault>;

    /// The back-end behind `token` can go on, or it is [`TIMER`].
    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault>;

    /// When it wants [`TIMER`], at the latest.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Waits until the back-end works on no guest memory any more, and tells the driver what was done. What
    /// has not been begun stays in the queues.
    fn drain(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let _ = io;
        Ok(())
    }

    /// Forgets the driver. No I/O is in flight: [`VirtioDevice::drain`] came first.
    fn reset(&mut self);

    /// What must survive a snapshot. No I/O is in flight.
    fn save(&self) -> DeviceState;

    /// Takes the state of a device of the same type.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

impl VirtioDevice for Box<dyn VirtioDevice> {
    fn device_type(&self) -> DeviceType {
        (**self).device_type()
    }

    fn features(&self) -> u64 {
        (**self).features()
    }

    fn accepts(&self, features: u64) -> bool {
        (**self).accepts(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        (**self).read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        (**self).write_config(offset, data);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        (**self).activate(io)
    }

    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        (**self).notify(queue, io)
    }

    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        (**self).ready(token, io)
    }

    fn wake_at(&self) -> Option<Instant> {
        (**self).wake_at()
    }

    fn drain(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        (**self).drain(io)
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn save(&self) -> DeviceState {
        (**self).save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        (**self).restore(state)
    }
}

/// Answers a read of a configuration space whose bytes are `space`.
fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}
