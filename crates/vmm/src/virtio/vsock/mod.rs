//! Sockets between guest and host (section 5.10), in the form that Firecracker gave them on the host: a
//! unix socket takes `CONNECT port\n` and answers `OK port\n` when the guest has accepted; what the guest
//! connects to is the unix socket with `_port` behind its name.
//!
//! All that waits for the guest is bounded: connections by their number, data by credit, control packets by
//! being bits of a connection, and resets of what is no connection by a list; while that is full, the guest's
//! packets wait.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use self::connection::{Connection, MOST_BYTES};
use self::packet::{HEADER_BYTES, HOST_CID, Header, STREAM, op};
use super::chain::Chain;
use super::{DeviceState, DeviceType, Fault, Io, StateError, VirtioDevice, read_space};

mod connection;
mod host;
pub mod packet;

pub use host::{Host, HostEvent, StreamId};

/// The token of [`VirtioDevice::ready`] for the host's side.
pub const HOST: u64 = 0;
/// The most connections at a time.
pub const MOST_CONNECTIONS: usize = 1024;
/// The smallest CID that a guest can have; those below are reserved.
pub const FIRST_GUEST_CID: u64 = 3;

const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const TO_DRIVER: u16 = 0;
const TO_DEVICE: u16 = 1;
const EVENTS: u16 = 2;
/// The most resets that wait.
const MOST_RESETS: usize = 256;
/// Host ports of connections from the host are counted from here.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ports {
    guest: u32,
    host: u32,
}

/// What survives a snapshot: connections do not, and the guest is told so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address.
    pub cid: u64,
}

/// The device.
pub struct Vsock<H> {
    host: H,
    cid: u64,
    connections: HashMap<Ports, Connection>,
    streams: HashMap<StreamId, Ports>,
    /// Connections that have something for the guest, in turn.
    waiting: VecDeque<Ports>,
    /// What is to be reset though it is no connection.
    resets: VecDeque<Ports>,
    next_host_port: u32,
    data: Box<[u8]>,
    /// The guest must hear that all connections are gone.
    lost_all: bool,
}

impl<H: Host> Vsock<H> {
    /// A device for the guest `cid`.
    pub fn new(host: H, cid: u64) -> Self {
        Self {
            host,
            cid,
            connections: HashMap::new(),
            streams: HashMap::new(),
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            data: vec![0; MOST_BYTES].into_boxed_slice(),
            lost_all: false,
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.hear_host();
        loop {
            self.hear_guest(io)?;
            let full = self.resets.len() >= MOST_RESETS;
            self.tell_guest(io)?;
            // The guest's packets go on if they had to wait for room.
            if !full || self.resets.len() >= MOST_RESETS {
                return self.tell_events(io);
            }
        }
    }

    fn hear_host(&mut self) {
        while let Some(event) = self.host.next_event() {
            match event {
                HostEvent::Incoming { stream, port } => self.incoming(stream, port),
                HostEvent::Ready(stream) => {
                    if let Some(ports) = self.streams.get(&stream).copied() {
                        self.with(ports, Connection::ready);
                    }
                }
            }
        }
    }

    fn incoming(&mut self, stream: StreamId, guest: u32) {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.host.close(stream);
            return;
        }
        let mut ports = Ports { guest, host: self.next_host_port };
        while self.connections.contains_key(&ports) {
            ports.host = after(ports.host);
        }
        self.next_host_port = after(ports.host);
        self.add(ports, Connection::ask(stream));
    }

    fn add(&mut self, ports: Ports, connection: Connection) {
        self.streams.insert(connection.stream, ports);
        self.connections.insert(ports, connection);
        self.list(ports);
    }

    fn remove(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.remove(&ports) {
            self.streams.remove(&connection.stream);
            self.host.close(connection.stream);
            if connection.listed {
                // Or the list would grow with each connection between the same ports.
                self.waiting.retain(|waiting| *waiting != ports);
            }
        }
    }

    /// Changes a connection, and lists it if it has something for the guest now.
    fn with(&mut self, ports: Ports, change: impl FnOnce(&mut Connection, &mut H)) {
        if let Some(connection) = self.connections.get_mut(&ports) {
            change(connection, &mut self.host);
            self.list(ports);
        }
    }

    fn list(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !connection.listed
            && connection.has_something()
        {
            connection.listed = true;
            self.waiting.push_back(ports);
        }
    }

    fn hear_guest(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        // Section 5.10.6.1: packets wait when there is no room for the answers.
        while self.resets.len() < MOST_RESETS {
            let Some(chain) = io.pop(TO_DEVICE)? else { break };
            self.hear_packet(&chain, io)?;
            io.complete(TO_DEVICE, chain.head(), 0)?;
        }
        io.signal(TO_DEVICE)
    }

    fn hear_packet(&mut self, chain: &Chain, io: &Io<'_>) -> Result<(), Fault> {
        let mut reader = chain.reader(io.memory());
        let header = Header::parse(&reader.header("the header of a packet")?);
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return Ok(());
        }
        let length = header.len as usize;
        if length > reader.remaining() {
            return Err(Fault::Short("the data of a packet"));
        }
        if header.kind != STREAM {
            self.resets.push_back(ports);
            return Ok(());
        }
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.heard(&header);
            connection.credited();
        }
        match header.op {
            op::REQUEST => self.request(ports, &header),
            op::RESPONSE => self.response(ports),
            op::RST => self.remove(ports),
            op::SHUTDOWN if self.connections.contains_key(&ports) => {
                self.with(ports, |connection, host| connection.shut(header.flags, host));
            }
            op::RW if self.connections.contains_key(&ports) => {
                let mut left = length;
                while left > 0 {
                    let piece = left.min(self.data.len());
                    left -= reader.read(&mut self.data[..piece])?;
                    if !self.data(ports, piece) {
                        break;
                    }
                }
            }
            op::CREDIT_UPDATE if self.connections.contains_key(&ports) => {}
            op::CREDIT_REQUEST if self.connections.contains_key(&ports) => {
                self.with(ports, |connection, _| connection.wants_credit());
            }
            _ => self.refuse(ports),
        }
        self.list(ports);
        Ok(())
    }

    /// Resets what is, or is not, a connection.
    fn refuse(&mut self, ports: Ports) {
        self.remove(ports);
        self.resets.push_back(ports);
    }

    fn request(&mut self, ports: Ports, header: &Header) {
        if self.connections.len() >= MOST_CONNECTIONS || self.connections.contains_key(&ports) {
            self.refuse(ports);
            return;
        }
        match self.host.connect(ports.host) {
            Ok(stream) => self.add(ports, Connection::answer(stream, header)),
            Err(_) => self.refuse(ports),
        }
    }

    fn response(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            self.refuse(ports);
            return;
        };
        if !connection.answered() || self.host.taken(connection.stream, ports.host).is_err() {
            self.refuse(ports);
        }
    }

    /// Takes the first `length` bytes of `self.data` as data of a connection; false if that broke it.
    fn data(&mut self, ports: Ports, length: usize) -> bool {
        let Some(connection) = self.connections.get_mut(&ports) else { return false };
        let taken = connection.data(&self.data[..length], &mut self.host);
        if !taken {
            self.refuse(ports);
        }
        taken
    }

    fn tell_guest(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        while !self.resets.is_empty() || !self.waiting.is_empty() {
            let Some(chain) = io.pop(TO_DRIVER)? else { break };
            let room = chain.writable_bytes();
            if room < HEADER_BYTES {
                return Err(Fault::Short("the header of a packet"));
            }
            let Some((ports, header)) = self.next_packet(room - HEADER_BYTES) else {
                io.unpop(TO_DRIVER);
                break;
            };
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind: STREAM,
                ..header
            };
            let mut writer = chain.writer(io.memory());
            writer.write_all(&header.to_bytes(), "the header of a packet")?;
            writer.write_all(&self.data[..header.len as usize], "the data of a packet")?;
            let written = writer.written();
            io.complete(TO_DRIVER, chain.head(), written)?;
        }
        io.signal(TO_DRIVER)
    }

    /// The next packet for the guest, with at most `room` bytes of data, which then stand in `self.data`.
    fn next_packet(&mut self, room: usize) -> Option<(Ports, Header)> {
        if let Some(ports) = self.resets.pop_front() {
            return Some((ports, Header { op: op::RST, ..Header::default() }));
        }
        let room = room.min(self.data.len());
        while let Some(ports) = self.waiting.pop_front() {
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            connection.listed = false;
            let packet = connection.packet(&mut self.host, &mut self.data[..room]);
            if packet.is_some_and(|header| header.op == op::RST) {
                self.remove(ports);
            } else {
                self.list(ports);
            }
            if let Some(header) = packet {
                return Some((ports, header));
            }
        }
        None
    }

    fn tell_events(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        if !self.lost_all {
            return Ok(());
        }
        let Some(chain) = io.pop(EVENTS)? else { return Ok(()) };
        chain.writer(io.memory()).write_all(&TRANSPORT_RESET.to_le_bytes(), "an event")?;
        self.lost_all = false;
        io.complete(EVENTS, chain.head(), 4)?;
        io.signal(EVENTS)
    }
}

fn after(port: u32) -> u32 {
    if port == u32::MAX - 1 { FIRST_HOST_PORT } else { port + 1 }
}

impl<H: Host> VirtioDevice for Vsock<H> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        // Without a feature there are streams.
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve(io)
    }

    fn notify(&mut self, _queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve(io)
    }

    fn ready(&mut self, _token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve(io)
    }

    fn reset(&mut self) {
        for (_, connection) in self.connections.drain() {
            self.host.close(connection.stream);
        }
        self.streams.clear();
        self.waiting.clear();
        self.resets.clear();
        self.lost_all = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { cid: self.cid })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Vsock(state) = state else { return Err(StateError::Type(self.device_type())) };
        if state.cid < FIRST_GUEST_CID || state.cid > u64::from(u32::MAX) {
            return Err(StateError::Mismatch("its address is not one of a guest"));
        }
        self.cid = state.cid;
        self.lost_all = true;
        Ok(())
    }
}
