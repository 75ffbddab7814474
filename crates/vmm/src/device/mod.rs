//! What the guest reaches by address: a device is a window of registers.
//!
//! A device is a machine. It is generic over its interrupt and its back-end, and there is no descriptor,
//! no thread and no KVM in it; the event loop owns those. So each runs in a test as it runs in the monitor.

pub mod power;

/// A window of ports or of memory-mapped registers.
///
/// The guest chooses offset, length and bytes; nothing it chooses may panic or block.
pub trait BusDevice: Send {
    /// Fills `data` with what stands at `offset` bytes of the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset` bytes of the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}
