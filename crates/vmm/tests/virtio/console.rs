//! The console, section 5.3.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use moat_vmm::device::{BusDevice, Stream};
use moat_vmm::virtio::console::{Console, PortOptions, RESIZED, feature};
use moat_vmm::virtio::mmio::{CONFIG_CHANGE, register};
use moat_vmm::virtio::{Fault, TIMER, feature as common};

use super::driver::{BUFFERS, Guest, readable, writable};

#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    input: VecDeque<u8>,
    output: Vec<u8>,
    room: usize,
    size: Option<(u16, u16)>,
    ended: bool,
}

impl Stream for Terminal {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut ends = self.0.lock().unwrap();
        let count = to.len().min(ends.input.len());
        if count == 0 {
            return if ends.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        to.iter_mut().zip(ends.input.drain(..count)).for_each(|(to, from)| *to = from);
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let mut ends = self.0.lock().unwrap();
        let count = from.len().min(ends.room - ends.output.len());
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        ends.output.extend(&from[..count]);
        Ok(count)
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.0.lock().unwrap().size
    }
}

fn terminal(room: usize) -> Terminal {
    let terminal = Terminal::default();
    terminal.0.lock().unwrap().room = room;
    terminal
}

fn console(terminals: &[Terminal]) -> Console<Terminal> {
    let options = |number: usize| match number {
        0 => PortOptions { console: true, name: String::new() },
        _ => PortOptions { console: false, name: format!("port-{number}") },
    };
    Console::new(terminals.iter().cloned().enumerate().map(|(number, terminal)| (terminal, options(number))))
}

/// Section 5.3.6: bytes both ways, with whatever buffers there are.
#[test]
fn bytes_pass_both_ways() {
    let terminal = terminal(100);
    let mut guest = Guest::started(console(std::slice::from_ref(&terminal)), 0);
    guest.put(BUFFERS, b"hello");
    assert_eq!(guest.ask(1, &[readable(BUFFERS, 2), readable(BUFFERS + 2, 3)]), 0);
    assert_eq!(terminal.0.lock().unwrap().output, b"hello");
    terminal.0.lock().unwrap().input.extend(b"abcdef");
    guest.chain(0, &[writable(BUFFERS, 4)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(0, 4)]);
    guest.chain(0, &[writable(BUFFERS + 4, 100)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), [(1, 2)]);
    assert_eq!(guest.get(BUFFERS, 6), b"abcdef");
    guest.chain(0, &[writable(BUFFERS, 0)]);
    terminal.0.lock().unwrap().input.extend(b"x");
    guest.transport.ready(0);
    assert_eq!(guest.transport.take_fault(), Some(Fault::Short("what comes in at a port")));
}

/// What the terminal does not take waits, from the byte on at which it stopped; also through a snapshot.
#[test]
fn a_full_terminal_makes_bytes_wait() {
    let first = terminal(3);
    let mut guest = Guest::started(console(std::slice::from_ref(&first)), 0);
    guest.put(BUFFERS, b"hello world");
    guest.chain(1, &[readable(BUFFERS, 11)]);
    guest.notify(1);
    assert_eq!(guest.take_used(1), []);
    first.0.lock().unwrap().room = 7;
    guest.transport.ready(0);
    assert_eq!(guest.take_used(1), []);
    let state = guest.transport.save();
    let second = terminal(100);
    let mut other = Guest::with_memory(console(std::slice::from_ref(&second)), guest.memory.clone());
    other.transport.restore(&state).unwrap();
    other.transport.resume();
    assert_eq!(guest.take_used(1), [(0, 0)]);
    assert_eq!(first.0.lock().unwrap().output, b"hello w");
    assert_eq!(second.0.lock().unwrap().output, b"orld");
}

const MULTIPORT: u64 = feature::MULTIPORT;

/// A control message of the driver.
fn tell(guest: &mut Guest<Console<Terminal>>, port: u32, event: u16, value: u16) {
    let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
    guest.put(BUFFERS, &message);
    guest.ask(3, &[readable(BUFFERS, 8)]);
}

/// Gives the device buffers and returns what it had to say.
fn hear(guest: &mut Guest<Console<Terminal>>) -> Vec<(u32, u16, Vec<u8>)> {
    let place = BUFFERS + 0x1_0000;
    for number in 0..16 {
        guest.chain(2, &[writable(place + number * 128, 128)]);
    }
    guest.notify(2);
    let used = guest.take_used(2);
    let mut heard = Vec::new();
    for (number, (_, length)) in used.into_iter().enumerate() {
        let message = guest.get(place + number as u64 * 128, length as usize);
        let (head, rest) = message.split_at(8);
        assert_eq!(head[6..], [1, 0]);
        let port = u32::from_le_bytes(head[..4].try_into().unwrap());
        heard.push((port, u16::from_le_bytes(head[4..6].try_into().unwrap()), rest.to_vec()));
    }
    heard
}

/// Section 5.3.6.2: ports are added when the driver is ready, then described one by one.
#[test]
fn ports_are_told_of() {
    let terminals = [terminal(100), terminal(100), terminal(100)];
    terminals[0].0.lock().unwrap().size = Some((80, 25));
    let mut guest = Guest::started(console(&terminals), MULTIPORT | feature::SIZE);
    assert_eq!(guest.config(0), [80, 0, 25, 0, 3, 0, 0, 0]);
    assert_eq!(hear(&mut guest), []);
    let mut guest = Guest::started(console(&terminals), MULTIPORT | feature::SIZE);
    tell(&mut guest, 0, 0, 1);
    assert_eq!(hear(&mut guest), [(0, 1, vec![]), (1, 1, vec![]), (2, 1, vec![])]);
    let mut guest = Guest::started(console(&terminals), MULTIPORT | feature::SIZE);
    tell(&mut guest, 0, 3, 1);
    tell(&mut guest, 2, 3, 1);
    // Of what does not exist nothing is told.
    tell(&mut guest, 3, 3, 1);
    tell(&mut guest, u32::MAX, 6, 1);
    tell(&mut guest, 1, 77, 1);
    let expected = [
        (0, 4, vec![]),
        (0, 5, vec![80, 0, 25, 0]),
        (0, 6, vec![]),
        (2, 7, b"port-2".to_vec()),
        (2, 6, vec![]),
    ];
    assert_eq!(hear(&mut guest), expected);
}

/// Section 5.3.6: a port that nobody in the guest has opened keeps its bytes on the host's side.
#[test]
fn a_closed_port_gets_no_bytes() {
    let terminals = [terminal(100), terminal(100)];
    terminals[1].0.lock().unwrap().input.extend(b"secret");
    let mut guest = Guest::started(console(&terminals), MULTIPORT);
    guest.chain(4, &[writable(BUFFERS + 64, 10)]);
    guest.notify(4);
    assert_eq!(guest.take_used(4), []);
    tell(&mut guest, 1, 6, 1);
    assert_eq!(guest.take_used(4), [(0, 6)]);
    tell(&mut guest, 1, 6, 0);
    terminals[1].0.lock().unwrap().input.extend(b"more");
    guest.chain(4, &[writable(BUFFERS + 64, 10)]);
    guest.transport.ready(1);
    assert_eq!(guest.take_used(4), []);
    guest.put(BUFFERS, b"out");
    guest.ask(5, &[readable(BUFFERS, 3)]);
    assert_eq!(terminals[1].0.lock().unwrap().output, b"out");
}

/// Section 5.3.2: without multiport there is one port, and no control queue.
#[test]
fn without_multiport_there_is_one_port() {
    let terminals = [terminal(100), terminal(100)];
    let mut guest = Guest::started(console(&terminals), 0);
    guest.put(BUFFERS, &[0; 8]);
    guest.chain(3, &[readable(BUFFERS, 8)]);
    guest.notify(3);
    guest.chain(5, &[readable(BUFFERS, 8)]);
    guest.notify(5);
    assert_eq!((guest.take_used(3), guest.take_used(5)), (vec![], vec![]));
}

/// Section 5.3.4 and 5.3.5: a terminal that changes its size changes the configuration.
#[test]
fn a_new_size_is_told() {
    let terminals = [terminal(100)];
    terminals[0].0.lock().unwrap().size = Some((80, 25));
    let mut guest = Guest::started(console(&terminals), MULTIPORT | feature::SIZE);
    let before = guest.read(register::CONFIG_GENERATION);
    guest.transport.ready(RESIZED);
    assert_eq!(guest.line.take(), 0);
    terminals[0].0.lock().unwrap().size = Some((132, 50));
    guest.transport.ready(RESIZED);
    assert_eq!(guest.config(0), [132, 0, 50, 0]);
    assert_ne!(guest.read(register::CONFIG_GENERATION), before);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_eq!(hear(&mut guest), [(0, 5, vec![132, 0, 50, 0])]);
    // The feature is there with a size only.
    let mut plain = Guest::new(console(&[terminal(1)]));
    assert_eq!(plain.offered() & feature::SIZE, 0);
}

/// Section 5.3.4: in an emergency a byte is written without any queue.
#[test]
fn an_emergency_needs_no_queue() {
    let terminal = terminal(100);
    let mut guest = Guest::new(console(std::slice::from_ref(&terminal)));
    assert!(guest.negotiate(feature::EMERG_WRITE | common::VERSION_1));
    guest.write(register::CONFIG + 8, u32::from(b'!'));
    guest.transport.write(register::CONFIG + 8, b"?");
    guest.write(register::CONFIG + 4, 99);
    assert_eq!(terminal.0.lock().unwrap().output, b"!?");
}

/// What was ended is not asked again.
#[test]
fn an_ended_stream_is_silent() {
    let terminal = terminal(100);
    terminal.0.lock().unwrap().ended = true;
    let mut guest = Guest::started(console(std::slice::from_ref(&terminal)), 0);
    guest.chain(0, &[writable(BUFFERS, 10)]);
    guest.notify(0);
    terminal.0.lock().unwrap().input.extend(b"late");
    guest.transport.ready(0);
    assert_eq!(guest.take_used(0), []);
}

/// Buffers may overlap, so that a chain of some descriptors has as many bytes as a chain may have. The device writes
/// so much of it at once that others have their turn, and comes back for the rest.
#[test]
fn a_chain_of_overlapping_buffers_does_not_keep_the_device() {
    const PIECES: usize = 16;
    let terminal = terminal(usize::MAX);
    let mut guest = Guest::started(console(std::slice::from_ref(&terminal)), 0);
    guest.chain(1, &[readable(0, 4 << 20); PIECES]);
    guest.notify(1);
    let written = || terminal.0.lock().unwrap().output.len();
    assert_eq!((written(), guest.take_used(1)), (1 << 20, vec![]));
    let mut turns = 1;
    while guest.transport.wake_at().is_some() {
        let before = written();
        guest.transport.ready(TIMER);
        assert!(written() - before <= 1 << 20);
        turns += 1;
    }
    assert_eq!((written(), turns), (PIECES << 22, PIECES * 4 + 1));
    assert_eq!(guest.take_used(1).len(), 1);
}

/// A driver that was told a size keeps the feature on a host whose standard output is no terminal.
#[test]
fn a_saved_console_with_a_size_goes_on_without_a_terminal() {
    let first = terminal(100);
    first.0.lock().unwrap().size = Some((80, 25));
    let mut guest = Guest::started(console(std::slice::from_ref(&first)), feature::SIZE);
    let state = guest.transport.save();
    let mut other = Guest::new(console(&[terminal(100)]));
    other.transport.restore(&state).unwrap();
    assert_eq!(other.config(0), [80, 0, 25, 0]);
}
