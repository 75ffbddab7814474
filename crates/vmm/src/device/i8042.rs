//! The keyboard controller, of which a machine without a keyboard needs one thing: its wire to the
//! processor's reset pin, which kernels pull to reboot.

use super::{BusDevice, InterruptLine};

/// Its first port.
pub const FIRST_PORT: u16 = 0x60;
/// How many ports its window has: data at the first, command and status at the last.
pub const PORTS: u16 = 5;

const COMMAND: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// The controller.
#[derive(Debug)]
pub struct I8042<L> {
    reset: L,
}

impl<L: InterruptLine> I8042<L> {
    /// A controller that triggers `reset` when the guest asks to be reset.
    pub fn new(reset: L) -> Self {
        Self { reset }
    }
}

impl<L: InterruptLine> BusDevice for I8042<L> {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No key was pressed, and commands are taken at once.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND, &[PULSE_RESET]) {
            self.reset.trigger();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl InterruptLine for Count {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_the_reset_command_resets() {
        let count = Arc::new(Count::default());
        let mut controller = I8042::new(Arc::clone(&count));
        let mut byte = [0xff];
        controller.read(COMMAND, &mut byte);
        // The input buffer is empty, so the next command may come; a kernel waits for that.
        assert_eq!(byte[0] & 2, 0);
        for offset in 0..u64::from(PORTS) {
            for byte in 0..=u8::MAX {
                controller.write(offset, &[byte]);
                controller.write(offset, &[byte, byte]);
                controller.write(offset, &[]);
            }
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
