//! What is said on the attach socket of a workload, between its monitor and whoever attaches, waits or stops it.
//!
//! The socket keeps the bounds of packets (SOCK_SEQPACKET). The first byte of a packet says what it is; the first
//! packet of a client is a [`Request`]. Both sides are processes of the same user, in a folder of mode 0700; a
//! packet that does not fit is an error all the same, never a panic.

use serde::{Deserialize, Serialize};

use crate::ExitStatus;

/// The most bytes of a stream in one packet.
pub const MAX_DATA: usize = 32 << 10;

/// The most bytes of any packet.
pub const MAX_PACKET: usize = MAX_DATA + 1;

const REQUEST: u8 = b'?';
const STDIN: u8 = b'i';
const STDIN_END: u8 = b'e';
const RESIZE: u8 = b'r';
const STDOUT: u8 = b'1';
const STDERR: u8 = b'2';
const STARTED: u8 = b's';
const FAILED: u8 = b'f';
const DONE: u8 = b'd';
const EXIT: u8 = b'x';

/// Which of its two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all that a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// 0 or 1.
    pub fn index(self) -> usize {
        usize::from(self == Self::Stderr)
    }
}

/// What a client wants, said once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The streams from now on, and the end.
    Attach {
        /// Its packets of input are taken.
        stdin: bool,
        /// It gets the output.
        stdout: bool,
        /// It gets the error output.
        stderr: bool,
    },
    /// The next end.
    Wait,
    /// A signal, and after `timeout_ms` SIGKILL; then the end.
    Stop {
        /// The signal that asks it to end.
        signal: i32,
        /// `None` waits for ever.
        timeout_ms: Option<u64>,
        /// It is started again: the restart policy and auto-remove stay out of it.
        restarting: bool,
    },
    /// A signal.
    Signal {
        /// Its number.
        number: i32,
        /// The user means it to end: the restart policy does not start it again.
        ends: bool,
    },
    /// The size of the terminal.
    Resize {
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        columns: u16,
    },
}

/// Its program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedPacket {
    /// Its process, as the monitor sees it.
    pub pid: i32,
    /// What was done otherwise than asked, a sentence each.
    pub warnings: Vec<String>,
    /// The waterfall of `--explain`.
    pub waterfall: Option<String>,
}

/// A packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    /// Client to monitor, first.
    Request(Request),
    /// Client to monitor: input.
    Stdin(&'a [u8]),
    /// Client to monitor: there is no more input.
    StdinEnd,
    /// Client to monitor: rows and columns of the terminal.
    Resize(u16, u16),
    /// Monitor to client: output.
    Output(Stream, &'a [u8]),
    /// Monitor to whoever started it: the program runs.
    Started(StartedPacket),
    /// Monitor to client: it could not be done.
    Failed(crate::Error),
    /// Monitor to client: it is done, or the client is attached.
    Done,
    /// Monitor to client: the end.
    Exit(ExitStatus),
}

impl Packet<'_> {
    /// The bytes that are sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Request(request) => fitting(REQUEST, |_| request.clone()),
            Self::Stdin(data) => tagged(STDIN, data),
            Self::StdinEnd => vec![STDIN_END],
            Self::Resize(rows, columns) => {
                tagged(RESIZE, &[rows.to_le_bytes(), columns.to_le_bytes()].concat())
            }
            Self::Output(Stream::Stdout, data) => tagged(STDOUT, data),
            Self::Output(Stream::Stderr, data) => tagged(STDERR, data),
            Self::Started(started) => fitting(STARTED, |limit| started.within(limit)),
            Self::Failed(error) => fitting(FAILED, |limit| error.within(limit)),
            Self::Done => vec![DONE],
            Self::Exit(status) => fitting(EXIT, |limit| ExitStatus {
                error: status.error.as_deref().map(|error| cut(error, limit).to_owned()),
                ..*status
            }),
        }
    }
}

impl<'a> Packet<'a> {
    /// Reads a packet; `None` for one that is none.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        match *tag {
            REQUEST => serde_json::from_slice(rest).ok().map(Self::Request),
            STDIN => Some(Self::Stdin(rest)),
            STDIN_END if rest.is_empty() => Some(Self::StdinEnd),
            RESIZE => match rest {
                [r0, r1, c0, c1] => {
                    Some(Self::Resize(u16::from_le_bytes([*r0, *r1]), u16::from_le_bytes([*c0, *c1])))
                }
                _ => None,
            },
            STDOUT => Some(Self::Output(Stream::Stdout, rest)),
            STDERR => Some(Self::Output(Stream::Stderr, rest)),
            STARTED => serde_json::from_slice(rest).ok().map(Self::Started),
            FAILED => serde_json::from_slice(rest).ok().map(Self::Failed),
            DONE if rest.is_empty() => Some(Self::Done),
            EXIT => serde_json::from_slice(rest).ok().map(Self::Exit),
            _ => None,
        }
    }
}

/// The tag of packets of a stream's bytes, which are sent from the buffer that they were read into.
pub fn output_tag(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    }
}

fn tagged(tag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(tag);
    bytes.extend_from_slice(data);
    bytes
}

impl StartedPacket {
    /// With no text longer than `limit` bytes.
    fn within(&self, limit: usize) -> Self {
        Self {
            pid: self.pid,
            warnings: self
                .warnings
                .iter()
                .take(limit)
                .map(|warning| cut(warning, limit).to_owned())
                .collect(),
            waterfall: self.waterfall.as_deref().map(|waterfall| cut(waterfall, limit).to_owned()),
        }
    }
}

/// A packet of JSON. `value` gives it with no text longer than a number of bytes: when the whole is too long for a
/// packet, texts are cut and the kind of the packet is kept, so that whoever waits for it hears it.
fn fitting<T: Serialize>(tag: u8, value: impl Fn(usize) -> T) -> Vec<u8> {
    let mut limit = usize::MAX;
    loop {
        let mut bytes = vec![tag];
        let written = serde_json::to_writer(&mut bytes, &value(limit));
        if written.is_ok() && bytes.len() <= MAX_PACKET {
            return bytes;
        }
        if limit == 0 {
            return vec![tag];
        }
        limit = limit.min(2 * MAX_PACKET) / 2;
    }
}

/// The beginning of a text, at most `limit` bytes.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        let packets = [
            Packet::Request(Request::Attach { stdin: true, stdout: true, stderr: false }),
            Packet::Request(Request::Stop { signal: 15, timeout_ms: Some(10_000), restarting: false }),
            Packet::Request(Request::Wait),
            Packet::Stdin(b"ls\n"),
            Packet::StdinEnd,
            Packet::Resize(24, 80),
            Packet::Output(Stream::Stdout, b""),
            Packet::Output(Stream::Stderr, &[0, 255]),
            Packet::Started(StartedPacket { pid: 7, warnings: vec!["w".into()], waterfall: None }),
            Packet::Failed(crate::Error::not_found("x").hint("y")),
            Packet::Done,
            Packet::Exit(ExitStatus { code: 137, oom_killed: true, error: None }),
        ];
        for packet in packets {
            let bytes = packet.encode();
            assert_eq!(Packet::decode(&bytes), Some(packet));
        }
    }

    #[test]
    fn what_is_too_long_for_a_packet_is_cut_and_keeps_its_kind() {
        let long = "\u{7}ä".repeat(MAX_PACKET);
        let started =
            StartedPacket { pid: 7, warnings: vec![long.clone(); 9], waterfall: Some(long.clone()) };
        for packet in [
            Packet::Started(started),
            Packet::Failed(crate::Error::not_found(long.clone()).hint(long.clone())),
            Packet::Exit(ExitStatus { code: 1, oom_killed: false, error: Some(long) }),
        ] {
            let bytes = packet.encode();
            assert!(bytes.len() <= MAX_PACKET, "{}", bytes.len());
            let found = Packet::decode(&bytes).expect("a packet");
            assert_eq!(std::mem::discriminant(&found), std::mem::discriminant(&packet));
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.len() > 1000 && text.contains('ä'), "some of it is left: {text:.100}");
        }
    }

    #[test]
    fn what_is_no_packet_is_none() {
        for bytes in [&b""[..], b"z", b"?", b"?{}", b"r123", b"r12345", b"e1", b"d ", b"x[]", b"f"] {
            assert_eq!(Packet::decode(bytes), None, "{bytes:?}");
        }
    }
}
