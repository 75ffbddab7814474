//! What the guest reaches by address: a device is a window of registers.
//!
//! A device is a machine. It is generic over its interrupt and its back-end, and there is no descriptor,
//! no thread and no KVM in it; the event loop owns those. So each runs in a test as it runs in the monitor.

pub mod i8042;
pub mod power;
pub mod serial;

/// A wire: to the guest's interrupt controller, or to whoever resets the machine.
pub trait InterruptLine: Send + Sync {
    /// Sends an edge.
    fn trigger(&self);
}

impl<L: InterruptLine + ?Sized> InterruptLine for std::sync::Arc<L> {
    fn trigger(&self) {
        (**self).trigger();
    }
}

/// Bytes to and from a terminal, a pipe or a file. Never blocks: what would is `WouldBlock`, and the event
/// loop calls the device's `ready` when that has changed.
pub trait Stream: Send {
    /// Reads; 0 is the end.
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize>;
    /// Writes; returns how much was taken.
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize>;
    /// Columns and rows, if it is a terminal.
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
}

impl Stream for Box<dyn Stream> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        (**self).read(to)
    }

    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        (**self).write(from)
    }

    fn size(&self) -> Option<(u16, u16)> {
        (**self).size()
    }
}

/// A window of ports or of memory-mapped registers.
///
/// The guest chooses offset, length and bytes; nothing it chooses may panic or block.
pub trait BusDevice: Send {
    /// Fills `data` with what stands at `offset` bytes of the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset` bytes of the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}
