//! Tap devices: a network interface of the host whose other end is a file descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;

use crate::{Errno, Error, Result, fd_name, named, syscall};

/// Offloads that the reader of a tap can do (TUN_F_*), as a set of bits.
pub mod offload {
    /// Packets without checksum.
    pub const CHECKSUM: u32 = libc::TUN_F_CSUM;
    /// TCP over IPv4, larger than the MTU.
    pub const TSO4: u32 = libc::TUN_F_TSO4;
    /// TCP over IPv6, larger than the MTU.
    pub const TSO6: u32 = libc::TUN_F_TSO6;
    /// Such with congestion marks.
    pub const TSO_ECN: u32 = libc::TUN_F_TSO_ECN;
}

/// The longest name of an interface in bytes.
pub const NAME_BYTES: usize = libc::IFNAMSIZ - 1;

fn ioctl<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: *mut T,
    args: impl Fn() -> String,
) -> Result<()> {
    // SAFETY: callers give a request and a live object of the type that it reads and writes.
    let returned = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    named(syscall(returned.into()), "ioctl", || format!("{}, {}", fd_name(fd), args())).map(drop)
}

fn interface(name: &str, flags: libc::c_int) -> Result<libc::ifreq> {
    let bad =
        name.is_empty() || name.len() > NAME_BYTES || name.bytes().any(|byte| byte == 0 || byte == b'/');
    if bad {
        return Err(Error::new("ioctl", format!("TUNSETIFF, {name:?}"), Errno::INVAL));
    }
    // SAFETY: zero is a value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}

/// Opens one queue of the tap `name`, non-blocking; makes the tap if there is none. Each packet has a virtio
/// header of `header_bytes` in front. With `many`, the tap can be opened again, for its next queue.
pub fn open(name: &str, many: bool, header_bytes: u8) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = crate::fs::open_at(rustix::fs::CWD, Path::new("/dev/net/tun"), flags, 0)?;
    let many = if many { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = interface(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many)?;
    ioctl(tap.as_fd(), libc::TUNSETIFF, &raw mut request, || format!("TUNSETIFF, {name:?}"))?;
    let mut size = libc::c_int::from(header_bytes);
    ioctl(tap.as_fd(), libc::TUNSETVNETHDRSZ, &raw mut size, || format!("TUNSETVNETHDRSZ, {header_bytes}"))?;
    Ok(tap)
}

/// Lets a tap outlive its last descriptor, or not.
pub fn set_persistent(tap: BorrowedFd<'_>, persistent: bool) -> Result<()> {
    let persistent = usize::from(persistent);
    let args = || format!("TUNSETPERSIST, {persistent}");
    // The argument is the value, not an address.
    ioctl(tap, libc::TUNSETPERSIST, std::ptr::without_provenance_mut::<libc::c_void>(persistent), args)
}

/// Says which packets the reader can take as they are.
pub fn set_offloads(tap: BorrowedFd<'_>, offloads: u32) -> Result<()> {
    let args = || format!("TUNSETOFFLOAD, {offloads:#x}");
    let value = std::ptr::without_provenance_mut::<libc::c_void>(offloads as usize);
    ioctl(tap, libc::TUNSETOFFLOAD, value, args)
}

/// Attaches or detaches one queue of a tap with many; a detached one gets no packets.
pub fn set_attached(tap: BorrowedFd<'_>, attached: bool) -> Result<()> {
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    // SAFETY: zero is a value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl(tap, libc::TUNSETQUEUE, &raw mut request, || format!("TUNSETQUEUE, {flags:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_not_be_one_is_refused() {
        for name in ["", "a/b", "0123456789abcdef", "nul\0"] {
            let error = open(name, false, 12).unwrap_err();
            assert!(error.errno() == Errno::INVAL && error.to_string().contains("TUNSETIFF"), "{error}");
        }
    }
}
