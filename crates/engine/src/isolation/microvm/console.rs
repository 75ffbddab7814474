//! What comes out of a machine's serial port: its end is kept, to say why the machine has ended.

use std::io::{PipeReader, Read};

use crate::guest::words;

/// How much is kept.
const CONSOLE_BYTES: usize = 8 << 10;

/// What the guest's kernel and its monitor have to say.
pub(super) struct Console {
    pub(super) pipe: PipeReader,
    tail: Vec<u8>,
    /// Nobody writes any more.
    pub(super) over: bool,
}

impl Console {
    /// What comes out of `pipe`, which does not block.
    pub(super) fn new(pipe: PipeReader) -> Self {
        Self { pipe, tail: Vec::new(), over: false }
    }

    /// Takes what is there; false at its end.
    pub(super) fn take(&mut self) -> bool {
        let mut part = [0; 4096];
        loop {
            match self.pipe.read(&mut part) {
                Ok(0) => return false,
                Ok(count) => {
                    self.tail.extend_from_slice(part.get(..count).unwrap_or_default());
                    let surplus = self.tail.len().saturating_sub(CONSOLE_BYTES);
                    self.tail.drain(..surplus);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// The line that says most: that of a panic, else the last.
    pub(super) fn verdict(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines().find(|line| line.contains("Kernel panic")).or_else(|| lines().next_back());
        line.map(words)
    }
}
