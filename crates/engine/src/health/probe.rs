//! One health check, in a process of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use moat_linux::process::{self as sys, Clone3, Forked, namespace};
use moat_model::workload::{HealthProbe, Isolation};
use moat_sandbox::container::{self, ExecOptions};
use moat_sandbox::host::Host;
use moat_sandbox::record::Recorder;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use crate::guest::{Agent, Relay};
use crate::launch::Launch;
use crate::oci::{ExecWish, HealthCheck};
use crate::{Context, Error, Result};

/// Begins a check of the workload whose first process is `pid`. Gives the child, its pidfd, and a pipe of what it has to
/// say.
pub(super) fn fork(check: &HealthCheck, launch: &Launch, pid: i32) -> Result<(i32, OwnedFd, OwnedFd)> {
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context(|| "a pipe for the check")?;
    match sys::fork(Clone3::default()).context(|| "start the check")? {
        Forked::Parent(child, pidfd) => Ok((child, pidfd, read)),
        Forked::Child => {
            drop(read);
            let code = run(check, launch, pid, &write).unwrap_or_else(|error| {
                // Nobody else can be told.
                let _ = rustix::io::write(&write, error.to_string().as_bytes());
                1
            });
            std::process::exit(code)
        }
    }
}

fn run(check: &HealthCheck, launch: &Launch, pid: i32, output: &OwnedFd) -> Result<i32> {
    match &check.probe {
        HealthProbe::None | HealthProbe::Image => Ok(0),
        HealthProbe::Exec { command } => execute(command.clone(), launch, output),
        HealthProbe::Shell { line } => {
            execute(check.shell.iter().chain([line]).cloned().collect(), launch, output)
        }
        HealthProbe::Tcp { port } => {
            connect(check, pid, *port)?;
            Ok(0)
        }
        HealthProbe::Http { port, path } => {
            let status = ask(connect(check, pid, *port)?, *port, path)?;
            if status < 400 {
                return Ok(0);
            }
            Err(Error::new(format!("the answer was status {status}")))
        }
    }
}

fn execute(command: Vec<String>, launch: &Launch, output: &OwnedFd) -> Result<i32> {
    for number in 1..3 {
        sys::duplicate_to(output.as_fd(), number)?;
    }
    rustix::io::ioctl_fionbio(rustix::stdio::stdout(), true).context(|| "the check's output")?;
    let wish = ExecWish { command, ..ExecWish::default() };
    let process = launch.exec_process(&wish)?;
    if launch.record.spec.isolation == Isolation::Microvm {
        let (relay, _) = Relay::start(&Agent::of(&launch.folder.run), process, false)?;
        return relay.run();
    }
    let running = container::exec(
        &launch.store(),
        &launch.sandbox_id,
        &process,
        &ExecOptions::default(),
        &Host::detect()?,
        false,
        &mut Recorder::new(false, None),
    )?;
    let signals = sys::signal_descriptor()?;
    loop {
        let mut ready = [PollFd::new(&running.pidfd, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context(|| "wait for the check")?,
        };
        if ready[0].revents().contains(PollFlags::IN) {
            return Ok(container::wait(&running)?);
        }
        while let Some(number) = sys::next_signal(signals.as_fd())? {
            if number == Signal::TERM.as_raw() {
                // It takes too long.
                sys::signal(running.pidfd.as_fd(), Signal::KILL.as_raw())?;
            }
        }
    }
}

/// A connection from inside the workload's network namespace.
fn connect(check: &HealthCheck, pid: i32, port: u16) -> Result<TcpStream> {
    let process = sys::pidfd(pid)?;
    sys::join(process.as_fd(), namespace::NETWORK).context(|| "enter the workload's network")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let timeout = Duration::from_millis(check.timeout_ms);
    let stream =
        TcpStream::connect_timeout(&address, timeout).context(|| format!("connect to port {port}"))?;
    stream.set_read_timeout(Some(timeout)).context(|| "the connection")?;
    Ok(stream)
}

/// The status of an HTTP answer; its body is nobody's business.
fn ask(mut stream: TcpStream, port: u16, path: &str) -> Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: moat\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).context(|| "send the request")?;
    let mut answer = Vec::new();
    let mut part = [0_u8; 512];
    while answer.len() < 4096 && !answer.contains(&b'\n') {
        match stream.read(&mut part).context(|| "read the answer")? {
            0 => break,
            count => answer.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
    status(&answer).ok_or_else(|| Error::new("the answer is not HTTP"))
}

/// The status of `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let code = rest.get(..3)?;
    let code = version.starts_with("HTTP/").then(|| code.parse().ok())??;
    (100..600).contains(&code).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nX: y\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503 \r\n"), Some(503));
        for bad in
            [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 2", b"HTTP/1.1 999 x", b"\xff \xff"]
        {
            assert_eq!(status(bad), None, "{bad:?}");
        }
    }
}
