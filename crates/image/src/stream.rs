//! A bounded pipe of bytes between two threads, whose reader can tell an end from a failure.
//!
//! Chunks go round: what the reader has emptied, the writer fills again. So the memory of a pipe is fixed.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};

/// Bytes in a chunk, and chunks in a pipe.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 4;

enum Message {
    Chunk(Vec<u8>),
    End,
}

/// The writing end. Dropped without [`finish`](Self::finish) it is a failure to the reader.
pub(crate) struct PipeWriter {
    full: SyncSender<Message>,
    empty: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    made: usize,
}

/// The reading end.
pub(crate) struct PipeReader {
    full: Receiver<Message>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (full, from_full) = sync_channel(CHUNKS);
    let (empty, from_empty) = channel();
    let writer = PipeWriter { full, empty: from_empty, chunk: Vec::new(), made: 0 };
    (writer, PipeReader { full: from_full, empty, chunk: Vec::new(), at: 0, ended: false })
}

/// The error of a pipe whose other end is gone; whoever dropped that end has the reason.
fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the other end of the pipe is gone")
}

/// Whether an error only says that the other thread has failed.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe && error.raw_os_error().is_none()
}

impl PipeWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.full.send(Message::Chunk(chunk)).map_err(|_| gone())
    }

    fn room(&mut self) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_BYTES {
            self.send()?;
        }
        if self.chunk.capacity() == 0 {
            self.chunk = match self.empty.try_recv() {
                Ok(chunk) => chunk,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) if self.made <= CHUNKS => {
                    self.made += 1;
                    Vec::with_capacity(CHUNK_BYTES)
                }
                Err(_) => self.empty.recv().map_err(|_| gone())?,
            };
            self.chunk.clear();
        }
        Ok(CHUNK_BYTES - self.chunk.len())
    }

    /// Reads once from `from` straight into the pipe; `each` sees the bytes. 0 at the end of `from`.
    pub(crate) fn fill_from(
        &mut self,
        from: &mut impl Read,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<usize> {
        self.room()?;
        let start = self.chunk.len();
        self.chunk.resize(CHUNK_BYTES, 0);
        let read = from.read(self.chunk.get_mut(start..).unwrap_or_default());
        let count = *read.as_ref().unwrap_or(&0);
        self.chunk.truncate(start + count);
        each(self.chunk.get(start..).unwrap_or_default());
        read
    }

    /// Tells the reader that this was all.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.send()?;
        self.full.send(Message::End).map_err(|_| gone())
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.room()?.min(bytes.len());
        self.chunk.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() && !self.ended {
            let used = std::mem::take(&mut self.chunk);
            if used.capacity() > 0 {
                // The writer may have finished.
                let _ = self.empty.send(used);
            }
            self.at = 0;
            match self.full.recv().map_err(|_| gone())? {
                Message::Chunk(chunk) => self.chunk = chunk,
                Message::End => self.ended = true,
            }
        }
        Ok(self.chunk.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.chunk.len());
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut here = self.fill_buf()?;
        let count = here.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_arrives_in_order() {
        let (mut writer, mut reader) = pipe();
        let bytes: Vec<u8> = (0..5_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        let expected = bytes.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&bytes[..1_000_000])?;
            let mut rest = &bytes[1_000_000..];
            while writer.fill_from(&mut rest, |_| {})? > 0 {}
            writer.finish()
        });
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        thread.join().unwrap().unwrap();
        assert!(read == expected);
    }

    #[test]
    fn a_dropped_writer_is_no_end() {
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"abc").unwrap();
        writer.flush().unwrap();
        drop(writer);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(is_gone(&error));
    }

    #[test]
    fn a_dropped_reader_stops_the_writer() {
        let (mut writer, reader) = pipe();
        drop(reader);
        let error = writer.write_all(&vec![0; 10 * CHUNK_BYTES]).unwrap_err();
        assert!(is_gone(&error));
    }
}
