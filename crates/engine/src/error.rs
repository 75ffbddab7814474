//! An error is a sentence about an object, with the chain of its causes.
//!
//! The chain is kept as text, because it crosses the border between processes: what fails in the monitor
//! is sent to whoever asked for the start, and printed there, once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What sort of failure it is, for those who choose an exit code or an HTTP status by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Anything else.
    #[default]
    Failed,
    /// An object of that name does not exist.
    NotFound,
    /// The object exists already, or its state does not allow it.
    Conflict,
    /// What was asked for is not possible, whatever the state.
    Invalid,
    /// The workload's program was not found: exit code 127.
    ProgramNotFound,
    /// The workload's program can not be executed: exit code 126.
    NotExecutable,
}

/// What went wrong: sentences from the outermost to the cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    chain: Vec<String>,
    hint: Option<String>,
    kind: ErrorKind,
}

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One sentence about an object.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { chain: vec![sentence.into()], hint: None, kind: ErrorKind::Failed }
    }

    /// An object that does not exist.
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::NotFound)
    }

    /// An object that exists already, or whose state does not allow it.
    pub fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::Conflict)
    }

    /// A wish that can not be fulfilled.
    pub fn invalid(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::Invalid)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do, where something is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The sentences, from the outermost to the cause.
    pub fn chain(&self) -> &[String] {
        &self.chain
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

impl From<moat_sandbox::Error> for Error {
    fn from(error: moat_sandbox::Error) -> Self {
        Self {
            chain: vec![error.to_string()],
            hint: error.hint_text().map(str::to_owned),
            kind: ErrorKind::Failed,
        }
    }
}

impl From<moat_image::Error> for Error {
    fn from(error: moat_image::Error) -> Self {
        let kind = match error.kind() {
            moat_image::Kind::NotFound => ErrorKind::NotFound,
            moat_image::Kind::InUse => ErrorKind::Conflict,
            moat_image::Kind::Ambiguous => ErrorKind::Invalid,
            _ => ErrorKind::Failed,
        };
        Self { chain: vec![error.to_string()], hint: error.hint_text().map(str::to_owned), kind }
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

impl From<moat_linux::Errno> for Error {
    fn from(errno: moat_linux::Errno) -> Self {
        Self::new(moat_linux::errno_name(errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_reads_as_one_sentence_and_survives_the_way_between_processes() {
        let failed: std::result::Result<(), std::io::Error> = Err(std::io::Error::from_raw_os_error(28));
        let error = failed.context(|| "write state.json").context(|| "workload web").unwrap_err();
        let error = error.hint("free some space").with_kind(ErrorKind::Conflict);
        assert_eq!(error.to_string(), "workload web: write state.json: ENOSPC");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
    }
}
