//! One connection between a port of the guest and a stream of the host.
//!
//! ```text
//!   guest: REQUEST --> [connect] --> Live          host: CONNECT --> Asked -- guest: RESPONSE --> Live
//!
//!   Live: data both ways; each side may say that it will send, or receive, no more
//!   over: RST from either, or both of the guest's halves shut and all that it sent passed on
//! ```
//!
//! Both directions are bounded by credit: the guest may send what fits [`BUFFER_BYTES`], and is sent what
//! fits the buffer that it announces.

use std::collections::VecDeque;
use std::io::ErrorKind;

use super::host::{Host, StreamId};
use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// How much of what the guest sends is buffered for each connection.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// The most that one packet carries.
pub(super) const MOST_BYTES: usize = 64 << 10;

/// What the guest must be told, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owed(u8);

impl Owed {
    const RST: Self = Self(1);
    const REQUEST: Self = Self(2);
    const RESPONSE: Self = Self(4);
    const SHUTDOWN: Self = Self(8);
    const UPDATE: Self = Self(16);
    const CREDIT: Self = Self(32);

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn take(&mut self, other: Self) -> bool {
        let had = self.has(other);
        self.0 &= !other.0;
        had
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: StreamId,
    /// The guest has not answered yet.
    asked: bool,
    owed: Owed,
    /// What the guest has sent and the host not taken.
    buffer: VecDeque<u8>,
    /// How much the host has taken, modulo 2^32.
    passed: u32,
    /// What the guest last heard of that.
    told: u32,
    /// How much the guest was sent, modulo 2^32.
    sent: u32,
    guest_buffer: u32,
    guest_passed: u32,
    /// The guest will send no more.
    guest_done: bool,
    /// The guest wants no more.
    guest_deaf: bool,
    /// The host will send no more.
    host_done: bool,
    /// The host wants no more.
    host_deaf: bool,
    /// The stream may have something to read.
    readable: bool,
    /// It had, and the guest no room.
    starved: bool,
    /// The stream was told that nothing more will be written.
    finished: bool,
    /// It stands in the list of those that have something for the guest.
    pub(super) listed: bool,
}

impl Connection {
    fn new(stream: StreamId, asked: bool, owed: Owed) -> Self {
        Self {
            stream,
            asked,
            owed,
            buffer: VecDeque::new(),
            passed: 0,
            told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_passed: 0,
            guest_done: false,
            guest_deaf: false,
            host_done: false,
            host_deaf: false,
            readable: true,
            starved: false,
            finished: false,
            listed: false,
        }
    }

    /// The host wants to reach the guest.
    pub(super) fn ask(stream: StreamId) -> Self {
        Self::new(stream, true, Owed::REQUEST)
    }

    /// The guest has reached the host.
    pub(super) fn answer(stream: StreamId, request: &Header) -> Self {
        let mut connection = Self::new(stream, false, Owed::RESPONSE);
        connection.heard(request);
        connection
    }

    /// What every packet says of its sender's buffer.
    pub(super) fn heard(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_passed = header.fwd_cnt;
    }

    /// How much the guest can be sent.
    fn credit(&self) -> usize {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_passed)) as usize
    }

    /// The guest answers what it was asked; false if it was not.
    pub(super) fn answered(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    /// The guest sends data; false if it may not.
    pub(super) fn data(&mut self, data: &[u8], host: &mut impl Host) -> bool {
        let fits = self.buffer.len() + data.len() <= BUFFER_BYTES as usize;
        if self.asked || self.guest_done || !fits {
            return false;
        }
        if self.host_deaf {
            self.count(data.len());
            return true;
        }
        self.buffer.extend(data);
        self.flush(host);
        true
    }

    /// The guest shuts one half or both.
    pub(super) fn shut(&mut self, flags: u32, host: &mut impl Host) {
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        self.guest_done |= flags & SHUTDOWN_SEND != 0;
        self.flush(host);
    }

    /// The guest wants to know how much it may send.
    pub(super) fn wants_credit(&mut self) {
        self.owed.add(Owed::UPDATE);
    }

    /// The stream may have moved.
    pub(super) fn ready(&mut self, host: &mut impl Host) {
        self.readable = !self.starved;
        self.flush(host);
    }

    /// Passes on what the guest has sent, as far as the host takes it.
    fn flush(&mut self, host: &mut impl Host) {
        while !self.buffer.is_empty() && !self.host_deaf {
            let (front, _) = self.buffer.as_slices();
            match host.write(self.stream, front) {
                Ok(count @ 1..) => {
                    let count = count.min(self.buffer.len());
                    self.buffer.drain(..count);
                    self.count(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    self.host_deaf = true;
                    let lost = self.buffer.len();
                    self.buffer.clear();
                    self.count(lost);
                    self.owed.add(Owed::SHUTDOWN);
                }
            }
        }
        if self.buffer.is_empty() {
            // What was taken at once needs no room; a burst's room is given back.
            self.buffer.shrink_to(4096);
            if self.guest_done && !self.finished {
                self.finished = true;
                host.finish(self.stream);
            }
            if self.guest_done && self.guest_deaf {
                self.owed.add(Owed::RST);
            }
        }
    }

    fn count(&mut self, passed: usize) {
        self.passed = self.passed.wrapping_add(passed as u32);
        if self.passed.wrapping_sub(self.told) >= BUFFER_BYTES / 2 {
            self.owed.add(Owed::UPDATE);
        }
    }

    /// Whether the guest should get a packet.
    pub(super) fn has_something(&self) -> bool {
        self.owed != Owed::default() || self.may_read()
    }

    fn may_read(&self) -> bool {
        self.readable && !self.asked && !self.host_done && !self.guest_deaf
    }

    /// The next packet for the guest, if there is one: its header without the addresses, and its data at the
    /// beginning of `data`.
    pub(super) fn packet(&mut self, host: &mut impl Host, data: &mut [u8]) -> Option<Header> {
        let packet = |op| Header { op, ..Header::default() };
        let header = if self.owed.has(Owed::RST) {
            packet(op::RST)
        } else if self.owed.take(Owed::REQUEST) {
            packet(op::REQUEST)
        } else if self.owed.take(Owed::RESPONSE) {
            packet(op::RESPONSE)
        } else if let Some(length) = self.read(host, data) {
            Header { len: length as u32, ..packet(op::RW) }
        } else if self.owed.has(Owed::RST) {
            packet(op::RST)
        } else if self.owed.take(Owed::SHUTDOWN) {
            let flag = |set, flag| if set { flag } else { 0 };
            let flags = flag(self.host_done, SHUTDOWN_SEND) | flag(self.host_deaf, SHUTDOWN_RECEIVE);
            Header { flags, ..packet(op::SHUTDOWN) }
        } else if self.owed.take(Owed::CREDIT) {
            packet(op::CREDIT_REQUEST)
        } else if self.owed.take(Owed::UPDATE) {
            packet(op::CREDIT_UPDATE)
        } else {
            return None;
        };
        // Every packet carries it.
        self.owed.take(Owed::UPDATE);
        self.told = self.passed;
        Some(Header { buf_alloc: BUFFER_BYTES, fwd_cnt: self.passed, ..header })
    }

    /// Reads what may be sent now.
    fn read(&mut self, host: &mut impl Host, data: &mut [u8]) -> Option<usize> {
        if !self.may_read() {
            return None;
        }
        let most = self.credit().min(data.len());
        if most == 0 {
            // Asked once; the answer, or any other packet, will say more.
            self.readable = false;
            self.starved = true;
            self.owed.add(Owed::CREDIT);
            return None;
        }
        loop {
            match host.read(self.stream, &mut data[..most]) {
                Ok(0) => {
                    self.host_done = true;
                    self.owed.add(Owed::SHUTDOWN);
                    return None;
                }
                Ok(count) => {
                    let count = count.min(most);
                    self.sent = self.sent.wrapping_add(count as u32);
                    return Some(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readable = false;
                    if error.kind() != ErrorKind::WouldBlock {
                        self.owed.add(Owed::RST);
                    }
                    return None;
                }
            }
        }
    }

    /// The guest has made room.
    pub(super) fn credited(&mut self) {
        if self.starved && self.credit() > 0 {
            self.starved = false;
            self.readable = true;
        }
    }
}
