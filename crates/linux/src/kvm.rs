//! KVM's binary statistics, which a VM and each virtual processor give through a descriptor of their own.
//!
//! The descriptor's first bytes describe it: how many values there are, what each is called and where it
//! lies. That part never changes, so it is read once.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::{Error, Result, fd_name, named, syscall};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// `struct kvm_stats_header`.
const HEADER_BYTES: usize = 24;
/// `struct kvm_stats_desc` without the name.
const DESCRIPTION_BYTES: usize = 16;
/// More than any kernel gives; a wild number is refused.
const MOST: u32 = 4096;

/// One value, or the buckets of a histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// KVM's name of it, such as `exits`.
    pub name: String,
    /// The values, in KVM's unit.
    pub values: Vec<u64>,
}

#[derive(Debug)]
struct Description {
    name: String,
    offset: u64,
    count: usize,
}

/// The statistics of one VM or one virtual processor.
#[derive(Debug)]
pub struct Statistics {
    file: File,
    descriptions: Vec<Description>,
}

impl Statistics {
    /// Opens the statistics of a VM's or a virtual processor's descriptor.
    ///
    /// Errors: ENOTTY where the kernel has none (before Linux 5.14).
    pub fn open(object: BorrowedFd<'_>) -> Result<Self> {
        // SAFETY: the call takes no argument and gives a new descriptor.
        let fd = syscall(unsafe { libc::ioctl(object.as_raw_fd(), KVM_GET_STATS_FD as _, 0) }.into());
        let fd = named(fd, "ioctl", || format!("{}, KVM_GET_STATS_FD", fd_name(object)))?;
        // SAFETY: the kernel has just given this descriptor to nobody else.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
        let descriptions = describe(&file)?;
        Ok(Self { file, descriptions })
    }

    /// Reads all values as they are now.
    pub fn read(&self) -> Result<Vec<Statistic>> {
        let mut all = Vec::with_capacity(self.descriptions.len());
        for Description { name, offset, count } in &self.descriptions {
            let mut bytes = vec![0; count * 8];
            read(&self.file, &mut bytes, *offset)?;
            let values = bytes.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).collect();
            all.push(Statistic { name: name.clone(), values });
        }
        Ok(all)
    }

    /// The first value of the statistic of this name; `None` when this kernel has none such.
    pub fn value(&self, name: &str) -> Result<Option<u64>> {
        let Some(found) = self.descriptions.iter().find(|description| description.name == name) else {
            return Ok(None);
        };
        let mut bytes = [0; 8];
        read(&self.file, &mut bytes, found.offset)?;
        Ok(Some(u64::from_ne_bytes(bytes)))
    }
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Error::new("pread64", format!("{}, {} bytes, {offset}", fd_name(file.as_fd()), bytes.len()), errno)
    })
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_ne_bytes)
}

/// Reads what does not change. The kernel's own numbers are checked only so far that none is absurd.
fn describe(file: &File) -> Result<Vec<Description>> {
    let absurd = |what: &str| Error::new("pread64", format!("KVM statistics, {what}"), Errno::BADMSG);
    let mut header = [0; HEADER_BYTES];
    read(file, &mut header, 0)?;
    let (name_bytes, count) = (number(&header, 4) as usize, number(&header, 8));
    let (table, data) = (u64::from(number(&header, 16)), u64::from(number(&header, 20)));
    if count > MOST || name_bytes > 256 {
        return Err(absurd("the header"));
    }
    let size = DESCRIPTION_BYTES + name_bytes;
    let mut bytes = vec![0; size * count as usize];
    read(file, &mut bytes, table)?;
    let mut descriptions = Vec::new();
    for one in bytes.chunks_exact(size) {
        // After the flags come two halves: the exponent and how many values there are.
        let count = usize::from((number(one, 4) >> 16) as u16);
        let name = one.get(DESCRIPTION_BYTES..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        descriptions.push(Description {
            name: String::from_utf8_lossy(name).into_owned(),
            offset: data + u64::from(number(one, 8)),
            count,
        });
    }
    Ok(descriptions)
}
