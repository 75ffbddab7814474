//! Vectored input and output on memory that somebody else may change meanwhile.
//!
//! A guest's buffer is not a Rust slice: the guest writes to it whenever it likes. The kernel does not mind,
//! so such a buffer goes to it as address and length, and no reference to its bytes ever exists here.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{Result, fd_name, named, syscall};

/// The most buffers that one call takes (UIO_MAXIOV).
pub const MAX_BUFFERS: usize = 1024;

/// A piece of memory that the kernel may read and write for as long as `'a`: a `struct iovec`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoBuffer<'a> {
    raw: libc::iovec,
    memory: PhantomData<&'a ()>,
}

impl std::fmt::Debug for IoBuffer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:p}", self.raw.iov_len, self.raw.iov_base)
    }
}

impl<'a> IoBuffer<'a> {
    /// Memory that is shared with somebody else.
    ///
    /// # Safety
    ///
    /// `length_bytes` bytes from `start` on must be mapped, readable and writable, throughout `'a`, and no
    /// Rust reference to them may exist meanwhile.
    pub unsafe fn new(start: *mut u8, length_bytes: usize) -> Self {
        Self { raw: libc::iovec { iov_base: start.cast(), iov_len: length_bytes }, memory: PhantomData }
    }

    /// A buffer of one's own.
    pub fn from_slice(bytes: &'a mut [u8]) -> Self {
        let raw = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        Self { raw, memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.raw.iov_len == 0
    }

    /// The kernel's own form, for calls that are made elsewhere; the promise of `'a` becomes the caller's.
    pub fn into_raw(self) -> libc::iovec {
        self.raw
    }
}

fn args(fd: BorrowedFd<'_>, buffers: &[IoBuffer<'_>], offset_bytes: Option<u64>) -> String {
    let total: usize = buffers.iter().map(IoBuffer::len).sum();
    let offset = offset_bytes.map(|offset| format!(", {offset}")).unwrap_or_default();
    format!("{}, {total} bytes in {} parts{offset}", fd_name(fd), buffers.len())
}

fn parts(buffers: &[IoBuffer<'_>]) -> (*const libc::iovec, libc::c_int) {
    // Longer lists are cut, which the caller sees as a short read or write.
    (buffers.as_ptr().cast(), buffers.len().min(MAX_BUFFERS) as libc::c_int)
}

/// Reads into `buffers` in turn; returns how many bytes came.
pub fn read(fd: BorrowedFd<'_>, buffers: &[IoBuffer<'_>]) -> Result<usize> {
    let (start, count) = parts(buffers);
    // SAFETY: an IoBuffer is a transparent iovec, and each is valid for the length of this call.
    let done = unsafe { libc::readv(fd.as_raw_fd(), start, count) };
    named(syscall(done as libc::c_long), "readv", || args(fd, buffers, None)).map(|done| done as usize)
}

/// Writes `buffers` in turn; returns how many bytes went.
pub fn write(fd: BorrowedFd<'_>, buffers: &[IoBuffer<'_>]) -> Result<usize> {
    let (start, count) = parts(buffers);
    // SAFETY: as above.
    let done = unsafe { libc::writev(fd.as_raw_fd(), start, count) };
    named(syscall(done as libc::c_long), "writev", || args(fd, buffers, None)).map(|done| done as usize)
}

/// Reads from an offset of a file; returns how many bytes came, 0 at its end.
pub fn read_at(fd: BorrowedFd<'_>, buffers: &[IoBuffer<'_>], offset_bytes: u64) -> Result<usize> {
    let (start, count) = parts(buffers);
    // SAFETY: as above.
    let done = unsafe { libc::preadv(fd.as_raw_fd(), start, count, offset_bytes as libc::off_t) };
    named(syscall(done as libc::c_long), "preadv", || args(fd, buffers, Some(offset_bytes)))
        .map(|done| done as usize)
}

/// Writes to an offset of a file; returns how many bytes went.
pub fn write_at(fd: BorrowedFd<'_>, buffers: &[IoBuffer<'_>], offset_bytes: u64) -> Result<usize> {
    let (start, count) = parts(buffers);
    // SAFETY: as above.
    let done = unsafe { libc::pwritev(fd.as_raw_fd(), start, count, offset_bytes as libc::off_t) };
    named(syscall(done as libc::c_long), "pwritev", || args(fd, buffers, Some(offset_bytes)))
        .map(|done| done as usize)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn parts_are_filled_in_turn() {
        let mut file = crate::fs::memfd("parts").unwrap();
        file.write_all(b"abcdefgh").unwrap();
        let (mut first, mut second) = ([0; 3], [0; 9]);
        let buffers = [IoBuffer::from_slice(&mut first), IoBuffer::from_slice(&mut second)];
        assert_eq!(read_at(file.as_fd(), &buffers, 1).unwrap(), 7);
        assert_eq!((&first, &second[..4]), (b"bcd", &b"efgh"[..]));
        let buffers = [IoBuffer::from_slice(&mut first)];
        assert_eq!(write_at(file.as_fd(), &buffers, 5).unwrap(), 3);
        assert_eq!(read_at(file.as_fd(), &buffers, 8).unwrap(), 0);
    }

    #[test]
    fn an_error_names_file_and_size() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut bytes = [0; 5];
        let error = write(reader.as_fd(), &[IoBuffer::from_slice(&mut bytes)]).unwrap_err().to_string();
        assert!(error.starts_with("writev({") && error.ends_with("5 bytes in 1 parts): EBADF"), "{error}");
    }
}
