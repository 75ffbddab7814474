//! The attach socket: who is connected, what they get, and who is too slow.
//!
//! Nothing is kept for a client but the one chunk that all clients are given: as long as one has not taken it, no
//! more is read from that stream. So memory stays flat, and a reader that is slow slows the workload down, as a pipe
//! would. A client that attached later and takes nothing for ten seconds is let go; the one that started the
//! workload is waited for as long as nobody else is attached.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use moat_linux::net;

use super::stdio::Output;
use crate::Result;
use crate::frame::{MAX_PACKET, Packet, Request, output_tag};

/// How many may be connected at once.
const MAX_CLIENTS: usize = 512;

/// How long a client may take nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client said.
#[derive(Debug)]
pub(super) enum Said {
    /// Its request; the number says who.
    Request(u64, Request),
    /// Input for the workload.
    Stdin(Vec<u8>),
    /// Its input has ended, or it has left.
    StdinEnd,
    /// Rows and columns.
    Resize(u16, u16),
}

/// Who is connected.
#[derive(Debug)]
pub(super) struct Client {
    number: u64,
    socket: OwnedFd,
    /// It has said what it wants.
    known: bool,
    /// It started the workload.
    first: bool,
    stdin: bool,
    wants: [bool; 2],
    /// It has not taken the chunk of that stream.
    owes: [bool; 2],
    stuck_since: Option<Instant>,
    /// What is still to be said to it when it has taken the chunks.
    answers: Vec<Vec<u8>>,
    /// It is let go once all is said.
    leaving: bool,
}

/// All who are connected.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) listener: OwnedFd,
    pub(super) clients: Vec<Client>,
    next: u64,
}

impl Client {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether it is to be polled for room.
    pub(super) fn is_behind(&self) -> bool {
        self.owes.contains(&true) || !self.answers.is_empty()
    }

    /// Whether its packets are taken now.
    pub(super) fn is_heard(&self, input_is_free: bool) -> bool {
        !self.leaving && (!self.stdin || input_is_free)
    }

    fn attached(&self) -> bool {
        self.wants.contains(&true)
    }

    /// Sends what it is owed. Errors: it is gone.
    fn flush(&mut self, outputs: &[Output; 2]) -> Result<()> {
        for (index, output) in outputs.iter().enumerate() {
            if self.owes[index] {
                let tag = output_tag(Output::stream(index));
                if !net::send_now(self.socket.as_fd(), &[tag], &output.chunk)? {
                    return Ok(());
                }
                self.owes[index] = false;
                self.stuck_since = None;
            }
        }
        while let Some(answer) = self.answers.first() {
            if !net::send_now(self.socket.as_fd(), answer, &[])? {
                return Ok(());
            }
            self.answers.remove(0);
            self.stuck_since = None;
        }
        Ok(())
    }
}

impl Server {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self { listener, clients: Vec::new(), next: 0 }
    }

    /// Takes the one that started the workload in, with the streams that it asked for.
    pub(super) fn admit_first(&mut self, socket: OwnedFd, stdin: bool, wants: [bool; 2]) {
        let client = self.admit(socket);
        client.known = true;
        client.first = true;
        client.stdin = stdin;
        client.wants = wants;
    }

    fn admit(&mut self, socket: OwnedFd) -> &mut Client {
        self.next += 1;
        self.clients.push(Client {
            number: self.next,
            socket,
            known: false,
            first: false,
            stdin: false,
            wants: [false; 2],
            owes: [false; 2],
            stuck_since: None,
            answers: Vec::new(),
            leaving: false,
        });
        let last = self.clients.len() - 1;
        &mut self.clients[last]
    }

    /// Accepts all who wait; those beyond the limit are turned away.
    pub(super) fn accept(&mut self) -> Result<()> {
        while let Some(socket) = net::accept(self.listener.as_fd())? {
            if self.clients.len() < MAX_CLIENTS {
                self.admit(socket);
            }
        }
        Ok(())
    }

    /// Gives everybody who wants it the chunk of an output.
    pub(super) fn deliver(&mut self, index: usize, outputs: &[Output; 2]) {
        for client in &mut self.clients {
            client.owes[index] = client.wants[index] && !client.leaving;
        }
        self.flush(outputs);
    }

    /// Sends what is owed to those who can take it, and lets go of those who are gone.
    pub(super) fn flush(&mut self, outputs: &[Output; 2]) {
        let now = Instant::now();
        let others = self.clients.iter().filter(|client| client.attached()).count() > 1;
        self.clients.retain_mut(|client| {
            if client.flush(outputs).is_err() {
                return false;
            }
            if !client.is_behind() {
                client.stuck_since = None;
                return !client.leaving;
            }
            let since = *client.stuck_since.get_or_insert(now);
            let patient = client.first && !others;
            patient || now.duration_since(since) < PATIENCE
        });
    }

    /// When the next client's patience ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| client.stuck_since).min().map(|since| since + PATIENCE)
    }

    /// Whether somebody has not taken the chunk of an output.
    pub(super) fn blocks(&self, index: usize) -> bool {
        self.clients.iter().any(|client| client.owes[index])
    }

    /// Lets go of those who have not taken a chunk.
    pub(super) fn drop_blocking(&mut self) {
        self.clients.retain(|client| !client.owes.contains(&true));
    }

    /// What the client of that place has to say; `None` when it has left, or said what is no packet.
    pub(super) fn hear(&mut self, place: usize, buffer: &mut Vec<u8>) -> Option<Said> {
        let client = self.clients.get_mut(place)?;
        buffer.resize(MAX_PACKET, 0);
        let said = match net::receive_now(client.socket.as_fd(), buffer) {
            Ok(None) => return None,
            Ok(Some(count)) if count > 0 => buffer.get(..count).and_then(Packet::decode),
            _ => None,
        };
        match (client.known, said) {
            (false, Some(Packet::Request(request))) => {
                client.known = true;
                if let Request::Attach { stdin, stdout, stderr } = request {
                    client.stdin = stdin;
                    client.wants = [stdout, stderr];
                }
                Some(Said::Request(client.number, request))
            }
            (true, Some(Packet::Stdin(data))) if client.stdin => Some(Said::Stdin(data.to_vec())),
            (true, Some(Packet::StdinEnd)) if client.stdin => {
                client.stdin = false;
                Some(Said::StdinEnd)
            }
            (true, Some(Packet::Resize(rows, columns))) => Some(Said::Resize(rows, columns)),
            _ => {
                let client = self.clients.remove(place);
                client.stdin.then_some(Said::StdinEnd)
            }
        }
    }

    /// Says something to one client.
    pub(super) fn answer(&mut self, number: u64, packet: &Packet<'_>, last: bool) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.number == number) {
            client.answers.push(packet.encode());
            client.leaving |= last;
        }
    }

    /// Says something to the one that started the workload.
    pub(super) fn answer_first(&mut self, packet: &Packet<'_>, last: bool) {
        if let Some(number) = self.clients.iter().find(|client| client.first).map(|client| client.number) {
            self.answer(number, packet, last);
        }
    }

    /// Tells everybody who has said what it wants, and lets them go.
    pub(super) fn tell_all(&mut self, packet: &Packet<'_>) {
        let bytes = packet.encode();
        for client in self.clients.iter_mut().filter(|client| client.known && !client.leaving) {
            client.answers.push(bytes.clone());
            client.leaving = true;
        }
    }
}
