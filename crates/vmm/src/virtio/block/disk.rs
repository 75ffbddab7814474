//! What a block device needs of a disk.

use moat_linux::Errno;

use crate::virtio::chain::Buffers;

/// A sector, the unit of the protocol, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// What to do. An operation owns its buffers: they stay until it is done.
#[derive(Debug)]
pub enum Operation {
    /// Fill the buffers.
    Read {
        /// Where on the disk.
        offset_bytes: u64,
        /// Where in the guest.
        buffers: Buffers,
    },
    /// Write the buffers.
    Write {
        /// Where on the disk.
        offset_bytes: u64,
        /// Where in the guest.
        buffers: Buffers,
        /// Done only when it would survive a power cut.
        durable: bool,
    },
    /// Make durable what was written.
    Flush,
    /// The guest does not need these bytes any more.
    Discard {
        /// Where on the disk.
        offset_bytes: u64,
        /// How many.
        length_bytes: u64,
    },
    /// These bytes read as zero.
    Zero {
        /// Where on the disk.
        offset_bytes: u64,
        /// How many.
        length_bytes: u64,
        /// The room that they take may be given back.
        unmap: bool,
    },
}

/// An operation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// As given to [`Disk::submit`].
    pub tag: u64,
    /// Whether it was done whole.
    pub result: Result<(), Errno>,
}

/// A disk. Operations may end in any order.
pub trait Disk: Send {
    /// Its size; the guest sees whole sectors of it.
    fn size_bytes(&self) -> u64;

    /// Takes an operation; `tag` is not in flight.
    fn submit(&mut self, tag: u64, operation: Operation);

    /// Sees to it that what was submitted goes on without further calls.
    fn commit(&mut self) -> Result<(), Errno>;

    /// The next operation that has ended.
    fn next_done(&mut self) -> Option<Done>;

    /// Waits until one has ended, if any is in flight.
    fn wait(&mut self) -> Result<(), Errno>;
}

impl Disk for Box<dyn Disk> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        (**self).submit(tag, operation);
    }

    fn commit(&mut self) -> Result<(), Errno> {
        (**self).commit()
    }

    fn next_done(&mut self) -> Option<Done> {
        (**self).next_done()
    }

    fn wait(&mut self) -> Result<(), Errno> {
        (**self).wait()
    }
}
