//! Staying with a process: signals, terminal, exit code.

use std::os::fd::AsFd;
use std::path::Path;

use moat_linux::process as sys;
use moat_linux::{Errno, net};
use moat_model::oci::{ConsoleSize, Process, Spec};
use moat_sandbox::container::Running;
use moat_sandbox::{Context, Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use crate::terminal::Terminal;

/// Blocks signals before the process starts, or one that ends at once would never be seen, and adopts
/// orphans, so that they are reaped.
pub(crate) fn prepare(subreaper: bool) -> Result<()> {
    if subreaper {
        sys::set_child_subreaper()?;
    }
    Ok(sys::block_signals()?)
}

/// The terminal of the container begins with the size of the caller's.
pub(crate) fn adopt_size(spec: &mut Spec) {
    if let Some(process) = &mut spec.process {
        adopt_process_size(process);
    }
}

/// As [`adopt_size`].
pub(crate) fn adopt_process_size(process: &mut Process) {
    if !process.terminal || process.console_size.is_some() {
        return;
    }
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        process.console_size = Some(ConsoleSize { height: size.ws_row, width: size.ws_col });
    }
}

/// Descriptors that are to be preserved must be there.
pub(crate) fn check_preserved(count: u32) -> Result<()> {
    for number in 3..3_u32.saturating_add(count) {
        if !Path::new(&format!("/proc/self/fd/{number}")).exists() {
            return Err(Error::new(format!("--preserve-fds {count}: descriptor {number} is not open")));
        }
    }
    Ok(())
}

/// Sends a pidfd of the process to the socket that the caller listens on.
pub(crate) fn send_pidfd(socket: Option<&Path>, running: &Running) -> Result<()> {
    let Some(path) = socket else { return Ok(()) };
    let what = || format!("pidfd socket {}", path.display());
    let socket = net::connect(path).context(what)?;
    net::send(socket.as_fd(), b"pidfd", &[running.pidfd.as_fd()]).context(what)
}

/// Forwards signals and the terminal until the process has ended, and gives its exit code.
pub(crate) fn tend(running: &mut Running) -> Result<u8> {
    let signals = sys::signal_descriptor()?;
    let mut terminal = running.terminal.take().map(Terminal::new).transpose()?;
    let code = loop {
        if let Some(code) = reap(running.pid)? {
            break code;
        }
        let mut ready = vec![PollFd::new(&signals, PollFlags::IN)];
        if let Some(terminal) = &terminal {
            ready.extend(terminal.poll_fds());
        }
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            other => other.map_err(std::io::Error::from)?,
        };
        let seen: Vec<PollFlags> = ready.iter().skip(1).map(PollFd::revents).collect();
        drop(ready);
        if let Some(terminal) = &mut terminal {
            terminal.copy(&seen)?;
        }
        while let Some(number) = sys::next_signal(signals.as_fd())? {
            forward(number, &running.pidfd, terminal.as_ref())?;
        }
    };
    if let Some(terminal) = &mut terminal {
        terminal.drain()?;
    }
    Ok(code)
}

fn reap(pid: i32) -> Result<Option<u8>> {
    loop {
        match sys::reap() {
            Ok(Some((ended, status))) if ended == pid => return Ok(Some(sys::exit_code(status) as u8)),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) if error.errno() == Errno::CHILD => {
                return Err(Error::new(format!("process {pid} was reaped by somebody else")));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn forward(number: i32, pidfd: &std::os::fd::OwnedFd, terminal: Option<&Terminal>) -> Result<()> {
    match number {
        number if number == Signal::CHILD.as_raw() => Ok(()),
        // The Go runtimes that drive us use it among their own threads.
        number if number == Signal::URG.as_raw() => Ok(()),
        number if number == Signal::WINCH.as_raw() => terminal.map_or(Ok(()), Terminal::resize),
        number => match sys::signal(pidfd.as_fd(), number) {
            Err(error) if error.errno() != Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        },
    }
}
