//! The block device (section 5.2): reads, writes, flushes, discards and zeroes on raw bytes.
//!
//! A disk is what its file holds, byte for byte. Nothing of it is ever interpreted, so a guest that writes
//! the header of some image format to its first sector has written 512 bytes.

use std::collections::HashMap;
use std::time::Instant;

use moat_linux::Errno;
use serde::{Deserialize, Serialize};

use self::request::{Ask, Request, Rules, Status};
use super::chain::Buffers;
use super::{DeviceState, DeviceType, Fault, Io, StateError, TIMER, VirtioDevice, read_space};
use crate::rate_limit::{RateLimit, RateLimitState};

mod disk;
mod request;

pub use disk::{Disk, Done, Operation, SECTOR_BYTES};

/// The token of [`VirtioDevice::ready`] for the end of operations.
pub const DONE: u64 = 0;
/// The longest serial number in bytes.
pub const SERIAL_BYTES: usize = 20;
/// The most queues that a device has: one for each vCPU is enough.
pub const MOST_QUEUES: u16 = 32;

const QUEUE_SIZE: u16 = 256;
/// The largest range of one discard or write-zeroes.
const MOST_SECTORS: u32 = 1 << 16;

/// Feature bits (section 5.2.3).
pub mod feature {
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO.
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_MQ.
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// What a block device is like.
#[derive(Clone, Debug, Default)]
pub struct BlockOptions {
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number; cut after 20 bytes.
    pub serial: String,
    /// How many queues, at least 1.
    pub queues: u16,
    /// How much it may do.
    pub limit: RateLimit,
}

/// What survives a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The guest relies on it.
    pub sectors: u64,
    /// The budget.
    pub limit: RateLimitState,
}

/// A request that the disk works on.
struct InFlight {
    queue: u16,
    head: u16,
    /// What the used ring is told when all went well.
    written: u32,
    status: Buffers,
}

/// The device.
pub struct Block<D> {
    disk: D,
    options: BlockOptions,
    queue_sizes: Vec<u16>,
    sectors: u64,
    in_flight: HashMap<u64, InFlight>,
    /// No tag is ever used twice, so that nothing can end a request that it did not begin.
    next_tag: u64,
    errors: u64,
}

impl<D: Disk> Block<D> {
    /// A device over `disk`.
    pub fn new(disk: D, options: BlockOptions) -> Self {
        let queues = options.queues.clamp(1, MOST_QUEUES);
        Self {
            sectors: disk.size_bytes() / SECTOR_BYTES,
            disk,
            options,
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            in_flight: HashMap::new(),
            next_tag: 0,
            errors: 0,
        }
    }

    /// How many requests the disk failed.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Whether the disk works on nothing of the guest's.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put =
            |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        // A header and a status take the other two descriptors of a chain that is as long as the queue.
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn serve(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        let rules =
            Rules { sectors: self.sectors, read_only: self.options.read_only, features: io.features() };
        let now = Instant::now();
        while let Some(chain) = io.pop(queue)? {
            let bytes = chain.readable_bytes().max(chain.writable_bytes()) as u64;
            if !self.options.limit.take(now, bytes) {
                io.unpop(queue);
                break;
            }
            let Request { ask, data_bytes, status } = Request::parse(&chain, io.memory(), &rules)?;
            let request = InFlight { queue, head: chain.head(), written: data_bytes + 1, status };
            match ask {
                Ask::Disk(operation) => {
                    let tag = self.next_tag;
                    self.next_tag += 1;
                    self.in_flight.insert(tag, request);
                    self.disk.submit(tag, operation);
                }
                Ask::Serial(buffers) => {
                    let mut serial = [0; SERIAL_BYTES];
                    let given = self.options.serial.as_bytes();
                    let length = given.len().min(SERIAL_BYTES);
                    serial[..length].copy_from_slice(&given[..length]);
                    let whole = buffers.fill(&serial)? == SERIAL_BYTES;
                    finish(&request, if whole { Status::Ok } else { Status::IoError }, io)?;
                }
                Ask::Refused(status) => finish(&request, status, io)?,
            }
        }
        Ok(())
    }

    /// Serves queues, and ends what has ended.
    fn work(&mut self, queues: impl Iterator<Item = u16>, io: &mut Io<'_>) -> Result<(), Fault> {
        for queue in queues {
            self.serve(queue, io)?;
            io.signal(queue)?;
        }
        self.commit()?;
        self.collect(io)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.disk.commit().map_err(|_| Fault::Protocol("the disk takes no more operations"))
    }

    /// Tells the driver what the disk has done.
    fn collect(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut touched = 0_u64;
        while let Some(Done { tag, result }) = self.disk.next_done() {
            let Some(request) = self.in_flight.remove(&tag) else { continue };
            let status = match result {
                Ok(()) => Status::Ok,
                Err(Errno::OPNOTSUPP) => Status::Unsupported,
                Err(_) => {
                    self.errors += 1;
                    Status::IoError
                }
            };
            finish(&request, status, io)?;
            touched |= 1 << request.queue;
        }
        (0..self.queue_count())
            .filter(|queue| touched >> queue & 1 != 0)
            .try_for_each(|queue| io.signal(queue))
    }

    fn queue_count(&self) -> u16 {
        self.queue_sizes.len() as u16
    }
}

/// Writes the status byte and returns the chain.
fn finish(request: &InFlight, status: Status, io: &mut Io<'_>) -> Result<(), Fault> {
    request.status.fill(&[status as u8])?;
    // The used length promises that so many bytes from the first on were written (section 2.7.8.2). The
    // status byte is the last one, so after a failure that is not known of any.
    let written = if status == Status::Ok || request.written == 1 { request.written } else { 0 };
    io.complete(request.queue, request.head, written)
}

impl<D: Disk> VirtioDevice for Block<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let write =
            if self.options.read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES };
        let many = if self.queue_sizes.len() > 1 { feature::MQ } else { 0 };
        feature::SEG_MAX | feature::FLUSH | write | many
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.work(0..self.queue_count(), io)
    }

    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        self.work(std::iter::once(queue), io)
    }

    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        if token != TIMER {
            return self.collect(io);
        }
        self.options.limit.wake_no_more();
        self.work(0..self.queue_count(), io)
    }

    fn wake_at(&self) -> Option<Instant> {
        self.options.limit.wake_at()
    }

    fn drain(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.commit()?;
        let mut first = Ok(());
        while !self.in_flight.is_empty() {
            self.disk.wait().map_err(|_| Fault::Protocol("the disk does not end its operations"))?;
            // A ring that can not be written is no reason to leave operations in flight.
            first = first.and(self.collect(io));
        }
        first
    }

    fn reset(&mut self) {
        self.in_flight.clear();
        self.options.limit.wake_no_more();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState { sectors: self.sectors, limit: self.options.limit.save() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Block(state) = state else { return Err(StateError::Type(self.device_type())) };
        if state.sectors != self.sectors {
            return Err(StateError::Mismatch("its disk has another size"));
        }
        self.options.limit.restore(&state.limit);
        Ok(())
    }
}
