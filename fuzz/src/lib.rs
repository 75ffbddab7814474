//! What the fuzz targets of the virtio devices share: a hostile driver that is played from bytes, and the
//! promise that a device keeps whatever its driver does.
//!
//! The promise: a device changes guest memory only in its used rings, and in buffers that its driver has
//! marked as writable for it. It is held against the memory itself, which is compared before and after each
//! step.

use std::ops::Range;
use std::sync::Arc;

use moat_vmm::device::{BusDevice, InterruptLine};
use moat_vmm::virtio::lifecycle::status;
use moat_vmm::virtio::mmio::{Transport, TransportState, register};
use moat_vmm::virtio::{Memory, TIMER, VirtioDevice, feature};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Size of the guest's memory in bytes.
const MEMORY_BYTES: usize = 64 << 10;
/// Where buffers mostly lie.
const BUFFERS: u64 = 0x4000;
const QUEUE_SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes to play from. When they are over there are zeroes.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// Whether there is something left.
    pub fn goes_on(&self) -> bool {
        !self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next bytes, at most `count`.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn trigger(&self) {}
}

/// A guest with a device.
struct Guest<D> {
    transport: Transport<D>,
    memory: Memory,
    queues: u16,
    before: Vec<u8>,
    after: Vec<u8>,
    /// What the device may have been allowed to write since it was started; operations may end late.
    granted: Vec<Range<usize>>,
}

/// Plays `script` against devices that `device` makes; `outside` lets something happen behind them.
pub fn play<D: VirtioDevice>(
    mut script: Script<'_>,
    device: impl Fn() -> D,
    outside: impl Fn(&mut Script<'_>),
) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a guest's memory"));
    let transport = Transport::new(device(), Arc::clone(&memory), Arc::new(NoLine));
    let queues = transport.lifecycle().queue_count() as u16;
    let (before, after) = (vec![0; MEMORY_BYTES], vec![0; MEMORY_BYTES]);
    let mut guest = Guest { transport, memory, queues, before, after, granted: Vec::new() };
    guest.start(u64::MAX);
    for _ in 0..64 {
        if !script.goes_on() {
            break;
        }
        match script.u8() % 16 {
            0..=5 => guest.chain(&mut script),
            6 | 7 => {
                let queue = script.u8();
                guest.step(|transport| transport.notify(queue.into()));
            }
            8 => {
                outside(&mut script);
                let token = u64::from(script.u8() % 4);
                guest.step(|transport| transport.ready(token));
            }
            9 => guest.step(|transport| transport.ready(TIMER)),
            10 => guest.register(&mut script),
            11 => {
                let features = script.u64();
                guest.start(features);
            }
            12 => {
                let (address, bytes) = (u64::from(script.u16()), script.take(8));
                let _ = guest.memory.write(bytes, GuestAddress(address));
            }
            13 => guest.step(Transport::drain),
            14 => guest.move_to(device()),
            _ => guest.configuration(&mut script),
        }
    }
    guest.step(Transport::drain);
    guest.write(register::STATUS, 0);
}

/// Changes bytes of the saved state of a live device, and gives what comes of it to another one: it is refused, or
/// that device keeps its promise.
pub fn tamper<D: VirtioDevice>(mut script: Script<'_>, device: impl Fn() -> D) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a guest's memory"));
    let transport = Transport::new(device(), Arc::clone(&memory), Arc::new(NoLine));
    let queues = transport.lifecycle().queue_count() as u16;
    let (before, after) = (vec![0; MEMORY_BYTES], vec![0; MEMORY_BYTES]);
    let mut guest = Guest { transport, memory, queues, before, after, granted: Vec::new() };
    guest.start(script.u64());
    for _ in 0..script.u8() % 4 {
        guest.chain(&mut script);
    }
    let mut bytes = postcard::to_allocvec(&guest.transport.save()).expect("a state can be written");
    for _ in 0..8 {
        if !script.goes_on() {
            break;
        }
        let at = usize::from(script.u16()) % bytes.len();
        match script.u8() % 4 {
            0 => bytes[at] ^= script.u8(),
            1 => bytes[at] = script.u8(),
            2 => bytes.insert(at, script.u8()),
            _ => drop(bytes.drain(at..)),
        }
        bytes.extend_from_slice(script.take(usize::from(bytes.is_empty())));
        if bytes.is_empty() {
            return;
        }
    }
    let Ok(state) = postcard::from_bytes::<TransportState>(&bytes) else { return };
    let mut other = Transport::new(device(), Arc::clone(&guest.memory), Arc::new(NoLine));
    if other.restore(&state).is_err() {
        return;
    }
    guest.transport = other;
    guest.step(Transport::resume);
    for queue in 0..u32::from(queues) {
        guest.chain(&mut script);
        guest.step(|transport| transport.notify(queue));
    }
    guest.step(|transport| transport.ready(0));
    guest.step(|transport| transport.ready(TIMER));
    guest.step(|transport| drop(transport.save()));
    guest.write(register::STATUS, 0);
    assert_eq!(guest.transport.lifecycle().status(), 0);
}

fn table(queue: u16) -> u64 {
    0x1000 + u64::from(queue) * 0x200
}

impl<D: VirtioDevice> Guest<D> {
    fn write(&mut self, offset: u64, value: u32) {
        self.step(|transport| transport.write(offset, &value.to_le_bytes()));
    }

    /// Lets the device do something, and sees to it that it keeps its promise.
    fn step(&mut self, what: impl FnOnce(&mut Transport<D>)) {
        self.grant();
        self.memory.read_slice(&mut self.before, GuestAddress(0)).expect("all of the memory");
        what(&mut self.transport);
        self.memory.read_slice(&mut self.after, GuestAddress(0)).expect("all of the memory");
        if self.before == self.after {
            return;
        }
        for range in &self.granted {
            self.before[range.clone()].copy_from_slice(&self.after[range.clone()]);
        }
        let wrong = self.before.iter().zip(&self.after).position(|(before, after)| before != after);
        assert_eq!(wrong, None, "the device has written where it may not");
        for index in 0..u32::from(self.queues) {
            let queue = self.transport.lifecycle().queue(index).expect("a queue");
            assert!(queue.in_flight() <= queue.state().size || !queue.is_ready());
        }
    }

    fn grant(&mut self) {
        for index in 0..u32::from(self.queues) {
            let Some(queue) = self.transport.lifecycle().queue(index) else { continue };
            let state = *queue.state();
            if !state.ready || state.size > 256 {
                continue;
            }
            let entries = u64::from(state.size);
            self.allow(state.used, 6 + entries * 8);
            self.allow_table(state.descriptors, entries, true);
        }
    }

    fn allow(&mut self, address: u64, length: u64) {
        let clamp = |address: u64| address.min(MEMORY_BYTES as u64) as usize;
        let range = clamp(address)..clamp(address.saturating_add(length));
        if !range.is_empty() && !self.granted.contains(&range) {
            self.granted.push(range);
        }
    }

    fn allow_table(&mut self, table: u64, entries: u64, indirect: bool) {
        for index in 0..entries.min(256) {
            let mut raw = [0; 16];
            let Some(place) = table.checked_add(index * 16) else { return };
            if self.memory.read_slice(&mut raw, GuestAddress(place)).is_err() {
                return;
            }
            let address = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
            let length = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
            let flags = u16::from_le_bytes(raw[12..14].try_into().expect("two bytes"));
            if flags & INDIRECT != 0 && indirect {
                self.allow_table(address, u64::from(length) / 16, false);
            } else if flags & WRITE != 0 {
                self.allow(address, length.into());
            }
        }
    }

    /// From reset to DRIVER_OK with those of `features` that are on offer.
    fn start(&mut self, features: u64) {
        self.write(register::STATUS, 0);
        self.granted.clear();
        let mut steps = status::ACKNOWLEDGE | status::DRIVER;
        self.write(register::STATUS, steps.into());
        let features = features & self.transport.lifecycle().offered() | feature::VERSION_1;
        for word in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, word);
            self.write(register::DRIVER_FEATURES, (features >> (word * 32)) as u32);
        }
        steps |= status::FEATURES_OK;
        self.write(register::STATUS, steps.into());
        for queue in 0..self.queues {
            let base = table(queue);
            let _ = self.memory.write_slice(&[0; 0x200], GuestAddress(base));
            self.write(register::QUEUE_SEL, queue.into());
            self.write(register::QUEUE_NUM, QUEUE_SIZE.into());
            self.write(register::QUEUE_DESC_LOW, base as u32);
            self.write(register::QUEUE_DRIVER_LOW, base as u32 + 0x80);
            self.write(register::QUEUE_DEVICE_LOW, base as u32 + 0x100);
            self.write(register::QUEUE_READY, 1);
        }
        self.write(register::STATUS, u32::from(steps | status::DRIVER_OK));
    }

    /// Writes a chain, right or wrong, and makes it available.
    fn chain(&mut self, script: &mut Script<'_>) {
        let queue = u16::from(script.u8()) % self.queues.max(1);
        let shape = script.u8();
        let (head, count) = (u16::from(shape & 7), u16::from(shape >> 3 & 7));
        for number in 0..=count {
            let kind = script.u8();
            let mut flags = u16::from(kind & 7);
            if number < count && kind & 8 == 0 {
                flags |= NEXT;
            }
            let (address, length) = if kind & 0xf0 == 0xf0 {
                (script.u64(), script.u32())
            } else {
                (BUFFERS + u64::from(script.u16() & 0x3fff), u32::from(script.u8()) << (kind >> 4 & 3))
            };
            if flags & WRITE == 0 && kind & 0x80 == 0 {
                let bytes = script.take(length.min(48) as usize);
                let _ = self.memory.write(bytes, GuestAddress(address));
            }
            let mut raw = Vec::with_capacity(16);
            raw.extend(address.to_le_bytes());
            raw.extend(length.to_le_bytes());
            raw.extend(flags.to_le_bytes());
            raw.extend(((head + number + 1) % QUEUE_SIZE).to_le_bytes());
            let place = table(queue) + u64::from((head + number) % QUEUE_SIZE) * 16;
            let _ = self.memory.write_slice(&raw, GuestAddress(place));
        }
        let ring = table(queue) + 0x80;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap_or_default();
        let entry = ring + 4 + u64::from(index % QUEUE_SIZE) * 2;
        let _ = self.memory.write_obj(head, GuestAddress(entry));
        let _ = self.memory.write_obj(index.wrapping_add(1), GuestAddress(ring + 2));
        if shape & 0x40 == 0 {
            self.step(|transport| transport.notify(queue.into()));
        }
    }

    /// Any access to any register.
    fn register(&mut self, script: &mut Script<'_>) {
        let (offset, width) = (u64::from(script.u16() % 0x140), usize::from(script.u8() % 9));
        let value = script.u64().to_le_bytes();
        self.step(|transport| transport.write(offset, &value[..width.min(8)]));
        let mut data = [0; 8];
        self.step(|transport| transport.read(offset, &mut data[..width.min(8)]));
    }

    fn configuration(&mut self, script: &mut Script<'_>) {
        let offset = register::CONFIG + u64::from(script.u8());
        let value = script.u32().to_le_bytes();
        self.step(|transport| transport.write(offset, &value));
        let mut data = [0; 8];
        self.step(|transport| transport.read(offset, &mut data));
    }

    /// Saves the device and goes on with another.
    fn move_to(&mut self, device: D) {
        let mut state = Vec::new();
        self.step(|transport| {
            state = postcard::to_allocvec(&transport.save()).expect("a state can be written")
        });
        let mut other = Transport::new(device, Arc::clone(&self.memory), Arc::new(NoLine));
        let state: TransportState = postcard::from_bytes(&state).expect("what was written can be read");
        if other.restore(&state).is_ok() {
            self.transport = other;
            self.step(Transport::resume);
        } else {
            // Only a driver that broke its rings has a state that can not be taken.
            self.start(0);
        }
    }
}
