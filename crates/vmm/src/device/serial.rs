//! The 16550 serial port: what a kernel prints to before it has drivers.
//!
//! As the chip, it holds one byte on its way out and up to 64 on their way in, so a guest that floods it
//! costs no memory: while the other side takes nothing, the transmitter reads as busy, and a byte written
//! nevertheless replaces the one that waits. Parity, speed and the modem lines are stored and mean nothing.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{BusDevice, InterruptLine, Stream};

/// How many ports it has.
pub const PORTS: u16 = 8;
/// What the receiver holds.
const FIFO_BYTES: usize = 64;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1;
const IER_SENT: u8 = 2;
const IIR_NONE: u8 = 1;
const IIR_SENT: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 2;
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_RECEIVED: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_IDLE: u8 = 0x60;
/// Clear to send, data set ready, carrier.
const MSR_CONNECTED: u8 = 0xb0;

/// The registers, and the bytes on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    interrupts: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: bool,
    overrun: bool,
    /// The transmitter has become empty, and nobody was told.
    sent: bool,
    received: VecDeque<u8>,
    sending: Option<u8>,
}

/// The port.
#[derive(Debug)]
pub struct Serial<L, S> {
    line: L,
    stream: S,
    state: SerialState,
    /// The stream has ended or is broken: what is written goes nowhere, nothing comes.
    broken: bool,
}

impl<L: InterruptLine, S: Stream> Serial<L, S> {
    /// A port after reset, which speaks to `stream`.
    pub fn new(line: L, stream: S) -> Self {
        let state = SerialState {
            interrupts: 0,
            line_control: 3,
            modem_control: 8,
            scratch: 0,
            divisor: [12, 0],
            fifo: false,
            overrun: false,
            sent: false,
            received: VecDeque::with_capacity(FIFO_BYTES),
            sending: None,
        };
        Self { line, stream, state, broken: false }
    }

    /// The stream can be read or written again.
    pub fn ready(&mut self) {
        if let Some(byte) = self.state.sending.take() {
            self.send(byte);
        }
        self.receive();
    }

    /// What survives a snapshot.
    pub fn save(&self) -> SerialState {
        self.state.clone()
    }

    /// Takes a saved state.
    pub fn restore(&mut self, state: &SerialState) {
        self.state = state.clone();
        self.state.received.truncate(FIFO_BYTES);
        self.ready();
    }

    fn send(&mut self, byte: u8) {
        if !self.broken {
            match self.stream.write(&[byte]) {
                Err(error) if matches!(error.kind(), WOULD_BLOCK | INTERRUPTED) => {
                    self.state.sending = Some(byte);
                    return;
                }
                Ok(_) => {}
                Err(_) => self.broken = true,
            }
        }
        self.state.sent = true;
        self.interrupt(IER_SENT);
    }

    /// Takes what the stream has, as far as there is room.
    fn receive(&mut self) {
        let mut bytes = [0; FIFO_BYTES];
        while !self.broken && self.state.received.len() < FIFO_BYTES {
            let room = FIFO_BYTES - self.state.received.len();
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => return,
                Ok(count) => self.state.received.extend(&bytes[..count.min(room)]),
                Err(error) if error.kind() == INTERRUPTED => continue,
                Err(_) => return,
            }
            self.interrupt(IER_RECEIVED);
        }
    }

    fn interrupt(&self, cause: u8) {
        if self.state.interrupts & cause != 0 {
            self.line.trigger();
        }
    }

    fn pending(&self) -> u8 {
        let state = &self.state;
        if state.interrupts & IER_RECEIVED != 0 && !state.received.is_empty() {
            IIR_RECEIVED
        } else if state.interrupts & IER_SENT != 0 && state.sent {
            IIR_SENT
        } else {
            IIR_NONE
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let divisor = self.state.line_control & LCR_DIVISOR != 0;
        match offset {
            DATA if divisor => self.state.divisor[0],
            IER if divisor => self.state.divisor[1],
            DATA => {
                let byte = self.state.received.pop_front().unwrap_or(0);
                if self.state.received.is_empty() {
                    self.receive();
                }
                byte
            }
            IER => self.state.interrupts,
            IIR_FCR => {
                let cause = self.pending();
                if cause == IIR_SENT {
                    self.state.sent = false;
                }
                cause | if self.state.fifo { IIR_FIFO } else { 0 }
            }
            LCR => self.state.line_control,
            MCR => self.state.modem_control,
            LSR => self.line_status(),
            MSR => self.modem_status(),
            SCR => self.state.scratch,
            _ => 0,
        }
    }

    fn line_status(&mut self) -> u8 {
        let received = if self.state.received.is_empty() { 0 } else { LSR_RECEIVED };
        let overrun = if self.state.overrun { LSR_OVERRUN } else { 0 };
        let idle = if self.state.sending.is_none() { LSR_IDLE } else { 0 };
        self.state.overrun = false;
        received | overrun | idle
    }

    fn modem_status(&self) -> u8 {
        let control = self.state.modem_control;
        if control & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // Each output is wired to an input: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let divisor = self.state.line_control & LCR_DIVISOR != 0;
        match offset {
            DATA if divisor => self.state.divisor[0] = value,
            IER if divisor => self.state.divisor[1] = value,
            DATA => self.write_data(value),
            IER => {
                let fresh = value & !self.state.interrupts;
                self.state.interrupts = value & 0x0f;
                if fresh & IER_SENT != 0 && self.state.sending.is_none() {
                    self.state.sent = true;
                    self.interrupt(IER_SENT);
                }
                if fresh & IER_RECEIVED != 0 && !self.state.received.is_empty() {
                    self.interrupt(IER_RECEIVED);
                }
            }
            IIR_FCR => {
                self.state.fifo = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.state.received.clear();
                    self.receive();
                }
            }
            LCR => self.state.line_control = value,
            MCR => self.state.modem_control = value & 0x1f,
            SCR => self.state.scratch = value,
            _ => {}
        }
    }

    fn write_data(&mut self, byte: u8) {
        self.state.sent = false;
        if self.state.modem_control & MCR_LOOP == 0 {
            self.send(byte);
            return;
        }
        if self.state.received.len() < FIFO_BYTES {
            self.state.received.push_back(byte);
            self.interrupt(IER_RECEIVED);
        } else {
            self.state.overrun = true;
        }
        self.state.sent = true;
        self.interrupt(IER_SENT);
    }
}

const WOULD_BLOCK: std::io::ErrorKind = std::io::ErrorKind::WouldBlock;
const INTERRUPTED: std::io::ErrorKind = std::io::ErrorKind::Interrupted;

impl<L: InterruptLine, S: Stream> BusDevice for Serial<L, S> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The chip's registers are bytes.
        if let [byte] = data {
            *byte = self.read_register(offset);
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            self.write_register(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Default)]
    struct Wire(AtomicU32);

    impl InterruptLine for Wire {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Ends>>);

    #[derive(Default)]
    struct Ends {
        input: VecDeque<u8>,
        output: Vec<u8>,
        room: usize,
    }

    impl Stream for Pipe {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let mut ends = self.0.lock().unwrap();
            let count = to.len().min(ends.input.len());
            if count == 0 {
                return Err(WOULD_BLOCK.into());
            }
            to.iter_mut().zip(ends.input.drain(..count)).for_each(|(to, from)| *to = from);
            Ok(count)
        }

        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let mut ends = self.0.lock().unwrap();
            if ends.output.len() + from.len() > ends.room {
                return Err(WOULD_BLOCK.into());
            }
            ends.output.extend(from);
            Ok(from.len())
        }
    }

    fn serial(room: usize) -> (Serial<Arc<Wire>, Pipe>, Arc<Wire>, Pipe) {
        let (wire, pipe) = (Arc::new(Wire::default()), Pipe::default());
        pipe.0.lock().unwrap().room = room;
        (Serial::new(Arc::clone(&wire), pipe.clone()), wire, pipe)
    }

    fn read<L: InterruptLine, S: Stream>(serial: &mut Serial<L, S>, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn what_is_written_goes_out_and_interrupts_when_asked() {
        let (mut serial, wire, pipe) = serial(100);
        serial.write(DATA, b"a");
        assert_eq!(wire.0.load(Ordering::SeqCst), 0);
        serial.write(IER, &[IER_SENT]);
        assert_eq!(wire.0.load(Ordering::SeqCst), 1);
        serial.write(DATA, b"b");
        assert_eq!((read(&mut serial, IIR_FCR), read(&mut serial, IIR_FCR)), (IIR_SENT, IIR_NONE));
        assert_eq!(pipe.0.lock().unwrap().output, b"ab");
    }

    #[test]
    fn a_transmitter_that_is_not_emptied_reads_as_busy_and_loses_nothing_that_waited_for_it() {
        let (mut serial, _, pipe) = serial(1);
        serial.write(DATA, b"a");
        assert_eq!(read(&mut serial, LSR), LSR_IDLE);
        serial.write(DATA, b"b");
        assert_eq!(read(&mut serial, LSR), 0);
        pipe.0.lock().unwrap().room = 2;
        serial.ready();
        assert_eq!(read(&mut serial, LSR), LSR_IDLE);
        assert_eq!(pipe.0.lock().unwrap().output, b"ab");
    }

    #[test]
    fn more_than_the_fifo_holds_stays_in_the_stream() {
        let (mut serial, wire, pipe) = serial(0);
        serial.write(IER, &[IER_RECEIVED]);
        let sent: Vec<u8> = (0..200).collect();
        pipe.0.lock().unwrap().input.extend(&sent);
        serial.ready();
        assert_eq!(wire.0.load(Ordering::SeqCst), 1);
        assert_eq!(pipe.0.lock().unwrap().input.len(), 200 - FIFO_BYTES);
        let mut got = Vec::new();
        while read(&mut serial, LSR) & LSR_RECEIVED != 0 {
            got.push(read(&mut serial, DATA));
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn in_loop_mode_the_port_hears_itself_alone() {
        let (mut serial, _, pipe) = serial(10);
        serial.write(MCR, &[MCR_LOOP | 0x0a]);
        assert_eq!(read(&mut serial, MSR) & 0xf0, 0x90);
        serial.write(DATA, b"x");
        assert_eq!(read(&mut serial, DATA), b'x');
        assert!(pipe.0.lock().unwrap().output.is_empty());
        for _ in 0..FIFO_BYTES + 1 {
            serial.write(DATA, b"y");
        }
        assert_eq!(read(&mut serial, LSR) & LSR_OVERRUN, LSR_OVERRUN);
        assert_eq!(read(&mut serial, LSR) & LSR_OVERRUN, 0);
    }

    #[test]
    fn a_flood_costs_no_memory_and_no_access_panics() {
        let (mut serial, _, _) = serial(0);
        for round in 0..100_000_u64 {
            serial.write(round % 9, &[round as u8]);
            serial.write(round % 9, &[0; 3]);
            let _ = read(&mut serial, round % 9);
        }
        assert!(
            serial.save().received.len() <= FIFO_BYTES && serial.save().received.capacity() <= FIFO_BYTES
        );
    }

    #[test]
    fn a_saved_port_goes_on() {
        let (mut serial, _, _) = serial(0);
        serial.write(LCR, &[LCR_DIVISOR | 3]);
        serial.write(DATA, &[7]);
        serial.write(LCR, &[3]);
        serial.write(DATA, b"z");
        let state = serial.save();
        let (mut other, _, pipe) = self::serial(1);
        other.restore(&state);
        assert_eq!(other.save(), SerialState { sending: None, sent: true, ..state });
        assert_eq!(pipe.0.lock().unwrap().output, b"z");
    }
}
