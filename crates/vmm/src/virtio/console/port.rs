//! One port of a console: a receive queue and a transmit queue over one stream.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use crate::device::Stream;
use crate::virtio::{Fault, Io};

/// How much is moved at once.
const PIECE_BYTES: usize = 4096;
/// How many pieces of one chain are written before others have their turn.
const TURN_PIECES: u32 = 256;

/// What a port is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOptions {
    /// What the guest finds it by; none for a console.
    pub name: String,
    /// The guest may make it a terminal.
    pub console: bool,
}

/// What survives a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Somebody in the guest has opened it.
    pub guest_open: bool,
    /// Control messages that the driver has yet to get, as bits.
    pub owed: u8,
    /// How much of the first chain of the transmit queue has been written.
    pub sent_bytes: u32,
}

/// The port.
pub(super) struct Port<S> {
    pub(super) stream: S,
    pub(super) options: PortOptions,
    pub(super) state: PortState,
    receive_queue: u16,
    /// The stream has ended: nothing comes any more.
    ended: bool,
    /// Nobody takes what the guest writes.
    broken: bool,
}

impl<S: Stream> Port<S> {
    pub(super) fn new(stream: S, options: PortOptions, number: u16) -> Self {
        // The control queues stand behind those of the first port (section 5.3.2).
        let receive_queue = if number == 0 { 0 } else { number * 2 + 2 };
        Self { stream, options, state: PortState::default(), receive_queue, ended: false, broken: false }
    }

    /// Moves what can be moved.
    pub(super) fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.transmit(io)?;
        self.receive(io)
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        // What nobody has opened would be lost. A console is read by the kernel itself.
        let wanted = self.options.console || self.state.guest_open;
        let queue = self.receive_queue;
        if self.ended || !wanted || !io.is_ready(queue) {
            return Ok(());
        }
        let mut piece = [0; PIECE_BYTES];
        while let Some(chain) = io.pop(queue)? {
            let room = chain.writable_bytes().min(PIECE_BYTES);
            if room == 0 {
                return Err(Fault::Short("what comes in at a port"));
            }
            match self.stream.read(&mut piece[..room]) {
                Ok(count @ 1..) => {
                    let mut writer = chain.writer(io.memory());
                    writer.write(&piece[..count.min(room)])?;
                    let written = writer.written();
                    io.complete(queue, chain.head(), written)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => io.unpop(queue),
                other => {
                    self.ended = !matches!(other, Err(error) if error.kind() == ErrorKind::WouldBlock);
                    io.unpop(queue);
                    break;
                }
            }
        }
        io.signal(queue)
    }

    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let queue = self.receive_queue + 1;
        while let Some(chain) = io.pop(queue)? {
            let mut reader = chain.reader(io.memory());
            let all = reader.take(reader.remaining()).ok_or(Fault::Short("what goes out at a port"))?;
            let mut rest = all.skip(self.state.sent_bytes as usize);
            let mut piece = [0; PIECE_BYTES];
            let mut turn = 0;
            while !self.broken && !rest.is_empty() {
                if turn == TURN_PIECES {
                    io.unpop(queue);
                    io.again();
                    return io.signal(queue);
                }
                turn += 1;
                let length = rest.copy_to(&mut piece)?;
                match self.stream.write(&piece[..length]) {
                    Ok(count) => {
                        let count = count.min(length);
                        self.broken = count == 0;
                        self.state.sent_bytes += count as u32;
                        rest = rest.skip(count);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        io.unpop(queue);
                        return io.signal(queue);
                    }
                    Err(error) => self.broken = error.kind() != ErrorKind::Interrupted,
                }
            }
            self.state.sent_bytes = 0;
            io.complete(queue, chain.head(), 0)?;
        }
        io.signal(queue)
    }
}
