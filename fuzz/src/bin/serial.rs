//! Any accesses to the serial port, and any input: it holds no more than its FIFO.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::Script;
use moat_vmm::device::serial::Serial;
use moat_vmm::device::{BusDevice, InterruptLine, Stream};

struct NoLine;

impl InterruptLine for NoLine {
    fn trigger(&self) {}
}

/// Gives and takes every other time.
#[derive(Default)]
struct Moody(u32);

impl Stream for Moody {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        assert!(!to.is_empty());
        self.0 += 1;
        if self.0 % 3 == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        to[0] = self.0 as u8;
        Ok(1)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        if self.0 % 2 == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(from.len()) }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut serial = Serial::new(NoLine, Moody::default());
    let mut script = Script(bytes);
    while script.goes_on() {
        let kind = script.u8();
        let offset = u64::from(kind & 15);
        match kind >> 6 {
            0 => serial.write(offset, script.take(1)),
            1 => serial.read(offset, &mut [0]),
            2 => serial.ready(),
            _ => {
                let state = serial.save();
                assert!(postcard::to_allocvec(&state).expect("a state can be written").len() < 128);
                serial.restore(&state);
            }
        }
    }
});
