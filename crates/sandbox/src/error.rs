//! An error is a sentence about an object, with the chain of its causes.
//!
//! The chain is kept as text, because it crosses the border between processes: what fails inside the
//! container is sent to the runtime as data and printed there, once.

use serde::{Deserialize, Serialize};

moat_linux::sentence_error! {
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub,
    /// The exit code that the program should end with; 1 unless told.
    code: u8 = 1, with_code
}

impl Error {
    /// The beginning and the end of what it says, at most `bytes` of it.
    pub(crate) fn cut(&self, bytes: usize) -> Self {
        let text = self.to_string();
        if text.len() <= bytes {
            return Self { chain: vec![text], hint: None, code: self.code };
        }
        let half = bytes / 2;
        let (first, last) = (text.floor_char_boundary(half), text.ceil_char_boundary(text.len() - half));
        let (first, last) = (text.get(..first).unwrap_or_default(), text.get(last..).unwrap_or_default());
        Self { chain: vec![format!("{first} ... {last}")], hint: None, code: self.code }
    }
}

impl From<moat_linux::Error> for Error {
    fn from(error: moat_linux::Error) -> Self {
        Self::new(error.to_string())
    }
}
