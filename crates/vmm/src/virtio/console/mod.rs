//! The console (section 5.3): up to 16 ports, of which each is a terminal or a named channel of bytes.
//!
//! What the device has to tell about a port is a set of bits, not a list of messages, so that a driver
//! which asks again and again and takes no answer costs no memory.

use serde::{Deserialize, Serialize};

use self::port::Port;
use super::{DeviceState, DeviceType, Fault, Io, StateError, TIMER, VirtioDevice, read_space};
use crate::device::Stream;

mod port;

pub use port::{PortOptions, PortState};

/// The most ports that a console has.
pub const MOST_PORTS: u16 = 16;
/// The token of [`VirtioDevice::ready`] for a terminal that has another size now. A port's token is its
/// number.
pub const RESIZED: u64 = u64::MAX - 1;
/// The longest name of a port in bytes.
pub const NAME_BYTES: usize = 64;

const QUEUE_SIZE: u16 = 64;
const CONTROL_TO_DRIVER: u16 = 2;
const CONTROL_TO_DEVICE: u16 = 3;

/// Feature bits (section 5.3.3).
pub mod feature {
    /// VIRTIO_CONSOLE_F_SIZE.
    pub const SIZE: u64 = 1 << 0;
    /// VIRTIO_CONSOLE_F_MULTIPORT.
    pub const MULTIPORT: u64 = 1 << 1;
    /// VIRTIO_CONSOLE_F_EMERG_WRITE.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Control messages (section 5.3.6.2).
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const DEVICE_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// What a port owes its driver, in the order in which it is told.
const OWED: [(u8, u16); 5] = [
    (1, event::DEVICE_ADD),
    (2, event::CONSOLE_PORT),
    (4, event::RESIZE),
    (8, event::PORT_NAME),
    (16, event::PORT_OPEN),
];

/// Where the configuration space takes a byte in an emergency.
const EMERGENCY: u64 = 8;

/// What survives a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Columns and rows of the first port's terminal.
    pub size: (u16, u16),
    /// One for each port.
    pub ports: Vec<PortState>,
}

/// The device.
pub struct Console<S> {
    ports: Vec<Port<S>>,
    queue_sizes: Vec<u16>,
    size: (u16, u16),
}

impl<S: Stream> Console<S> {
    /// A console with these ports, of which those beyond [`MOST_PORTS`] are not used. The first one is what a
    /// driver sees that knows of one port only.
    pub fn new(ports: impl IntoIterator<Item = (S, PortOptions)>) -> Self {
        let ports: Vec<_> = ports
            .into_iter()
            .zip(0..MOST_PORTS)
            .map(|((stream, mut options), number)| {
                let longest = options.name.floor_char_boundary(NAME_BYTES);
                options.name.truncate(longest);
                Port::new(stream, options, number)
            })
            .collect();
        let size = ports.first().and_then(|port| port.stream.size()).unwrap_or_default();
        Self { queue_sizes: vec![QUEUE_SIZE; ports.len() * 2 + 2], ports, size }
    }

    /// The port that a queue belongs to.
    fn port_of(queue: u16) -> usize {
        usize::from(if queue < 2 { 0 } else { queue / 2 - 1 })
    }

    fn serve_port(&mut self, number: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        // Without multiport there is one port, whatever queues the driver has made.
        if number > 0 && !io.has(feature::MULTIPORT) {
            return Ok(());
        }
        self.ports.get_mut(number).map_or(Ok(()), |port| port.serve(io))
    }

    fn serve_all(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.control(io)?;
        (0..self.ports.len()).try_for_each(|number| self.serve_port(number, io))
    }

    /// Takes the driver's control messages and gives it those that it is owed.
    fn control(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        if !io.has(feature::MULTIPORT) {
            return Ok(());
        }
        let mut opened = 0_u32;
        while let Some(chain) = io.pop(CONTROL_TO_DEVICE)? {
            let [i0, i1, i2, i3, e0, e1, v0, v1] =
                chain.reader(io.memory()).header("a control message of a console")?;
            let number = u32::from_le_bytes([i0, i1, i2, i3]) as usize;
            self.told(number, u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
            if number < self.ports.len() {
                opened |= 1 << number;
            }
            io.complete(CONTROL_TO_DEVICE, chain.head(), 0)?;
        }
        io.signal(CONTROL_TO_DEVICE)?;
        self.tell(io)?;
        // A port that was opened may have something to read.
        (0..self.ports.len())
            .filter(|number| opened >> number & 1 != 0)
            .try_for_each(|number| self.serve_port(number, io))
    }

    /// The driver says something. A port that does not exist is none of its business.
    fn told(&mut self, number: usize, what: u16, value: u16) {
        match what {
            event::DEVICE_READY if value == 1 => {
                self.ports.iter_mut().for_each(|port| owe(&mut port.state, event::DEVICE_ADD));
            }
            event::PORT_READY if value == 1 => {
                let terminal = number == 0 && self.size != (0, 0);
                let Some(port) = self.ports.get_mut(number) else { return };
                if port.options.console {
                    owe(&mut port.state, event::CONSOLE_PORT);
                }
                if terminal {
                    owe(&mut port.state, event::RESIZE);
                }
                if !port.options.name.is_empty() {
                    owe(&mut port.state, event::PORT_NAME);
                }
                owe(&mut port.state, event::PORT_OPEN);
            }
            event::PORT_OPEN => {
                if let Some(port) = self.ports.get_mut(number) {
                    port.state.guest_open = value == 1;
                }
            }
            _ => {}
        }
    }

    /// Gives the driver what it is owed, as far as it has buffers.
    fn tell(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let size = self.size;
        for (port, number) in self.ports.iter_mut().zip(0_u32..) {
            for (bit, what) in OWED {
                if port.state.owed & bit == 0 {
                    continue;
                }
                let Some(chain) = io.pop(CONTROL_TO_DRIVER)? else { return io.signal(CONTROL_TO_DRIVER) };
                let mut message = Vec::with_capacity(8 + NAME_BYTES);
                message.extend(number.to_le_bytes());
                message.extend(what.to_le_bytes());
                message.extend(1_u16.to_le_bytes());
                match what {
                    event::PORT_NAME => message.extend(port.options.name.as_bytes()),
                    event::RESIZE => message.extend([size.0.to_le_bytes(), size.1.to_le_bytes()].concat()),
                    _ => {}
                }
                let mut writer = chain.writer(io.memory());
                writer.write_all(&message, "a control message of a console")?;
                let written = writer.written();
                io.complete(CONTROL_TO_DRIVER, chain.head(), written)?;
                port.state.owed &= !bit;
            }
        }
        io.signal(CONTROL_TO_DRIVER)
    }

    fn resize(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let Some(first) = self.ports.first_mut() else { return Ok(()) };
        let size = first.stream.size().unwrap_or_default();
        if size == self.size {
            return Ok(());
        }
        self.size = size;
        owe(&mut first.state, event::RESIZE);
        io.config_changed();
        self.control(io)
    }
}

fn owe(port: &mut PortState, what: u16) {
    port.owed |= OWED.iter().filter(|(_, event)| *event == what).fold(0, |bits, (bit, _)| bits | bit);
}

impl<S: Stream> VirtioDevice for Console<S> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        let size = if self.size == (0, 0) { 0 } else { feature::SIZE };
        feature::MULTIPORT | feature::EMERG_WRITE | size
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = self.size;
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        read_space(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, [byte, ..], Some(port)) = (offset, data, self.ports.first_mut()) {
            // In an emergency nobody waits; what can not be written now is lost.
            let _ = port.stream.write(&[*byte]);
        }
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve_all(io)
    }

    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        match queue {
            CONTROL_TO_DRIVER | CONTROL_TO_DEVICE => self.control(io),
            _ => self.serve_port(Self::port_of(queue), io),
        }
    }

    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        match token {
            TIMER => self.serve_all(io),
            RESIZED => self.resize(io),
            number => usize::try_from(number).map_or(Ok(()), |number| self.serve_port(number, io)),
        }
    }

    fn reset(&mut self) {
        self.ports.iter_mut().for_each(|port| port.state = PortState::default());
    }

    fn save(&self) -> DeviceState {
        let ports = self.ports.iter().map(|port| port.state.clone()).collect();
        DeviceState::Console(ConsoleState { size: self.size, ports })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Console(state) = state else { return Err(StateError::Type(self.device_type())) };
        if state.ports.len() != self.ports.len() {
            return Err(StateError::Mismatch("it has another number of ports"));
        }
        self.size = state.size;
        for (port, saved) in self.ports.iter_mut().zip(&state.ports) {
            port.state = saved.clone();
        }
        Ok(())
    }
}
