//! The loop: connections, streams, and processes that end.

use std::os::fd::{AsFd, OwnedFd};

use moat_linux::{process as sys, vsock};
use moat_model::agent::{Answer, PORT, READY_PORT, Request, Stream};
use moat_sandbox::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::connection::{Asked, Connection, failed, frame};
use crate::guest;
use crate::relay::Relay;
use crate::workload::Workload;

/// More at once are turned away; the host needs three for each process.
const MAX_CONNECTIONS: usize = 1024;

/// Serves the host until it asks for the machine to be switched off.
pub(crate) fn serve() -> Result<()> {
    let listener = vsock::listen(PORT)?;
    let signals = sys::signal_descriptor()?;
    // An event for who waits for it. A machine that nobody waits for serves all the same.
    let _ = vsock::connect(vsock::HOST, READY_PORT);
    let mut agent = Agent { workload: Workload::default(), connections: Vec::new(), power_off: false };
    while !agent.power_off {
        agent.wait(&listener, &signals)?;
        while sys::next_signal(signals.as_fd())?.is_some() {}
        agent.workload.reap()?;
        agent.step();
        agent.tell_ended();
        agent.accept(&listener)?;
    }
    Ok(())
}

struct Agent {
    workload: Workload,
    connections: Vec<Connection>,
    power_off: bool,
}

impl Agent {
    /// Blocks until there is something to do.
    fn wait(&self, listener: &OwnedFd, signals: &OwnedFd) -> Result<()> {
        let ended = |process| self.workload.has_ended(process);
        let mut ready = vec![PollFd::new(signals, PollFlags::IN)];
        if self.connections.len() < MAX_CONNECTIONS {
            ready.push(PollFd::new(listener, PollFlags::IN));
        }
        ready.extend(self.connections.iter().flat_map(|connection| connection.poll_fds(ended)));
        match poll(&mut ready, None) {
            Err(moat_linux::Errno::INTR) => Ok(()),
            other => Ok(other.map(drop).map_err(std::io::Error::from)?),
        }
    }

    fn accept(&mut self, listener: &OwnedFd) -> Result<()> {
        while self.connections.len() < MAX_CONNECTIONS {
            match vsock::accept(listener.as_fd()) {
                Ok(socket) => self.connections.push(Connection::new(socket)),
                Err(error) if error.errno() == moat_linux::Errno::AGAIN => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn step(&mut self) {
        for index in 0..self.connections.len() {
            let workload = &self.workload;
            let Some(connection) = self.connections.get_mut(index) else { break };
            if let Some(asked) = connection.step(|process| workload.has_ended(process)) {
                let next = self.handle(asked);
                if let Some(connection) = self.connections.get_mut(index) {
                    *connection = next;
                }
            }
        }
        self.connections.retain(|connection| !matches!(connection, Connection::Over));
    }

    /// Answers those who wait for processes that have ended.
    fn tell_ended(&mut self) {
        for connection in &mut self.connections {
            let Connection::Waiting { process, .. } = connection else { continue };
            let Some(exit) = self.workload.exit(*process) else { continue };
            if let Connection::Waiting { socket, .. } = std::mem::replace(connection, Connection::Over) {
                *connection = Connection::answer(socket, &Answer::Exited(exit));
            }
        }
    }

    fn handle(&mut self, asked: Asked) -> Connection {
        match asked.request {
            Request::Attach { process, stream } => self.attach(asked.socket, process, stream, asked.rest),
            Request::Wait { process } if self.workload.knows(process) => {
                Connection::Waiting { socket: asked.socket, process }
            }
            Request::PowerOff => {
                self.power_off = true;
                take_leave(&asked.socket);
                Connection::Over
            }
            request => {
                let answer = self.perform(request).unwrap_or_else(|error| {
                    failed(error.to_string(), error.hint_text().map(str::to_owned), error.code())
                });
                Connection::answer(asked.socket, &answer)
            }
        }
    }

    fn perform(&mut self, request: Request) -> Result<Answer> {
        match request {
            Request::Configure(spec) => {
                self.workload.configure_once(|| guest::configure(&spec))?;
                Ok(Answer::Done)
            }
            Request::Create(spec) => self.workload.create(*spec),
            Request::Exec(spec) => self.workload.exec(&spec),
            Request::Signal { process, signal, all } => self.workload.signal(process, signal, all),
            Request::Resize { process, rows, columns } => self.workload.resize(process, rows, columns),
            Request::Stats => self.workload.stats(),
            Request::Processes => self.workload.processes(),
            Request::Update(resources) => self.workload.update(&resources),
            Request::Freeze => self.workload.freeze(true),
            Request::Thaw => self.workload.freeze(false),
            Request::Attach { process, .. } | Request::Wait { process } => {
                Err(Error::new(format!("there is no process {process}")))
            }
            Request::PowerOff => Err(Error::new("the machine is on its way out")),
        }
    }

    fn attach(&mut self, socket: OwnedFd, process: u32, stream: Stream, rest: Vec<u8>) -> Connection {
        match self.workload.take_stream(process, stream) {
            Ok(inner) => {
                let directions = match stream {
                    Stream::Stdin => (true, false),
                    Stream::Stdout | Stream::Stderr => (false, true),
                    Stream::Terminal => (true, true),
                };
                let answer = frame(&Answer::Done);
                Connection::Streaming(Relay::new(process, socket, inner, answer, directions, rest))
            }
            Err(error) => Connection::answer(socket, &failed(error.to_string(), None, 125)),
        }
    }
}

/// Answers the last request, and waits until the host has taken the answer, which it says by closing: what is still
/// on its way when the machine is off never comes.
fn take_leave(socket: &OwnedFd) {
    if rustix::io::write(socket, &frame(&Answer::Done)).is_err() {
        return;
    }
    loop {
        let closed = match rustix::io::read(socket, &mut [0; 64]) {
            Ok(count) => count == 0,
            Err(moat_linux::Errno::AGAIN) => poll(&mut [PollFd::new(socket, PollFlags::IN)], None).is_err(),
            Err(_) => true,
        };
        if closed {
            return;
        }
    }
}
