//! The few network calls of a sandbox: the loopback interface, moved devices, descriptors over sockets.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::{Error, Result, fd_name, named, syscall};

/// A connected pair of sequenced-packet sockets: messages keep their bounds, and end of file is seen.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    named(
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None),
        "socketpair",
        || "AF_UNIX, SOCK_SEQPACKET".to_owned(),
    )
}

/// Connects to a stream socket at `path`.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let text = || path.display().to_string();
    let address = named(SocketAddrUnix::new(path), "connect", text)?;
    let socket = named(
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None),
        "socket",
        || "AF_UNIX, SOCK_STREAM".to_owned(),
    )?;
    named(rustix::net::connect(&socket, &address), "connect", text)?;
    Ok(socket)
}

/// The address of a socket in a folder, however long the folder's path is: sockets' addresses have 108 bytes.
fn address_in(folder: BorrowedFd<'_>, name: &str, call: &'static str) -> Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    named(SocketAddrUnix::new(path), call, || format!("{}, {name}", fd_name(folder)))
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    named(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None), "socket", || {
        "AF_UNIX, SOCK_SEQPACKET".to_owned()
    })
}

/// A sequenced-packet socket `name` in a folder that listens and never blocks.
pub fn listen_in(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let text = || format!("{}, {name}", fd_name(folder));
    let address = address_in(folder, name, "bind")?;
    let socket = packet_socket()?;
    named(rustix::net::bind(&socket, &address), "bind", text)?;
    named(rustix::net::listen(&socket, 128), "listen", text)?;
    Ok(socket)
}

/// Connects to the sequenced-packet socket `name` in a folder. The socket blocks.
pub fn connect_in(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let text = || format!("{}, {name}", fd_name(folder));
    let address = address_in(folder, name, "connect")?;
    let socket = packet_socket()?;
    named(rustix::io::ioctl_fionbio(&socket, false), "ioctl", text)?;
    named(rustix::net::connect(&socket, &address), "connect", text)?;
    Ok(socket)
}

/// accept4(2) of a client that does not block; `None` when none waits.
pub fn accept(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => return Ok(Some(client)),
            Err(Errno::AGAIN) => return Ok(None),
            // Who gave up before being accepted is no error of ours.
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => return Err(Error::new("accept4", fd_name(listener), errno)),
        }
    }
}

/// sendmsg(2) of one packet from two parts, without waiting; false when there is no room for it now.
pub fn send_now(socket: BorrowedFd<'_>, head: &[u8], body: &[u8]) -> Result<bool> {
    let parts = [IoSlice::new(head), IoSlice::new(body)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::new(
                    "sendmsg",
                    format!("{}, {} bytes", fd_name(socket), body.len()),
                    errno,
                ));
            }
        }
    }
}

/// recv(2) of one packet without waiting: its length, 0 at the end; `None` when none is there.
pub fn receive_now(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<Option<usize>> {
    loop {
        match rustix::net::recv(socket, &mut *bytes, RecvFlags::DONTWAIT) {
            Ok((count, _)) => return Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::new("recvfrom", fd_name(socket), errno)),
        }
    }
}

/// A socket bound to `address`, for a transport protocol by its number: TCP (6), UDP (17), SCTP (132). It does
/// not listen; as long as it is open, nobody else can bind the port.
pub fn bind(address: SocketAddr, protocol: u8) -> Result<OwnedFd> {
    use rustix::net::sockopt;
    let text = || format!("{address}, protocol {protocol}");
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if protocol == 17 { SocketType::DGRAM } else { SocketType::STREAM };
    let number = std::num::NonZeroU32::new(protocol.into()).map(rustix::net::Protocol::from_raw);
    let socket = named(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, number), "socket", text)?;
    if address.is_ipv6() {
        named(sockopt::set_ipv6_v6only(&socket, true), "setsockopt", || format!("{}, IPV6_V6ONLY", text()))?;
    }
    // Connections of yesterday that still wait are no obstacle; other sockets are, once it is taken back.
    let reuse = |on| {
        let set = sockopt::set_socket_reuseaddr(&socket, on);
        named(set, "setsockopt", || format!("{}, SO_REUSEADDR {on}", text()))
    };
    let connections = protocol != 17;
    if connections {
        reuse(true)?;
    }
    named(rustix::net::bind(&socket, &address), "bind", text)?;
    if connections {
        reuse(false)?;
    }
    Ok(socket)
}

/// The most descriptors in one message.
const MAX_FDS: usize = 32;

/// sendmsg(2) of bytes and at most a few descriptors (SCM_RIGHTS).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::new("sendmsg", fd_name(socket), rustix::io::Errno::TOOBIG));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    named(sent, "sendmsg", || format!("{}, {} bytes", fd_name(socket), bytes.len())).map(drop)
}

/// recvmsg(2): the number of bytes and the descriptors that came with them. 0 bytes: end of file.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut parts = [std::io::IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::new("recvmsg", fd_name(socket), errno)),
            Ok(received) => {
                let fds = control
                    .drain()
                    .filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                return Ok((received.bytes, fds));
            }
        }
    }
}

/// Brings the loopback interface of this network namespace up: SIOCSIFFLAGS, netdevice(7).
pub fn bring_loopback_up() -> Result<()> {
    let socket = named(
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None),
        "socket",
        || "AF_UNIX, SOCK_DGRAM".to_owned(),
    )?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the structure that this request reads lives through the call.
    let returned = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    named(syscall(returned.into()), "ioctl", || "SIOCSIFFLAGS, lo, IFF_UP".to_owned()).map(drop)
}
