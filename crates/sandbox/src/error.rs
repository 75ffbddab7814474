//! An error is a sentence about an object, with the chain of its causes.
//!
//! The chain is kept as text, because it crosses the border between processes: what fails inside the
//! container is sent to the runtime as data and printed there, once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong: sentences from the outermost to the cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    chain: Vec<String>,
    hint: Option<String>,
    /// The exit code that the runtime ends with.
    code: u8,
}

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One sentence about an object.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { chain: vec![sentence.into()], hint: None, code: 1 }
    }

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

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code; 1 unless told.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit code that the program should end with.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// What the user can do, where something is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::error::Error for Error {}

/// Puts a sentence in front of an error.
pub trait Context<T> {
    /// `what` names the object; it is evaluated only for an error.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let mut error = error.into();
            error.chain.insert(0, what().into());
            error
        })
    }
}

impl From<moat_linux::Error> for Error {
    fn from(error: moat_linux::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let text = match (error.raw_os_error(), error.get_ref()) {
            (Some(code), None) => moat_linux::errno_name(moat_linux::Errno::from_raw_os_error(code)),
            _ => error.to_string(),
        };
        Self::new(text)
    }
}
