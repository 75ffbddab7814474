//! A descriptor chain, checked: the only way to a guest's buffers.
//!
//! The driver writes descriptors into memory that it can change at any time. So each descriptor is copied
//! once and judged by the copy; the walk is bounded by the queue's size, which also ends every loop; and what
//! comes out is a list of [`Segment`]s, each proven to lie in one region of guest memory. Readers, writers
//! and back-ends take bytes from segments and from nothing else.
#![allow(unsafe_code, reason = "hands guest memory to the kernel by address")]

use moat_linux::iov::IoBuffer;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::{Fault, Memory};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
pub const DESCRIPTOR_BYTES: u64 = 16;

/// A piece of guest memory that is there; made by the walk alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    address: u64,
    length: u32,
}

/// A chain that a driver has made available.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of them the device may only read.
    readable: usize,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn load(memory: &GuestMemoryMmap, table: u64, index: u16) -> Result<Self, Fault> {
        let mut raw = [0; DESCRIPTOR_BYTES as usize];
        let address = table.checked_add(u64::from(index) * DESCRIPTOR_BYTES);
        let missing = Fault::Buffer { address: table, length_bytes: u32::from(index) * 16 + 16 };
        let address = GuestAddress(address.ok_or(missing)?);
        memory.read_slice(&mut raw, address).map_err(|_| missing)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Ok(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Where a walk is.
struct Walk<'a> {
    memory: &'a GuestMemoryMmap,
    size: u16,
    table: u64,
    table_size: u16,
    in_indirect: bool,
    seen: u16,
    bytes: u32,
    chain: Chain,
}

/// Walks the chain that begins at `head` in the descriptor table of a queue with `size` entries.
pub(super) fn walk(
    memory: &GuestMemoryMmap,
    table: u64,
    size: u16,
    head: u16,
    indirect: bool,
) -> Result<Chain, Fault> {
    let chain = Chain { head, segments: Vec::with_capacity(4), readable: 0 };
    let mut walk =
        Walk { memory, size, table, table_size: size, in_indirect: false, seen: 0, bytes: 0, chain };
    let mut index = head;
    loop {
        if index >= walk.table_size {
            return Err(Fault::DescriptorIndex { index, size: walk.table_size });
        }
        let descriptor = Descriptor::load(memory, walk.table, index)?;
        if descriptor.flags & INDIRECT != 0 {
            walk.enter(descriptor, indirect)?;
            index = 0;
            continue;
        }
        walk.take(descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(walk.chain);
        }
        index = descriptor.next;
    }
}

impl Walk<'_> {
    /// Goes on in an indirect table (section 2.7.5.3).
    fn enter(&mut self, descriptor: Descriptor, negotiated: bool) -> Result<(), Fault> {
        if !negotiated {
            return Err(Fault::Indirect("was not negotiated"));
        }
        if self.in_indirect {
            return Err(Fault::Indirect("stands in an indirect table"));
        }
        if descriptor.flags & NEXT != 0 {
            return Err(Fault::Indirect("has a next one"));
        }
        if descriptor.length == 0 || !u64::from(descriptor.length).is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(Fault::Indirect("is not whole descriptors long"));
        }
        let entries = u64::from(descriptor.length) / DESCRIPTOR_BYTES;
        // A longer table can not be used up by a chain that is short enough.
        self.table_size = u16::try_from(entries).unwrap_or(u16::MAX);
        self.table = descriptor.address;
        self.in_indirect = true;
        Ok(())
    }

    /// Takes a buffer in, as one segment for each region of memory that it touches.
    fn take(&mut self, descriptor: Descriptor) -> Result<(), Fault> {
        let Descriptor { address, length, flags, .. } = descriptor;
        self.seen += 1;
        if self.seen > self.size {
            return Err(Fault::ChainLength { size: self.size });
        }
        self.bytes = self.bytes.checked_add(length).ok_or(Fault::ChainBytes)?;
        let writable = flags & WRITE != 0;
        if !writable && self.chain.readable != self.chain.segments.len() {
            return Err(Fault::Order);
        }
        let missing = Fault::Buffer { address, length_bytes: length };
        address.checked_add(u64::from(length)).ok_or(missing)?;
        let mut start = address;
        for piece in self.memory.get_slices(GuestAddress(address), length as usize) {
            let length = piece.map_err(|_| missing)?.len() as u32;
            self.chain.segments.push(Segment { address: start, length });
            start += u64::from(length);
        }
        if !writable {
            self.chain.readable = self.chain.segments.len();
        }
        Ok(())
    }
}

fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.length as usize).sum()
}

impl Chain {
    /// Its number in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    pub fn reader<'a>(&'a self, memory: &'a Memory) -> Reader<'a> {
        Reader(Cursor::new(memory, &self.segments[..self.readable]))
    }

    /// What the device writes.
    pub fn writer<'a>(&'a self, memory: &'a Memory) -> Writer<'a> {
        let cursor = Cursor::new(memory, &self.segments[self.readable..]);
        Writer { total: cursor.remaining, cursor }
    }

    /// How many bytes the device may read.
    pub fn readable_bytes(&self) -> usize {
        total(&self.segments[..self.readable])
    }

    /// How many bytes the device may write.
    pub fn writable_bytes(&self) -> usize {
        total(&self.segments[self.readable..])
    }
}

/// A place in a list of segments.
struct Cursor<'a> {
    memory: &'a Memory,
    segments: &'a [Segment],
    /// How many bytes of the first segment are behind.
    offset: u32,
    remaining: usize,
}

impl<'a> Cursor<'a> {
    fn new(memory: &'a Memory, segments: &'a [Segment]) -> Self {
        Self { memory, segments, offset: 0, remaining: total(segments) }
    }

    /// The next piece, at most `limit` bytes long.
    fn segment(&mut self, limit: usize) -> Option<Segment> {
        let (first, rest) = self.segments.split_first()?;
        let left = first.length - self.offset;
        let length = left.min(u32::try_from(limit).unwrap_or(u32::MAX));
        let segment = Segment { address: first.address + u64::from(self.offset), length };
        if length == left {
            self.segments = rest;
            self.offset = 0;
        } else {
            self.offset += length;
        }
        self.remaining -= length as usize;
        Some(segment)
    }

    fn segments(&mut self, length: usize) -> Option<Vec<Segment>> {
        if self.remaining < length {
            return None;
        }
        let mut left = length;
        let mut taken = Vec::with_capacity(self.segments.len());
        while left > 0 {
            let segment = self.segment(left)?;
            left -= segment.length as usize;
            taken.push(segment);
        }
        Some(taken)
    }

    /// Moves up to `length` bytes through `with`, which gets each piece and its place.
    fn each(
        &mut self,
        length: usize,
        mut with: impl FnMut(VolatileSlice<'a>, usize),
    ) -> Result<usize, Fault> {
        let length = length.min(self.remaining);
        let mut done = 0;
        while done < length {
            let Some(segment) = self.segment(length - done) else { break };
            with(slice(self.memory, segment)?, done);
            done += segment.length as usize;
        }
        Ok(done)
    }
}

fn slice(memory: &GuestMemoryMmap, segment: Segment) -> Result<VolatileSlice<'_>, Fault> {
    // A segment lies in one region; the error is for a memory that is not the one it was made from.
    let missing = Fault::Buffer { address: segment.address, length_bytes: segment.length };
    memory.get_slice(GuestAddress(segment.address), segment.length as usize).map_err(|_| missing)
}

fn io_buffers<'a>(memory: &'a GuestMemoryMmap, segments: &[Segment]) -> Result<Vec<IoBuffer<'a>>, Fault> {
    let buffer = |segment: &Segment| {
        let slice = slice(memory, *segment)?;
        // SAFETY: a volatile slice is mapped memory that lives as long as its borrow of the guest's memory,
        // and nobody makes Rust references to guest memory.
        Ok(unsafe { IoBuffer::new(slice.ptr_guard_mut().as_ptr(), slice.len()) })
    };
    segments.iter().map(buffer).collect()
}

/// Buffers that outlive a call: what an operation in flight owns.
#[derive(Clone, Debug)]
pub struct Buffers {
    memory: Memory,
    segments: Vec<Segment>,
}

impl Buffers {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        total(&self.segments)
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For a vectored system call.
    pub fn io(&self) -> Result<Vec<IoBuffer<'_>>, Fault> {
        io_buffers(&self.memory, &self.segments)
    }

    /// All but the first `count` bytes.
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        let mut cursor = Cursor::new(&self.memory, &self.segments);
        let _ = cursor.segments(count.min(cursor.remaining));
        let segments = cursor.segments(cursor.remaining).unwrap_or_default();
        Self { memory: Memory::clone(&self.memory), segments }
    }

    /// Copies `from` into the buffers, as far as there is room; returns how much.
    pub fn fill(&self, from: &[u8]) -> Result<usize, Fault> {
        let mut cursor = Cursor::new(&self.memory, &self.segments);
        cursor.each(from.len(), |piece, done| piece.copy_from(&from[done..done + piece.len()]))
    }

    /// Copies the buffers into `to`, as far as there is room; returns how much.
    pub fn copy_to(&self, to: &mut [u8]) -> Result<usize, Fault> {
        let mut cursor = Cursor::new(&self.memory, &self.segments);
        cursor.each(to.len(), |piece, done| {
            piece.copy_to(&mut to[done..done + piece.len()]);
        })
    }
}

/// Reads the device-readable part of a chain from front to back.
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Copies as many bytes as there are and as fit; returns how many.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, Fault> {
        self.0.each(to.len(), |piece, done| {
            piece.copy_to(&mut to[done..done + piece.len()]);
        })
    }

    /// Copies a header; `what` names it should the chain be too short.
    pub fn header<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut header = [0; N];
        if self.read(&mut header)? < N {
            return Err(Fault::Short(what));
        }
        Ok(header)
    }

    /// Takes the next `length` bytes as buffers that outlive this call; `None` when there are fewer.
    pub fn take(&mut self, length: usize) -> Option<Buffers> {
        let segments = self.0.segments(length)?;
        Some(Buffers { memory: Memory::clone(self.0.memory), segments })
    }

    /// All that is left, for a system call that is made at once.
    pub fn io(&mut self) -> Result<Vec<IoBuffer<'a>>, Fault> {
        let segments = self.0.segments(self.0.remaining).unwrap_or_default();
        io_buffers(self.0.memory, &segments)
    }
}

/// Writes the device-writable part of a chain from front to back.
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    total: usize,
}

impl<'a> Writer<'a> {
    /// How many bytes there is room for.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// How many bytes are behind: what the used ring is told.
    pub fn written(&self) -> u32 {
        // A chain is shorter than 4 GiB.
        (self.total - self.cursor.remaining) as u32
    }

    /// Writes as many bytes as there is room for; returns how many.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, Fault> {
        self.cursor.each(from.len(), |piece, done| piece.copy_from(&from[done..done + piece.len()]))
    }

    /// Writes all of `from`; `what` names it should the chain be too short.
    pub fn write_all(&mut self, from: &[u8], what: &'static str) -> Result<(), Fault> {
        if self.remaining() < from.len() {
            return Err(Fault::Short(what));
        }
        self.write(from).map(drop)
    }

    /// Takes room for the next `length` bytes as buffers that outlive this call; `None` when there is less.
    pub fn take(&mut self, length: usize) -> Option<Buffers> {
        let segments = self.cursor.segments(length)?;
        Some(Buffers { memory: Memory::clone(self.cursor.memory), segments })
    }

    /// The next `length` bytes, or what is left, for a system call that is made at once.
    pub fn io(&mut self, length: usize) -> Result<Vec<IoBuffer<'a>>, Fault> {
        let segments = self.cursor.segments(length.min(self.cursor.remaining)).unwrap_or_default();
        io_buffers(self.cursor.memory, &segments)
    }
}
