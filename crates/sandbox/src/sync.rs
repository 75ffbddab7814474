//! What the runtime and init tell each other while a container is being built.
//!
//! The two share a pair of sequenced-packet sockets: a message is one packet, a death is an end of
//! file. A message is a tag byte and a body; bodies come from our own fork and are still parsed with
//! bounds, because init may already run in a container that others are in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use moat_linux::{Errno, net};

use crate::{Context, Error, Result};

/// The longest message. An error that does not fit is cut: a byte of it takes at most six in a message.
const MAX_BYTES: usize = 4 << 10;

/// What init tells.
#[derive(Debug)]
pub(crate) enum FromInit {
    /// The process in between has cloned init: its id and pidfd.
    Cloned(i32, OwnedFd),
    /// The namespaces are there: the runtime's hooks may run.
    AwaitHooks,
    /// The master of the new terminal.
    Terminal(OwnedFd),
    /// The filter's listener will be this descriptor of init's.
    Listener(i32),
    /// All is built.
    Ready,
    /// A step was performed after which the runtime has to stop.
    Stop,
    /// A step failed.
    Failed(Error),
    /// The socket was closed: by execve(2), or by a death.
    Closed,
}

/// What the runtime tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromRuntime {
    /// The id maps are written.
    Mapped,
    /// The cgroups are complete; the descriptors are the ways in.
    Grouped,
    /// The hooks have run.
    HooksDone,
    /// The program may run.
    Go,
}

const TAG_CLONED: u8 = b'C';
const TAG_HOOKS: u8 = b'H';
const TAG_TERMINAL: u8 = b'T';
const TAG_LISTENER: u8 = b'L';
const TAG_READY: u8 = b'R';
const TAG_STOP: u8 = b'S';
const TAG_FAILED: u8 = b'F';

/// Sends a message of init's.
pub(crate) fn tell_runtime(socket: BorrowedFd<'_>, message: &FromInit) -> Result<()> {
    let mut bytes = Vec::new();
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    match message {
        FromInit::Cloned(pid, pidfd) => {
            bytes.push(TAG_CLONED);
            bytes.extend(pid.to_ne_bytes());
            fds.push(pidfd.as_fd());
        }
        FromInit::AwaitHooks => bytes.push(TAG_HOOKS),
        FromInit::Terminal(master) => {
            bytes.push(TAG_TERMINAL);
            fds.push(master.as_fd());
        }
        FromInit::Listener(number) => {
            bytes.push(TAG_LISTENER);
            bytes.extend(number.to_ne_bytes());
        }
        FromInit::Ready => bytes.push(TAG_READY),
        FromInit::Stop => bytes.push(TAG_STOP),
        FromInit::Failed(error) => {
            bytes.push(TAG_FAILED);
            let text = |error: &Error| serde_json::to_vec(error).unwrap_or_default();
            let whole = text(error);
            bytes.extend(if whole.len() < MAX_BYTES { whole } else { text(&error.cut(MAX_BYTES / 8)) });
        }
        FromInit::Closed => return Ok(()),
    }
    Ok(net::send(socket, &bytes, &fds)?)
}

/// Waits for a message of init's.
pub(crate) fn hear_init(socket: BorrowedFd<'_>) -> Result<FromInit> {
    let mut buffer = [0_u8; MAX_BYTES];
    let (count, mut fds) = match net::receive(socket, &mut buffer) {
        // Init ended before it read what it was told. Told once, the reset makes way for what init said.
        Err(error) if error.errno() == Errno::CONNRESET => net::receive(socket, &mut buffer),
        other => other,
    }
    .context(|| "container init")?;
    let garbled = || Error::new("container init sent a message that is not one");
    let bytes = buffer.get(..count).unwrap_or_default();
    let Some((tag, body)) = bytes.split_first() else { return Ok(FromInit::Closed) };
    let number = || body.try_into().map(i32::from_ne_bytes).map_err(|_| garbled());
    Ok(match *tag {
        TAG_CLONED => FromInit::Cloned(number()?, fds.pop().ok_or_else(garbled)?),
        TAG_HOOKS => FromInit::AwaitHooks,
        TAG_TERMINAL => FromInit::Terminal(fds.pop().ok_or_else(garbled)?),
        TAG_LISTENER => FromInit::Listener(number()?),
        TAG_READY => FromInit::Ready,
        TAG_STOP => FromInit::Stop,
        TAG_FAILED => FromInit::Failed(serde_json::from_slice(body).map_err(|_| garbled())?),
        _ => return Err(garbled()),
    })
}

impl FromRuntime {
    const ALL: [Self; 4] = [Self::Mapped, Self::Grouped, Self::HooksDone, Self::Go];

    fn tag(self) -> u8 {
        match self {
            Self::Mapped => b'M',
            Self::Grouped => b'C',
            Self::HooksDone => b'H',
            Self::Go => b'G',
        }
    }
}

/// Sends a message of the runtime's.
///
/// Errors: the last words of an init that has ended.
pub(crate) fn tell_init(socket: BorrowedFd<'_>, message: FromRuntime, fds: &[BorrowedFd<'_>]) -> Result<()> {
    match net::send(socket, &[message.tag()], fds) {
        Ok(()) => Ok(()),
        Err(error) => match last_words(socket) {
            Some(told) => Err(told),
            None => Err(error).context(|| "container init ended while it was being built"),
        },
    }
}

/// Why init has ended, if it said so.
pub(crate) fn last_words(socket: BorrowedFd<'_>) -> Option<Error> {
    loop {
        match hear_init(socket) {
            Ok(FromInit::Failed(error)) => return Some(error),
            Ok(FromInit::Closed) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Waits for the message that init expects. An end of file means that the runtime died: init ends too.
pub(crate) fn hear_runtime(socket: BorrowedFd<'_>, expected: FromRuntime) -> Result<Vec<OwnedFd>> {
    let mut byte = [0_u8];
    let (count, fds) = net::receive(socket, &mut byte)?;
    if count == 0 {
        return Err(Error::new("the runtime ended while the container was being built"));
    }
    let heard = FromRuntime::ALL.into_iter().find(|message| [message.tag()] == byte);
    if heard == Some(expected) {
        Ok(fds)
    } else {
        Err(Error::new(format!("the runtime said {heard:?} where {expected:?} was expected")))
    }
}
