//! What the host and the agent in a guest say to each other.
//!
//! The agent listens on [`PORT`] of its vsock; when it does, it connects once to [`READY_PORT`] of the host and
//! closes that connection, so that nobody has to poll. The host opens a connection for each question:
//!
//! ```text
//! host -> guest   one frame, a Request
//! guest -> host   one frame, an Answer; of Wait, when the process has ended
//! then            Attach goes on with the bytes of the stream until one side closes
//! ```
//!
//! A frame is its length as 32 bits, least significant byte first, and so many bytes of JSON. Neither side trusts
//! the other: a length beyond [`MAX_FRAME_BYTES`] or text that is no such value ends the connection.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::oci;

/// Where the agent listens, in the guest.
pub const PORT: u32 = 1024;
/// Where the host listens for the agent to be ready.
pub const READY_PORT: u32 = 1025;
/// The longest frame. An OCI configuration is the largest value, and runc's shim allows no more either.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Bytes of a frame's length.
pub const FRAME_HEADER_BYTES: usize = 4;

/// Why bytes are no frame.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length is beyond [`MAX_FRAME_BYTES`].
    TooLong(usize),
    /// The text is not a value of the type that was expected.
    Malformed(String),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes is longer than {MAX_FRAME_BYTES}"),
            Self::Malformed(why) => write!(f, "a frame that is not understood: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A value as a frame.
///
/// Errors: it does not fit into one.
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    serde_json::to_writer(&mut frame, value).map_err(|error| FrameError::Malformed(error.to_string()))?;
    let length = frame.len() - FRAME_HEADER_BYTES;
    match u32::try_from(length) {
        Ok(header) if length <= MAX_FRAME_BYTES => {
            frame.splice(..FRAME_HEADER_BYTES, header.to_le_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::TooLong(length)),
    }
}

/// The first value of `bytes` and how many bytes it took; `None` while bytes are missing.
///
/// Errors: what came is no frame, and more bytes make it none.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let Some(text) = rest.get(..length) else { return Ok(None) };
    let value = serde_json::from_slice(text).map_err(|error| FrameError::Malformed(error.to_string()))?;
    Ok(Some((value, FRAME_HEADER_BYTES + length)))
}

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Makes the machine this workload's: identity, clock, network, root file system. Once, before all others.
    Configure(Box<GuestSpec>),
    /// Builds the container and runs its program. What it writes waits for who attaches.
    Create(Box<CreateSpec>),
    /// Runs a further process in the container.
    Exec(Box<ExecSpec>),
    /// The bytes that follow are a stream of a process; for a terminal in both directions.
    Attach {
        /// As `Created` said.
        process: u32,
        /// Which.
        stream: Stream,
    },
    /// Answered when the process has ended; also after that.
    Wait {
        /// As `Created` said.
        process: u32,
    },
    /// Sends a signal.
    Signal {
        /// As `Created` said.
        process: u32,
        /// Its number on Linux.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// The terminal of a process has another size.
    Resize {
        /// As `Created` said.
        process: u32,
        /// In characters.
        rows: u16,
        /// In characters.
        columns: u16,
    },
    /// What the container uses, as `moat-runtime events --stats` gives it, and the guest's own memory.
    Stats,
    /// The processes of the container.
    Processes,
    /// Other limits for the container.
    Update(Box<oci::Resources>),
    /// Freezes the container.
    Freeze,
    /// Thaws it.
    Thaw,
    /// Writes file systems back and switches the machine off.
    PowerOff,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done,
    /// A process is there. Its streams wait for who attaches to them.
    Created {
        /// What later requests call it by.
        process: u32,
        /// Its id in the guest.
        pid: i32,
    },
    /// It has ended.
    Exited(Exit),
    /// What the container uses.
    Stats {
        /// As `moat-runtime events --stats` gives it.
        container: serde_json::Value,
        /// The guest's memory.
        memory: GuestMemory,
    },
    /// The processes of the container.
    Processes {
        /// In the order of their ids.
        list: Vec<ProcessRow>,
    },
    /// It was not done.
    Failed {
        /// A sentence, with its causes.
        message: String,
        /// What the user can do.
        hint: Option<String>,
        /// The exit code that the failure stands for: 126 and 127 as a shell gives them, else 125.
        code: u8,
    },
}

/// A stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Descriptor 0.
    Stdin,
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
    /// All three of a process with a terminal.
    Terminal,
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, or 128 and the signal that ended it.
    pub code: i32,
    /// Processes of the container that were killed for lack of memory.
    pub oom_kills: u64,
    /// Those that the guest's kernel named: id and name.
    pub oom_victims: Vec<(i32, String)>,
}

/// The container's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateSpec {
    /// The container's name in the guest.
    pub id: String,
    /// Its configuration. `root.path` is replaced by the root that `Configure` has made.
    pub config: oci::Spec,
    /// Whether descriptor 0 is a pipe that is written to, else /dev/null.
    pub stdin: bool,
    /// PID 1 is an init that reaps and forwards signals.
    pub init: bool,
}

/// A further process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// What runs.
    pub process: oci::Process,
    /// Whether descriptor 0 is a pipe that is written to, else /dev/null.
    pub stdin: bool,
}

/// What makes a machine that was booted, or restored from a template, that of one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSpec {
    /// Host name.
    pub hostname: String,
    /// 32 hexadecimal digits for /etc/machine-id of whoever asks the agent for it.
    pub machine_id: String,
    /// Nanoseconds since 1970 at the host.
    pub clock_ns: u64,
    /// Bytes from the host's random generator, which are mixed into the guest's.
    pub entropy: Vec<u8>,
    /// Devices that get an address.
    pub interfaces: Vec<InterfaceSpec>,
    /// The root file system.
    pub root: RootSpec,
    /// Files that the configuration's mounts name as their sources.
    pub files: Vec<FileSpec>,
}

/// A network device, told by its hardware address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceSpec {
    /// Six bytes.
    pub mac: [u8; 6],
    /// The name that it gets, as in `eth0`.
    pub name: String,
    /// 0 leaves the device's own.
    pub mtu: u32,
    /// Addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default gateways.
    pub gateways: Vec<IpAddr>,
}

/// Disks, by their place among the machine's virtio block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootSpec {
    /// EROFS images, the topmost first.
    pub layers: Vec<DiskSpec>,
    /// An ext4 file system for what is written; absent: memory.
    pub writable: Option<DiskSpec>,
    /// How much memory may be written to where no disk is; 0: half of it.
    pub memory_bytes: u64,
}

/// A disk, told by its serial number (virtio 1.2, 5.2.6.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// At most 20 bytes.
    pub serial: String,
}

/// A file that the agent makes below [`FILES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// One component.
    pub name: String,
    /// What it holds.
    #[serde(with = "base64_text")]
    pub content: Vec<u8>,
    /// Permissions.
    pub mode: u32,
}

/// Bytes as base64, of which a frame holds three times as many as of numbers.
mod base64_text {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// Where the agent keeps [`GuestSpec::files`].
pub const FILES: &str = "/run/moat/files";
/// Where the agent puts the root file system together.
pub const ROOT: &str = "/run/moat/root";

/// The guest's memory, of its /proc/meminfo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// What the kernel manages.
    pub total_bytes: u64,
    /// What programs could still have.
    pub available_bytes: u64,
}

/// A process of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// In the guest.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its user.
    pub uid: u32,
    /// Time on processors.
    pub cpu_ms: u64,
    /// Its arguments, or its name in brackets.
    pub command: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_however_it_is_cut() {
        let request = Request::Attach { process: 3, stream: Stream::Stderr };
        let frame = encode(&request).unwrap();
        for end in 0..frame.len() {
            assert_eq!(decode::<Request>(&frame[..end]), Ok(None), "{end}");
        }
        let mut two = frame.clone();
        two.extend(encode(&Request::PowerOff).unwrap());
        assert_eq!(decode(&two), Ok(Some((request, frame.len()))));
        assert_eq!(decode(&two[frame.len()..]), Ok(Some((Request::PowerOff, two.len() - frame.len()))));
    }

    #[test]
    fn what_is_no_frame_is_told_before_its_end() {
        let long = [0xff, 0xff, 0xff, 0xff];
        assert_eq!(decode::<Answer>(&long), Err(FrameError::TooLong(0xffff_ffff)));
        let other = encode(&Request::Stats).unwrap();
        assert!(matches!(decode::<Answer>(&other), Err(FrameError::Malformed(_))));
        let big = Answer::Failed { message: "x".repeat(MAX_FRAME_BYTES), hint: None, code: 1 };
        assert!(matches!(encode(&big), Err(FrameError::TooLong(_))));
    }
}
