//! What a vsock device needs of the host.

use std::io;

/// The number of a stream of the host. None is used twice.
pub type StreamId = u64;

/// Something has happened on the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Somebody wants to reach a port of the guest.
    Incoming {
        /// The way to that somebody.
        stream: StreamId,
        /// The guest's port.
        port: u32,
    },
    /// A stream can be read or written again, or has ended.
    Ready(StreamId),
}

/// The host's side. Nothing blocks: what would is `WouldBlock`, and an event tells when that has changed.
pub trait Host: Send {
    /// Connects to what listens behind a port of the host.
    fn connect(&mut self, port: u32) -> io::Result<StreamId>;

    /// What has happened since; `None` until something happens.
    fn next_event(&mut self) -> Option<HostEvent>;

    /// The guest has taken an incoming stream; `port` is the host's end of it.
    fn taken(&mut self, stream: StreamId, port: u32) -> io::Result<()>;

    /// Reads; 0 is the end.
    fn read(&mut self, stream: StreamId, to: &mut [u8]) -> io::Result<usize>;

    /// Writes; returns how much was taken.
    fn write(&mut self, stream: StreamId, from: &[u8]) -> io::Result<usize>;

    /// Nothing more will be written.
    fn finish(&mut self, stream: StreamId);

    /// The stream is over.
    fn close(&mut self, stream: StreamId);
}
