//! One connection of the host, from its request to its end.

use std::os::fd::OwnedFd;

use moat_linux::Errno;
use moat_model::agent::{self, Answer, FRAME_HEADER_BYTES, MAX_FRAME_BYTES, Request};
use rustix::event::{PollFd, PollFlags};

use crate::relay::{Relay, Step};

/// Where a connection is.
#[derive(Debug)]
pub(crate) enum Connection {
    /// Its request has not come whole.
    Asking { socket: OwnedFd, bytes: Vec<u8> },
    /// It gets its answer, and is closed.
    Answering { socket: OwnedFd, bytes: Vec<u8> },
    /// It gets its answer when a process has ended.
    Waiting { socket: OwnedFd, process: u32 },
    /// It carries a stream.
    Streaming(Relay),
    /// It can be dropped.
    Over,
}

/// A request that came whole, with what came behind it.
pub(crate) struct Asked {
    pub(crate) socket: OwnedFd,
    pub(crate) request: Request,
    pub(crate) rest: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self::Asking { socket, bytes: Vec::new() }
    }

    /// Answers, and closes when the answer was taken.
    pub(crate) fn answer(socket: OwnedFd, answer: &Answer) -> Self {
        Self::Answering { socket, bytes: frame(answer) }
    }

    pub(crate) fn poll_fds(&self, ended: impl Fn(u32) -> bool) -> Vec<PollFd<'_>> {
        match self {
            // Who waits must be noticed when it leaves.
            Self::Asking { socket, .. } | Self::Waiting { socket, .. } => {
                vec![PollFd::new(socket, PollFlags::IN)]
            }
            Self::Answering { socket, .. } => vec![PollFd::new(socket, PollFlags::OUT)],
            Self::Streaming(relay) => relay.poll_fds(ended(relay.process)),
            Self::Over => Vec::new(),
        }
    }

    /// Does what can be done without blocking. A request that came whole is taken out.
    pub(crate) fn step(&mut self, ended: impl Fn(u32) -> bool) -> Option<Asked> {
        match std::mem::replace(self, Self::Over) {
            Self::Asking { socket, bytes } => return self.read_request(socket, bytes),
            Self::Answering { socket, mut bytes } => match rustix::io::write(&socket, &bytes) {
                Ok(count) => {
                    bytes.drain(..count);
                    if !bytes.is_empty() {
                        *self = Self::Answering { socket, bytes };
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => *self = Self::Answering { socket, bytes },
                Err(_) => {}
            },
            Self::Waiting { socket, process } => {
                // Nothing is to come but the end.
                if matches!(rustix::io::read(&socket, &mut [0; 16]), Err(Errno::AGAIN | Errno::INTR)) {
                    *self = Self::Waiting { socket, process };
                }
            }
            Self::Streaming(mut relay) => {
                if relay.step(ended(relay.process)) == Step::More {
                    *self = Self::Streaming(relay);
                }
            }
            Self::Over => {}
        }
        None
    }

    fn read_request(&mut self, socket: OwnedFd, mut bytes: Vec<u8>) -> Option<Asked> {
        let start = bytes.len();
        bytes.resize((start + (16 << 10)).min(FRAME_HEADER_BYTES + MAX_FRAME_BYTES), 0);
        let read = rustix::io::read(&socket, bytes.get_mut(start..).unwrap_or_default());
        bytes.truncate(start + read.unwrap_or(0));
        match read {
            Ok(0) => return None,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
        match agent::decode::<Request>(&bytes) {
            Ok(None) => *self = Self::Asking { socket, bytes },
            Ok(Some((request, length))) => {
                let rest = bytes.split_off(length);
                return Some(Asked { socket, request, rest });
            }
            Err(error) => *self = Self::answer(socket, &failed(error.to_string(), None, 125)),
        }
        None
    }
}

pub(crate) fn failed(message: String, hint: Option<String>, code: u8) -> Answer {
    Answer::Failed { message, hint, code }
}

/// An answer as a frame; one that is too long becomes one that says so.
pub(crate) fn frame(answer: &Answer) -> Vec<u8> {
    agent::encode(answer)
        .or_else(|error| agent::encode(&failed(error.to_string(), None, 125)))
        .unwrap_or_default()
}
