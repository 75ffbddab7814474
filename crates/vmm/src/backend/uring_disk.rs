//! A disk that is a file, through io_uring: operations run while the guest does.
//!
//! Every operation that the kernel works on stands in `running` with its buffers and the guest's memory, so
//! what it writes to is mapped until it has ended, whatever the guest or the device does meanwhile.
//!
//! A ring is a way around a filter of system calls: what it is asked for, the kernel does. So this one is
//! restricted, before its first entry, to the operations of a disk on the disk's own file.
#![allow(unsafe_code, reason = "gives the kernel addresses to work on later")]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use moat_linux::Errno;
use rustix::event::{EventfdFlags, eventfd};

use super::file_disk::{FileDisk, perform};
use crate::virtio::block::{Disk, Done, Operation};
use crate::{Context, Result};

/// Entries of the submission ring; a fuller one is handed over earlier.
const ENTRIES: u32 = 128;
/// The disk's file in the ring's table.
const FILE: types::Fixed = types::Fixed(0);

/// An operation that the kernel works on.
struct Running {
    operation: Operation,
    /// How many bytes of it are done.
    done: usize,
    /// What the kernel reads and writes; it looks at this list when it likes.
    parts: Vec<libc::iovec>,
}

// SAFETY: the addresses in `parts` are those of the buffers in `operation`, which may go to any thread.
unsafe impl Send for Running {}

/// The disk.
pub struct UringDisk {
    file: File,
    size_bytes: u64,
    ring: IoUring,
    event: OwnedFd,
    running: HashMap<u64, Running>,
    done: VecDeque<Done>,
}

impl UringDisk {
    /// A disk of the size that the file has now. Fails where io_uring is not allowed; then there is
    /// [`FileDisk`].
    pub fn new(file: File) -> Result<Self> {
        let what = || "io_uring for a disk";
        let plain = FileDisk::new(file.try_clone().context(what)?)?;
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(ENTRIES).context(what)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(what)?;
        let anew = open_anew(&file);
        ring.submitter().register_files(&[anew.as_ref().unwrap_or(&file).as_raw_fd()]).context(what)?;
        ring.submitter().register_eventfd(event.as_raw_fd()).context(what)?;
        ring.submitter().register_restrictions(&mut restrictions()).context(what)?;
        ring.submitter().register_enable_rings().context(what)?;
        let size_bytes = plain.size_bytes();
        Ok(Self { file, size_bytes, ring, event, running: HashMap::new(), done: VecDeque::new() })
    }

    /// Becomes readable when operations have ended. Edge-triggered: nobody needs to read it.
    pub fn event_fd(&self) -> &OwnedFd {
        &self.event
    }

    /// Puts what is left of an operation into the ring.
    fn push(&mut self, tag: u64, mut running: Running) {
        let entry = match entry(&mut running) {
            Ok(entry) => entry.user_data(tag),
            Err(errno) => {
                self.done.push_back(Done { tag, result: Err(errno) });
                return;
            }
        };
        if self.ring.submission().is_full()
            && let Err(error) = self.ring.submit()
        {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            self.done.push_back(Done { tag, result: Err(errno) });
            return;
        }
        self.running.insert(tag, running);
        // SAFETY: the entry's addresses lead to `parts` and to the guest's memory. Both live in `running`
        // until the kernel has told of the operation's end; moving a Vec does not move what it holds.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.running.remove(&tag);
            self.done.push_back(Done { tag, result: Err(Errno::BUSY) });
        }
    }

    /// An entry has ended with what its system call would have returned.
    fn ended(&mut self, tag: u64, returned: i32) {
        let Some(mut running) = self.running.remove(&tag) else { return };
        let result = match (&running.operation, returned) {
            // Interrupted before anything was done.
            (_, code) if code == -Errno::INTR.raw_os_error() || code == -Errno::AGAIN.raw_os_error() => {
                self.push(tag, running);
                return;
            }
            // This file system can not; there is a slower way.
            (Operation::Zero { .. }, code) if code == -Errno::OPNOTSUPP.raw_os_error() => {
                perform(&self.file, &running.operation)
            }
            (_, code) if code < 0 => Err(Errno::from_raw_os_error(-code)),
            (Operation::Read { buffers, .. } | Operation::Write { buffers, .. }, count) => {
                running.done += count as usize;
                if running.done < buffers.len() && count > 0 {
                    self.push(tag, running);
                    return;
                }
                // The file has become shorter than it was.
                if running.done == buffers.len() { Ok(()) } else { Err(Errno::IO) }
            }
            _ => Ok(()),
        };
        self.done.push_back(Done { tag, result });
    }

    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            self.ended(entry.user_data(), entry.result());
        }
    }
}

/// The same file, opened once more. The kernel closes a ring's file some time after the process has gone, and with it
/// goes a lock that was taken by the same opening: the next machine would find the disk in use. Where a file can not
/// be opened anew, that is so.
fn open_anew(file: &File) -> Option<File> {
    use rustix::fs::{Mode, OFlags, fcntl_getfl};
    let access = fcntl_getfl(file).ok()? & OFlags::RWMODE;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(name, access | OFlags::CLOEXEC, Mode::empty()).map(File::from).ok()
}

/// What the ring may be asked for: these operations, on the file in its table.
fn restrictions() -> [Restriction; 6] {
    [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_op(opcode::Nop::CODE),
        Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
    ]
}

fn entry(running: &mut Running) -> std::result::Result<Entry, Errno> {
    let place = |offset: &u64, done: usize| offset + done as u64;
    let entry = match &running.operation {
        Operation::Read { offset_bytes, buffers } => {
            running.parts = parts(&buffers.skip(running.done))?;
            opcode::Readv::new(FILE, running.parts.as_ptr(), running.parts.len() as u32)
                .offset(place(offset_bytes, running.done))
                .build()
        }
        Operation::Write { offset_bytes, buffers, durable } => {
            running.parts = parts(&buffers.skip(running.done))?;
            opcode::Writev::new(FILE, running.parts.as_ptr(), running.parts.len() as u32)
                .offset(place(offset_bytes, running.done))
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { offset_bytes, length_bytes } => {
            range(*offset_bytes, *length_bytes, libc::FALLOC_FL_PUNCH_HOLE)
        }
        Operation::Zero { offset_bytes, length_bytes, unmap } => {
            let mode = if *unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
            range(*offset_bytes, *length_bytes, mode)
        }
    };
    Ok(entry)
}

fn range(offset: u64, length: u64, mode: i32) -> Entry {
    if length == 0 {
        return opcode::Nop::new().build().flags(Flags::FIXED_FILE);
    }
    opcode::Fallocate::new(FILE, length).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
}

fn parts(buffers: &crate::virtio::chain::Buffers) -> std::result::Result<Vec<libc::iovec>, Errno> {
    let parts = buffers.io().map_err(|_| Errno::FAULT)?;
    Ok(parts.into_iter().take(moat_linux::iov::MAX_BUFFERS).map(|part| part.into_raw()).collect())
}

impl Disk for UringDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        if let Operation::Read { buffers, .. } | Operation::Write { buffers, .. } = &operation
            && buffers.is_empty()
        {
            self.done.push_back(Done { tag, result: Ok(()) });
            return;
        }
        self.push(tag, Running { operation, done: 0, parts: Vec::new() });
    }

    fn commit(&mut self) -> std::result::Result<(), Errno> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // What was not taken now is taken by the next call.
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                errno => Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }

    fn next_done(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            self.reap();
            // What was only half done is in the ring again. An error here is met again by the next call.
            let _ = self.commit();
        }
        self.done.pop_front()
    }

    fn wait(&mut self) -> std::result::Result<(), Errno> {
        if !self.done.is_empty() || self.running.is_empty() {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                errno => Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        // The kernel may write to the guest's memory and read `parts` until the last operation has ended.
        while !self.running.is_empty() {
            if self.wait().is_err() {
                // Nothing can be waited for: what the kernel may still use is better lost than freed.
                for (_, running) in self.running.drain() {
                    Box::leak(Box::new(running));
                }
                return;
            }
            while self.next_done().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an operation that no disk needs comes to, put into the ring as a program that was taken over would.
    fn asked(entry: &Entry) -> i32 {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let mut disk = UringDisk::new(file).unwrap();
        // SAFETY: the entries of these tests have paths that live for ever, or no addresses.
        unsafe { disk.ring.submission().push(entry) }.unwrap();
        disk.ring.submit_and_wait(1).unwrap();
        disk.ring.completion().next().unwrap().result()
    }

    #[test]
    fn the_ring_does_nothing_but_what_a_disk_needs() {
        let refused = -Errno::ACCESS.raw_os_error();
        let here = types::Fd(libc::AT_FDCWD);
        let path = c"/etc/passwd".as_ptr();
        assert_eq!(asked(&opcode::OpenAt::new(here, path).build()), refused);
        assert_eq!(asked(&opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()), refused);
        assert_eq!(asked(&opcode::UnlinkAt::new(here, c"/none".as_ptr()).build()), refused);
        // On a file that is not the disk's.
        assert_eq!(asked(&opcode::Fsync::new(types::Fd(2)).build()), refused);
        assert_eq!(asked(&opcode::Fsync::new(FILE).build()), 0);
    }
}
