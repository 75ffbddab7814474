//! An error is a sentence about an object, with the chain of its causes.

use std::fmt;

/// What an error means to a caller who has to choose a code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such network, workload or place.
    NotFound,
    /// A name, an address or a port is taken, or something is still in use.
    Conflict,
    /// What was asked for makes no sense, or is not supported.
    Invalid,
    /// All else: the host refused.
    Host,
}

/// What went wrong: sentences from the outermost to the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    chain: Vec<String>,
    hint: Option<String>,
    kind: ErrorKind,
}

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One sentence about an object.
    pub fn new(kind: ErrorKind, sentence: impl Into<String>) -> Self {
        Self { chain: vec![sentence.into()], hint: None, kind }
    }

    pub(crate) fn host(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Host, sentence)
    }

    pub(crate) fn invalid(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, sentence)
    }

    pub(crate) fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, sentence)
    }

    pub(crate) fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, sentence)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What it means.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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
pub(crate) trait Context<T> {
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
        let text = error.to_string();
        if error.errno() == moat_linux::Errno::PERM {
            let hint =
                "networks of the host are made by root; without it a container gets its network from pasta";
            return Self::host(text).hint(hint);
        }
        Self::host(text)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let text = match (error.raw_os_error(), error.get_ref()) {
            (Some(code), None) => moat_linux::errno_name(moat_linux::Errno::from_raw_os_error(code)),
            _ => error.to_string(),
        };
        Self::host(text)
    }
}
