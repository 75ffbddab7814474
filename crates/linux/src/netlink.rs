//! Sockets to the kernel's messages, netlink(7): links, addresses and routes (rtnetlink(7)), and the
//! packet filter (nfnetlink).
//!
//! Here is the exchange only: a request goes out, its answers come in, and an error is printed as a call.
//! What stands in the messages is the business of the rooms above.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

use crate::{Errno, Error, Result, named, net};

/// Flags of a request, `linux/netlink.h`.
pub mod flag {
    /// It is a request.
    pub const REQUEST: u16 = 1;
    /// An answer is wanted that says how it went.
    pub const ACK: u16 = 4;
    /// All there is.
    pub const DUMP: u16 = 0x300;
    /// Replace what exists.
    pub const REPLACE: u16 = 0x100;
    /// Fail where it exists.
    pub const EXCL: u16 = 0x200;
    /// Make it where it does not exist.
    pub const CREATE: u16 = 0x400;
    /// At the end of a list.
    pub const APPEND: u16 = 0x800;
    /// Of an answer: what is listed changed meanwhile.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
}

const HEADER_BYTES: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
/// The bounds of an nfnetlink transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The kernel fills no more than this with one part of a listing.
const PART_BYTES: usize = 32 << 10;
/// A transaction is one message of the socket, however many requests it holds.
const SEND_BUFFER_BYTES: usize = 32 << 20;

/// The socket; it stays in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    name: &'static str,
    sequence: u32,
}

/// One answer: its kind, its flags, and what it holds.
#[derive(Debug)]
pub struct Answer {
    /// As in [`Request::kind`].
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// One request of a transaction.
#[derive(Clone, Debug)]
pub struct Request {
    /// Subsystem and message.
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// What an error says that it was about.
    pub what: String,
}

/// Why a transaction was refused: nothing of it holds.
#[derive(Debug)]
pub struct Refused {
    /// Which of the requests was refused first; `None`: all of them as such.
    pub index: Option<usize>,
    /// The call.
    pub error: Error,
}

impl Socket {
    /// A socket of NETLINK_ROUTE in the network namespace of this thread.
    pub fn route() -> Result<Self> {
        // The family's first protocol, which `None` stands for.
        Self::open(None, "rtnetlink")
    }

    /// A socket of NETLINK_NETFILTER in the network namespace of this thread.
    pub fn netfilter() -> Result<Self> {
        let socket = Self::open(Some(NETFILTER), "nfnetlink")?;
        // Beyond the limit of ordinary users, which needs CAP_NET_ADMIN as all else here does.
        let set = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket.fd, SEND_BUFFER_BYTES);
        named(set, "setsockopt", || format!("nfnetlink, SO_SNDBUFFORCE, {SEND_BUFFER_BYTES}"))?;
        Ok(socket)
    }

    fn open(protocol: Option<Protocol>, name: &'static str) -> Result<Self> {
        let opened =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        let fd = named(opened, "socket", || format!("AF_NETLINK, SOCK_RAW, {name}"))?;
        Ok(Self { fd, name, sequence: 0 })
    }

    /// A listing, anew when something changed while it was made: what the answers of kind `answer` hold.
    pub fn list(&mut self, ask: u16, answer: u16, request: &[u8], what: &str) -> Result<Vec<Vec<u8>>> {
        loop {
            let answers = self.exchange(ask, flag::DUMP, request, what)?;
            if answers.iter().all(|one| one.flags & flag::DUMP_INTERRUPTED == 0) {
                return Ok(answers
                    .into_iter()
                    .filter(|one| one.kind == answer)
                    .map(|one| one.payload)
                    .collect());
            }
        }
    }

    /// Sends a request with `flags` beside REQUEST, and gives the answers when the last one has come. The flags
    /// must ask for a last one: ACK or DUMP.
    ///
    /// Errors print as a call of the socket with `what` as its arguments.
    pub fn exchange(&mut self, kind: u16, flags: u16, payload: &[u8], what: &str) -> Result<Vec<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(HEADER_BYTES + payload.len());
        put(&mut request, kind, flags | flag::REQUEST, self.sequence, payload);
        net::send(self.fd.as_fd(), &request, &[])?;
        let mut answers = Vec::new();
        loop {
            for message in self.receive()? {
                if message.sequence != self.sequence {
                    continue;
                }
                if let Some(code) = message.code {
                    return match code {
                        0 => Ok(answers),
                        code => Err(self.error(code, what)),
                    };
                }
                answers.push(message.answer);
            }
        }
    }

    /// One transaction of nfnetlink: all requests hold, or none does.
    pub fn transact(&mut self, subsystem: u8, requests: &[Request]) -> std::result::Result<(), Refused> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let as_such = |error| Refused { index: None, error };
        let begin = self.sequence.wrapping_add(1);
        self.sequence = begin;
        // struct nfgenmsg: family, version, and the subsystem in network order.
        let bound = [0, 0, 0, subsystem];
        let mut bytes = Vec::new();
        put(&mut bytes, BATCH_BEGIN, flag::REQUEST, begin, &bound);
        for (index, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // The kernel answers all that fail; the last one says that there is no more to come.
            let ack = if index == last { flag::ACK } else { 0 };
            put(
                &mut bytes,
                request.kind,
                request.flags | flag::REQUEST | ack,
                self.sequence,
                &request.payload,
            );
        }
        let end = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        put(&mut bytes, BATCH_END, flag::REQUEST, self.sequence, &bound);
        net::send(self.fd.as_fd(), &bytes, &[]).map_err(as_such)?;
        let mut refused = None;
        loop {
            for message in self.receive().map_err(as_such)? {
                let offset = message.sequence.wrapping_sub(begin);
                let Some(code) = message.code else { continue };
                if offset as usize > requests.len() {
                    continue;
                }
                if offset == 0 && code != 0 {
                    return Err(as_such(self.error(code, "transaction")));
                }
                let index = (offset as usize).wrapping_sub(1);
                if let (Some(request), true) = (requests.get(index), code != 0 && refused.is_none()) {
                    refused = Some(Refused { index: Some(index), error: self.error(code, &request.what) });
                }
                if message.sequence == end {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn receive(&self) -> Result<Vec<Message>> {
        let mut part = vec![0; PART_BYTES];
        let (count, _) = net::receive(self.fd.as_fd(), &mut part)?;
        let mut rest = part.get(..count).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let cut_off = || Error::new(self.name, "an answer that is cut off", Errno::BADMSG);
            let (message, after) = Message::parse(rest).ok_or_else(cut_off)?;
            messages.push(message);
            rest = after;
        }
        Ok(messages)
    }

    fn error(&self, code: i32, what: &str) -> Error {
        Error::new(self.name, what, Errno::from_raw_os_error(code.saturating_neg()))
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    bytes.extend(((HEADER_BYTES + payload.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The sender: the kernel fills it in.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

struct Message {
    sequence: u32,
    /// The last one of an exchange: 0, or a negative error number.
    code: Option<i32>,
    answer: Answer,
}

impl Message {
    /// The first message of `bytes`, and what follows it.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let header = bytes.get(..HEADER_BYTES)?;
        let payload = bytes.get(HEADER_BYTES..length)?;
        let short =
            |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).map(|two| u16::from_ne_bytes(*two));
        let (kind, flags) = (short(4)?, short(6)?);
        let sequence = u32::from_ne_bytes(*header.get(8..)?.first_chunk()?);
        let code = match kind {
            KIND_ERROR => Some(i32::from_ne_bytes(*payload.first_chunk()?)),
            // Old kernels end a listing without a code.
            KIND_DONE => Some(payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code))),
            _ => None,
        };
        let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { sequence, code, answer: Answer { kind, flags, payload: payload.to_vec() } }, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_one_after_another() {
        let mut bytes = Vec::new();
        put(&mut bytes, 99, flag::ACK, 7, &[1, 2, 3, 4, 5]);
        put(&mut bytes, KIND_ERROR, 0, 8, &(-17_i32).to_ne_bytes());
        let (first, rest) = Message::parse(&bytes).unwrap();
        assert_eq!((first.sequence, first.code, first.answer.kind), (7, None, 99));
        assert_eq!(first.answer.payload, [1, 2, 3, 4, 5]);
        let (second, rest) = Message::parse(rest).unwrap();
        assert_eq!((second.sequence, second.code, rest.len()), (8, Some(-17), 0));
        for cut in 0..21 {
            assert!(Message::parse(&bytes[..cut]).is_none(), "{cut}");
        }
        // A length that is smaller than the header.
        bytes[0] = 3;
        assert!(Message::parse(&bytes).is_none());
    }

    #[test]
    fn an_error_names_the_request() {
        let mut socket = Socket::route().unwrap();
        // RTM_GETLINK of a device that does not exist.
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = socket.exchange(18, flag::ACK, &payload, "RTM_GETLINK, index 2147483647").unwrap_err();
        assert_eq!(error.to_string(), "rtnetlink(RTM_GETLINK, index 2147483647): ENODEV");
    }
}
