//! A disk that is a file or a block device, with plain system calls: each operation is done when
//! [`Disk::submit`] returns.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use moat_linux::iov::{self, IoBuffer};
use moat_linux::{Errno, Error as CallError};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use crate::virtio::Fault;
use crate::virtio::block::{Disk, Done, Operation};
use crate::virtio::chain::Buffers;
use crate::{Context, Error, Result};

/// Opens a disk's file, and claims it: many readers or one writer, among all that ask.
pub fn open_disk(path: &Path, read_only: bool) -> Result<File> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    // Non-blocking, for a name may be a FIFO, whose open would wait for ever.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map(File::from).map_err(|errno| {
        let error = Error::from(errno);
        match errno {
            Errno::ROFS | Errno::ACCESS | Errno::PERM if !read_only => {
                error.hint("a disk that can not be written may be attached read-only")
            }
            _ => error,
        }
    });
    let file = file?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(Error::new("it is neither a file nor a block device"));
    }
    // Again as usual: io_uring would give up on what can not be done at once.
    rustix::fs::fcntl_setfl(&file, access)?;
    let claim = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&file, claim) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::new("another machine uses it")
            .hint("several machines may share a disk that all attach read-only")),
        Err(errno) => Err(errno.into()),
    }
}

/// The disk.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size_bytes: u64,
    done: VecDeque<Done>,
}

impl FileDisk {
    /// A disk of the size that the file has now.
    pub fn new(mut file: File) -> Result<Self> {
        // A block device tells its size only so.
        let size_bytes = file.seek(SeekFrom::End(0)).context(|| "the size of a disk")?;
        Ok(Self { file, size_bytes, done: VecDeque::new() })
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        self.done.push_back(Done { tag, result: perform(&self.file, &operation) });
    }

    fn commit(&mut self) -> std::result::Result<(), Errno> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> std::result::Result<(), Errno> {
        Ok(())
    }
}

/// Does an operation from beginning to end.
pub(super) fn perform(file: &File, operation: &Operation) -> std::result::Result<(), Errno> {
    match operation {
        Operation::Read { offset_bytes, buffers } => {
            transfer(buffers, |parts, done| iov::read_at(file.as_fd(), parts, offset_bytes + done))
        }
        Operation::Write { offset_bytes, buffers, durable } => {
            transfer(buffers, |parts, done| iov::write_at(file.as_fd(), parts, offset_bytes + done))?;
            if *durable { rustix::fs::fdatasync(file) } else { Ok(()) }
        }
        Operation::Flush => rustix::fs::fdatasync(file),
        Operation::Discard { offset_bytes, length_bytes } => punch(file, *offset_bytes, *length_bytes),
        Operation::Zero { offset_bytes, length_bytes, unmap } => {
            zero(file, *offset_bytes, *length_bytes, *unmap)
        }
    }
}

fn transfer(
    buffers: &Buffers,
    mut call: impl FnMut(&[IoBuffer<'_>], u64) -> std::result::Result<usize, CallError>,
) -> std::result::Result<(), Errno> {
    let total = buffers.len();
    let mut done = 0;
    while done < total {
        let rest = buffers.skip(done);
        let parts = rest.io().map_err(|_: Fault| Errno::FAULT)?;
        match call(&parts, done as u64) {
            // The file has become shorter than it was.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(error) if error.errno() == Errno::INTR => {}
            Err(error) => return Err(error.errno()),
        }
    }
    Ok(())
}

fn punch(file: &File, offset: u64, length: u64) -> std::result::Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
}

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Zeroes by the cheapest way that the file system has.
fn zero(file: &File, offset: u64, length: u64, unmap: bool) -> std::result::Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    if unmap && punch(file, offset, length).is_ok() {
        return Ok(());
    }
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, length) {
        Err(Errno::OPNOTSUPP) => {}
        other => return other,
    }
    let mut done = 0;
    while done < length {
        let part = (length - done).min(ZEROES.len() as u64) as usize;
        done += rustix::io::pwrite(file, &ZEROES[..part], offset + done)? as u64;
    }
    Ok(())
}
