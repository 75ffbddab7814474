//! An error is a sentence about an object, with the chain of its causes.
//!
//! The chain is kept as text, because it crosses the border between processes: what fails in the monitor
//! is sent to whoever asked for the start, and printed there, once.

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

moat_linux::sentence_error! {
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub,
    /// What sort of failure it is.
    kind: ErrorKind = ErrorKind::Failed, with_kind
}

impl Error {
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

    /// With no sentence longer than `limit` bytes, and at most as many of them.
    pub(crate) fn within(&self, limit: usize) -> Self {
        let short = |text: &String| crate::frame::cut(text, limit).to_owned();
        Self {
            chain: self.chain.iter().take(limit).map(short).collect(),
            hint: self.hint.as_ref().map(short),
            kind: self.kind,
        }
    }

    /// The sentences, from the outermost to the cause.
    pub fn chain(&self) -> &[String] {
        &self.chain
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

impl From<moat_net::Error> for Error {
    fn from(error: moat_net::Error) -> Self {
        let kind = match error.kind() {
            moat_net::ErrorKind::NotFound => ErrorKind::NotFound,
            moat_net::ErrorKind::Conflict => ErrorKind::Conflict,
            moat_net::ErrorKind::Invalid => ErrorKind::Invalid,
            moat_net::ErrorKind::Host => ErrorKind::Failed,
        };
        Self { chain: vec![error.to_string()], hint: error.hint_text().map(str::to_owned), kind }
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
