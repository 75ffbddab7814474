//! Sockets between a guest and its host, vsock(7).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{Result, fd_name, named, syscall};

/// The host, as a guest calls it.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: the structure is plain integers, for which zeroes are valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket(flags: i32) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags;
    // SAFETY: the call takes numbers only.
    let returned = unsafe { libc::syscall(libc::SYS_socket, libc::AF_VSOCK, kind, 0) };
    let number = named(syscall(returned), "socket", || "AF_VSOCK, SOCK_STREAM".to_owned())?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

const LENGTH: usize = size_of::<libc::sockaddr_vm>();

/// A socket that accepts connections to `port`; it is non-blocking.
pub fn listen(port: u32) -> Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is valid for the length that is given.
    let returned = unsafe { libc::syscall(libc::SYS_bind, socket.as_raw_fd(), &raw const address, LENGTH) };
    named(syscall(returned), "bind", || format!("AF_VSOCK, port {port}"))?;
    // SAFETY: the call takes numbers only.
    let returned = unsafe { libc::syscall(libc::SYS_listen, socket.as_raw_fd(), 128) };
    named(syscall(returned), "listen", || format!("AF_VSOCK, port {port}"))?;
    Ok(socket)
}

/// The next connection of a listening socket, non-blocking as well. Errors: EAGAIN when there is none.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    named(rustix::net::accept_with(listener, flags), "accept4", || fd_name(listener))
}

/// A connection to `port` of `cid`.
pub fn connect(cid: u32, port: u32) -> Result<OwnedFd> {
    let socket = socket(0)?;
    let address = address(cid, port);
    // SAFETY: the address is valid for the length that is given.
    let returned =
        unsafe { libc::syscall(libc::SYS_connect, socket.as_raw_fd(), &raw const address, LENGTH) };
    named(syscall(returned), "connect", || format!("AF_VSOCK, cid {cid}, port {port}"))?;
    Ok(socket)
}
