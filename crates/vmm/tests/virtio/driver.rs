//! A driver by hand: it writes registers, descriptors and rings as it likes, right or wrong.
#![allow(dead_code, unreachable_pub, reason = "several test programs use parts of this")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moat_vmm::device::{BusDevice, InterruptLine};
use moat_vmm::virtio::lifecycle::status;
use moat_vmm::virtio::mmio::{Transport, register};
use moat_vmm::virtio::{Memory, VirtioDevice, feature};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Size of the guest's memory in bytes.
pub const MEMORY_BYTES: u64 = 4 << 20;
/// Where buffers may lie: behind the rings.
pub const BUFFERS: u64 = 1 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Counts interrupts.
#[derive(Default)]
pub struct Line(AtomicUsize);

impl InterruptLine for Line {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Line {
    /// How many there were since the last call.
    pub fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, length: usize) -> Part {
    Part { address, length: length as u32, writable: false }
}

/// A buffer that the device writes.
pub fn writable(address: u64, length: usize) -> Part {
    Part { address, length: length as u32, writable: true }
}

/// A guest with one device.
pub struct Guest<D> {
    pub transport: Transport<D>,
    pub memory: Memory,
    pub line: Arc<Line>,
    /// Per queue: entries, next free descriptor, used entries seen.
    queues: Vec<(u16, u16, u16)>,
}

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap())
}

pub fn descriptors(queue: u16) -> u64 {
    0x1_0000 + u64::from(queue) * 0x4000
}

pub fn available(queue: u16) -> u64 {
    descriptors(queue) + 0x1000
}

pub fn used(queue: u16) -> u64 {
    descriptors(queue) + 0x2000
}

impl<D: VirtioDevice> Guest<D> {
    /// A guest whose device is as after power-on.
    pub fn new(device: D) -> Self {
        Self::with_memory(device, memory())
    }

    pub fn with_memory(device: D, memory: Memory) -> Self {
        let line = Arc::new(Line::default());
        let queues = device.queue_sizes().iter().map(|size| (*size, 0, 0)).collect();
        let transport = Transport::new(device, Arc::clone(&memory), Arc::clone(&line) as _);
        Self { transport, memory, line, queues }
    }

    /// A guest whose driver has accepted `features` and set up all queues with their largest sizes.
    pub fn started(device: D, features: u64) -> Self {
        let mut guest = Self::new(device);
        guest.start(features | feature::VERSION_1);
        assert_eq!(
            guest.status(),
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK
        );
        guest
    }

    pub fn read(&mut self, offset: u64) -> u32 {
        let mut value = [0xaa; 4];
        self.transport.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&mut self) -> u8 {
        self.read(register::STATUS) as u8
    }

    pub fn set_status(&mut self, bits: u8) {
        self.write(register::STATUS, bits.into());
    }

    pub fn offered(&mut self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 0);
        let low = self.read(register::DEVICE_FEATURES);
        self.write(register::DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(register::DEVICE_FEATURES)) << 32
    }

    pub fn accept(&mut self, features: u64) {
        for word in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, word);
            self.write(register::DRIVER_FEATURES, (features >> (32 * word)) as u32);
        }
    }

    /// Up to FEATURES_OK; whether the device has taken that.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.accept(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    pub fn set_address(&mut self, low_register: u64, address: u64) {
        self.write(low_register, address as u32);
        self.write(low_register + 4, (address >> 32) as u32);
    }

    /// Sets a queue up at its usual place, empty.
    pub fn set_queue(&mut self, queue: u16, size: u16) {
        self.memory.write_slice(&[0; 0x4000], GuestAddress(descriptors(queue))).unwrap();
        self.write(register::QUEUE_SEL, queue.into());
        self.write(register::QUEUE_NUM, size.into());
        self.set_address(register::QUEUE_DESC_LOW, descriptors(queue));
        self.set_address(register::QUEUE_DRIVER_LOW, available(queue));
        self.set_address(register::QUEUE_DEVICE_LOW, used(queue));
        self.write(register::QUEUE_READY, 1);
        self.queues[usize::from(queue)] = (size, 0, 0);
    }

    /// From reset to DRIVER_OK.
    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features), "the device refuses {features:#x}");
        for queue in 0..self.queues.len() as u16 {
            self.write(register::QUEUE_SEL, queue.into());
            let size = self.read(register::QUEUE_NUM_MAX) as u16;
            self.set_queue(queue, size);
        }
        let status = self.status();
        self.set_status(status | status::DRIVER_OK);
    }

    pub fn write_descriptor(
        &mut self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut raw = Vec::new();
        raw.extend(address.to_le_bytes());
        raw.extend(length.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(table + u64::from(index) * 16)).unwrap();
    }

    pub fn get16(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn put16(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Makes a chain available by its head.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let size = self.queues[usize::from(queue)].0;
        let index = self.get16(available(queue) + 2);
        self.put16(available(queue) + 4 + u64::from(index % size) * 2, head);
        self.put16(available(queue) + 2, index.wrapping_add(1));
    }

    /// Writes a chain of direct descriptors and makes it available; returns its head.
    pub fn chain(&mut self, queue: u16, parts: &[Part]) -> u16 {
        let (size, mut free, seen) = self.queues[usize::from(queue)];
        let head = free;
        for (number, part) in parts.iter().enumerate() {
            let index = free;
            free = (free + 1) % size;
            let more = number + 1 < parts.len();
            let flags = if part.writable { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.write_descriptor(descriptors(queue), index, part.address, part.length, flags, free);
        }
        self.queues[usize::from(queue)] = (size, free, seen);
        self.offer(queue, head);
        head
    }

    pub fn notify(&mut self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }

    /// What the device has returned since the last call: heads and lengths.
    pub fn take_used(&mut self, queue: u16) -> Vec<(u16, u32)> {
        let (size, free, mut seen) = self.queues[usize::from(queue)];
        let mut taken = Vec::new();
        while seen != self.get16(used(queue) + 2) {
            let entry = used(queue) + 4 + u64::from(seen % size) * 8;
            let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
            taken.push((u16::try_from(head).unwrap(), length));
            seen = seen.wrapping_add(1);
        }
        self.queues[usize::from(queue)] = (size, free, seen);
        taken
    }

    /// Makes a chain available, notifies, and returns the length that the device has returned at once.
    pub fn ask(&mut self, queue: u16, parts: &[Part]) -> u32 {
        let head = self.chain(queue, parts);
        self.notify(queue);
        match self.take_used(queue)[..] {
            [(used, length)] if used == head => length,
            ref other => panic!("used {other:?} instead of {head}; {:?}", self.transport.take_fault()),
        }
    }

    pub fn needs_reset(&mut self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.transport.read(register::CONFIG + offset, &mut bytes);
        bytes
    }
}
