//! Switching the machine off: ACPI's sleep control and reset registers, and one port for an exit code.
//!
//! | port | register |
//! |---|---|
//! | 0 | sleep control: the sleep type in bits 2 to 4, enable in bit 5; type 5 with enable switches off |
//! | 1 | sleep status: bit 7, "woke up", which never happens |
//! | 2 | reset: 1 resets |
//! | 3 | exit code: any value switches off, and the monitor ends with it |

use std::sync::Arc;

use super::BusDevice;
use crate::processor::{End, Ending};

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_OFF: u8 = 5;

/// The machine's switch.
#[derive(Debug)]
pub struct Power {
    ending: Arc<Ending>,
}

impl Power {
    /// Tells the end there.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [value, ..]) if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_OFF => {
                self.ending.tell(End::PowerOff(0));
            }
            (2, [crate::boot::RESET_VALUE, ..]) => self.ending.tell(End::Reset),
            (3, [code, ..]) => self.ending.tell(End::PowerOff(*code)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_value_at_the_right_port_ends_the_guest() {
        let end = |offset: u64, value: u8| {
            let ending = Arc::new(Ending::new().unwrap());
            Power::new(Arc::clone(&ending)).write(offset, &[value]);
            ending.told()
        };
        assert_eq!(end(0, 0x34), Some(End::PowerOff(0)));
        assert_eq!(end(2, 1), Some(End::Reset));
        assert_eq!(end(3, 7), Some(End::PowerOff(7)));
        for (offset, value) in [(0, 0x14), (0, 0x24), (1, 0x34), (2, 0), (4, 1)] {
            assert_eq!(end(offset, value), None, "{offset} {value:#x}");
        }
    }
}
