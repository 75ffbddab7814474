//! The host's side of what is said to the agent in a guest.
//!
//! Behind the socket is a guest that may have been taken over, and a monitor that the guest may have taken over: what
//! comes from there is held against [`agent::decode`], has a time to come in, and is never printed as it is. The
//! socket lies in a folder that the monitor may write to, so a link in its place is not followed.

mod relay;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moat_linux::{Errno, fs};
use moat_model::agent::{self, Answer, Exit, FRAME_HEADER_BYTES, MAX_FRAME_BYTES, PORT, Request, Stream};
use moat_model::oci;
use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};

use crate::{Context, Error, Result, Workload};

pub(crate) use relay::Relay;

/// The socket's name in the machine's folder.
pub(crate) const SOCKET: &str = "vsock";
/// The machine's folder below that of a running workload, which the monitor may write to.
pub(crate) const MACHINE: &str = "vm";
/// What is kept of the guest for those who come later.
const STATE: &str = "guest.json";
/// It is there while the container in the guest is frozen.
const FROZEN: &str = "frozen";
/// How long an agent that lives may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most of a guest's words that are told.
const MAX_WORDS: usize = 2000;

/// The agent of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    folder: PathBuf,
}

/// The first process of a guest, for those who come later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GuestState {
    /// What the agent calls it by.
    pub(crate) process: u32,
    /// What it was made from.
    pub(crate) config: oci::Process,
}

impl GuestState {
    pub(crate) fn save(&self, run: &Path) -> Result<()> {
        crate::file::write(&run.join(STATE), self, crate::file::Lasting::Renamed)
    }

    pub(crate) fn forget(run: &Path) -> Result<()> {
        crate::file::remove_if_there(&run.join(FROZEN))?;
        crate::file::remove_if_there(&run.join(STATE))
    }

    pub(crate) fn load(run: &Path) -> Result<Self> {
        crate::file::read(&run.join(STATE))?.ok_or_else(|| Error::conflict("its guest does not run"))
    }
}

/// Whether the container in a guest is frozen. Its agent is not, and answers.
pub(crate) fn is_frozen(run: &Path) -> bool {
    run.join(FROZEN).exists()
}

/// Freezes the container in a guest, or lets it go on.
pub(crate) fn freeze(run: &Path, on: bool) -> Result<()> {
    let mark = run.join(FROZEN);
    if on {
        Agent::of(run).tell(&Request::Freeze)?;
        return std::fs::write(&mark, "").context(|| mark.display().to_string());
    }
    Agent::of(run).tell(&Request::Thaw)?;
    crate::file::remove_if_there(&mark)
}

impl Agent {
    /// That of the workload whose folder of running things is `run`.
    pub(crate) fn of(run: &Path) -> Self {
        Self { folder: run.join(MACHINE) }
    }

    /// Asks, and gives the answer; a refusal is an error.
    pub(crate) fn ask(&self, request: &Request) -> Result<Answer> {
        self.ask_within(request, PATIENCE)
    }

    /// As [`Agent::ask`], for `patience`.
    pub(crate) fn ask_within(&self, request: &Request, patience: Duration) -> Result<Answer> {
        let until = Instant::now() + patience;
        let mut stream = self.connect(until)?;
        send(&mut stream, request)?;
        accepted(receive(&mut stream, until)?)
    }

    /// Tells it to do something; any answer but that it was done is an error.
    pub(crate) fn tell(&self, request: &Request) -> Result<()> {
        self.tell_within(request, PATIENCE)
    }

    /// As [`Agent::tell`], for `patience`.
    pub(crate) fn tell_within(&self, request: &Request, patience: Duration) -> Result<()> {
        match self.ask_within(request, patience)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The bytes of a stream of a process; the socket does not block.
    pub(crate) fn attach(&self, process: u32, stream: Stream) -> Result<OwnedFd> {
        let until = Instant::now() + PATIENCE;
        let mut socket = self.connect(until)?;
        send(&mut socket, &Request::Attach { process, stream })?;
        accepted(receive(&mut socket, until)?)?;
        unlimited(socket)
    }

    /// What becomes readable when a process has ended, or its machine.
    pub(crate) fn ending(&self, process: u32) -> Result<Ending> {
        let mut socket = self.connect(Instant::now() + PATIENCE)?;
        send(&mut socket, &Request::Wait { process })?;
        Ok(Ending { socket: unlimited(socket)?, bytes: Vec::new() })
    }

    fn connect(&self, until: Instant) -> Result<UnixStream> {
        let what = || "the guest's agent";
        let folder = fs::open(&self.folder, OFlags::PATH | OFlags::DIRECTORY).context(what)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let socket = fs::open_at(folder.as_fd(), Path::new(SOCKET), flags, 0).context(what)?;
        if FileType::from_raw_mode(fs::stat(socket.as_fd())?.st_mode) != FileType::Socket {
            return Err(Error::new("the machine's socket is none any more")).context(what);
        }
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let mut stream = UnixStream::connect(path).context(what)?;
        stream.set_write_timeout(Some(PATIENCE)).context(what)?;
        writeln!(stream, "CONNECT {PORT}").context(what)?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            read_exact(&mut stream, &mut byte, until).context(what)?;
            line.extend(byte);
            if line.len() > 32 {
                return Err(Error::new("its monitor does not say OK")).context(what);
            }
        }
        if line.starts_with(b"OK ") {
            Ok(stream)
        } else {
            Err(Error::new("it does not listen")).context(what)
        }
    }
}

/// A process's end that is waited for.
#[derive(Debug)]
pub(crate) struct Ending {
    socket: OwnedFd,
    bytes: Vec<u8>,
}

impl AsFd for Ending {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Ending {
    /// How it ended; `None` as long as it has not.
    ///
    /// Errors: the connection ended without an answer, or what came is none.
    pub(crate) fn take(&mut self) -> Result<Option<Exit>> {
        let mut part = [0; 4096];
        loop {
            match rustix::io::read(&self.socket, &mut part) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(Error::new("the guest has gone")),
                Ok(count) => self.bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            match agent::decode(&self.bytes).map_err(|error| not_understood(&error))? {
                None => {}
                Some((Answer::Exited(exit), _)) if (0..=255).contains(&exit.code) => return Ok(Some(exit)),
                Some((Answer::Exited(exit), _)) => {
                    return Err(Error::new(format!("the guest tells of exit code {}", exit.code)));
                }
                Some((answer, _)) => return Err(unexpected(&accepted(answer)?)),
            }
        }
    }
}

fn unlimited(stream: UnixStream) -> Result<OwnedFd> {
    stream
        .set_write_timeout(None)
        .and_then(|()| stream.set_nonblocking(true))
        .context(|| "the guest's agent")?;
    Ok(stream.into())
}

fn send(stream: &mut UnixStream, request: &Request) -> Result<()> {
    let frame = agent::encode(request).map_err(|error| Error::new(error.to_string()))?;
    stream.write_all(&frame).context(|| "ask the guest's agent")
}

fn receive(stream: &mut UnixStream, until: Instant) -> Result<Answer> {
    let what = || "the guest's agent";
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    read_exact(stream, &mut bytes, until).context(what)?;
    let header: [u8; FRAME_HEADER_BYTES] = bytes.as_slice().try_into().unwrap_or_default();
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(not_understood(&agent::FrameError::TooLong(length))).context(what);
    }
    bytes.resize(FRAME_HEADER_BYTES + length, 0);
    read_exact(stream, bytes.get_mut(FRAME_HEADER_BYTES..).unwrap_or_default(), until).context(what)?;
    let answer = agent::decode(&bytes).map_err(|error| not_understood(&error)).context(what)?;
    answer.map(|(answer, _)| answer).ok_or_else(|| Error::new("its answer is not whole")).context(what)
}

/// Reads so much, however slowly it comes, until a time.
fn read_exact(stream: &mut UnixStream, mut buffer: &mut [u8], until: Instant) -> Result<()> {
    while !buffer.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new("it does not answer"));
        }
        stream.set_read_timeout(Some(left)).context(|| "a time limit")?;
        match stream.read(buffer) {
            Ok(0) => return Err(Error::new("it has hung up")),
            Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::new(error.to_string())),
        }
    }
    Ok(())
}

fn not_understood(error: &agent::FrameError) -> Error {
    Error::new(words(&error.to_string()))
}

/// An answer that fits no question.
pub(crate) fn unexpected(answer: &Answer) -> Error {
    Error::new(words(&format!("the guest's agent answers {answer:?}")))
}

fn accepted(answer: Answer) -> Result<Answer> {
    let Answer::Failed { message, hint, .. } = answer else { return Ok(answer) };
    let message = words(&message);
    let kind = crate::isolation::kind(&message);
    let error = Error::new(message).with_kind(kind);
    Err(match hint {
        Some(hint) => error.hint(words(&hint)),
        None => error,
    })
}

/// What a guest says, without what would move a terminal's cursor or more.
pub(crate) fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

impl Workload {
    /// Whether it has a machine of its own.
    pub(crate) fn is_microvm(&self) -> bool {
        self.spec().isolation == moat_model::workload::Isolation::Microvm
    }

    /// Its agent, and what is known of its first process.
    ///
    /// Errors: it does not run.
    pub(crate) fn guest(&self) -> Result<(Agent, GuestState)> {
        let run = &self.folder().run;
        Ok((Agent::of(run), GuestState::load(run).context(|| format!("workload {}", self.name()))?))
    }

    /// Refuses what is not there for a machine.
    pub(crate) fn refuse_microvm(&self, what: &str) -> Result<()> {
        if self.is_microvm() {
            return Err(Error::invalid(format!(
                "{what} workload {}: it is a microVM, where that is not supported yet",
                self.name()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_can_not_move_the_cursor() {
        let message = "exec: \"x\x1b[2J\": not\nfound".to_owned();
        let error = accepted(Answer::Failed { message, hint: None, code: 125 }).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"x [2J\": not found");
        let error =
            accepted(Answer::Failed { message: "exec: \"x\": not found".to_owned(), hint: None, code: 125 });
        assert_eq!(error.unwrap_err().kind(), crate::ErrorKind::ProgramNotFound);
    }

    #[test]
    fn a_link_in_the_place_of_the_socket_is_not_followed() {
        let run = tempfile::tempdir().unwrap();
        let machine = run.path().join(MACHINE);
        std::fs::create_dir(&machine).unwrap();
        let elsewhere = run.path().join("elsewhere");
        let _listener = std::os::unix::net::UnixListener::bind(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, machine.join(SOCKET)).unwrap();
        let error = Agent::of(run.path()).ask(&Request::Stats).unwrap_err();
        assert_eq!(error.to_string(), "the guest's agent: the machine's socket is none any more");
    }

    #[test]
    fn an_agent_that_hangs_is_given_up() {
        let run = tempfile::tempdir().unwrap();
        let machine = run.path().join(MACHINE);
        std::fs::create_dir(&machine).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(machine.join(SOCKET)).unwrap();
        let error = Agent::of(run.path()).ask_within(&Request::Stats, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "the guest's agent: it does not answer");
    }
}
