//! An error is a sentence about an object, with the chain of its causes and what the user can do.

use std::fmt;

/// What went wrong: sentences from the outermost to the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    chain: Vec<String>,
    hint: Option<String>,
    /// The exit code that the monitor ends with.
    code: u8,
}

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One sentence about an object.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { chain: vec![sentence.into()], hint: None, code: 1 }
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

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::new(moat_linux::errno_name(errno))
    }
}
