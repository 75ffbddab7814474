//! Extended attributes of whatever a descriptor refers to, also one of O_PATH, also a symbolic link.
//!
//! The calls that take a descriptor refuse O_PATH; those that take a path are given the descriptor's entry in
//! /proc, which leads to the file itself and follows nothing.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::{Result, fd_name, named};

/// The longest list of names and the longest value, XATTR_LIST_MAX and XATTR_SIZE_MAX.
const MAX_BYTES: usize = 65536;

fn entry(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// listxattr(2): the names; none where the file system has no attributes.
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut buffer = vec![0_u8; 1024];
    loop {
        match rustix::fs::listxattr(entry(fd), &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(names(&buffer));
            }
            Err(Errno::RANGE) if buffer.len() < MAX_BYTES => buffer.resize(MAX_BYTES, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(errno) => return named(Err(errno), "listxattr", || fd_name(fd)),
        }
    }
}

fn names(list: &[u8]) -> Vec<CString> {
    let names = list.split_inclusive(|byte| *byte == 0);
    names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect()
}

/// getxattr(2); `None` when there is no such attribute.
pub fn get(fd: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0_u8; 1024];
    loop {
        match rustix::fs::getxattr(entry(fd), name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < MAX_BYTES => buffer.resize(MAX_BYTES, 0),
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(errno) => return named(Err(errno), "getxattr", || format!("{}, {name:?}", fd_name(fd))),
        }
    }
}

/// setxattr(2).
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    named(rustix::fs::setxattr(entry(fd), name, value, XattrFlags::empty()), "setxattr", || {
        format!("{}, {name:?}, {} bytes", fd_name(fd), value.len())
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::OFlags;

    use super::{get, list, set};
    use crate::fs;

    #[test]
    fn by_a_descriptor_that_can_only_name_the_file() {
        let path = std::env::temp_dir().join(format!("moat-xattr-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let fd = fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW).unwrap();
        assert_eq!(get(fd.as_fd(), c"user.moat").unwrap(), None);
        let long = vec![7; 3000];
        set(fd.as_fd(), c"user.moat", &long).unwrap();
        assert_eq!(get(fd.as_fd(), c"user.moat").unwrap(), Some(long));
        assert!(list(fd.as_fd()).unwrap().iter().any(|name| name.as_c_str() == c"user.moat"));
        std::fs::remove_file(&path).unwrap();
    }
}
