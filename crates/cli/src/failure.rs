//! Why a command failed: a sentence, its causes, what can be done, and the exit code.
//!
//! Exit codes are Docker's: 125 when Moat itself failed to run a workload, 126 and 127 when its program could
//! not be executed or was not found, 1 for all else.

use std::io::Write;

use moat_engine::ErrorKind;

/// The exit code of `run`, `create`, `start` and `exec` where the fault is not the program's.
pub(crate) const ENGINE: u8 = 125;

/// The result of a command's parts.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    hint: Option<String>,
    code: Option<u8>,
}

impl Failure {
    /// A sentence about an object.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), hint: None, code: None }
    }

    /// Whoever read standard output has gone away: nothing is printed, and the code is that of SIGPIPE.
    pub(crate) fn gone() -> Self {
        Self::new("").code(141)
    }

    /// What was printed already; only the exit code is left to say.
    pub(crate) fn told(code: u8) -> Self {
        Self::new("").code(code)
    }

    /// Adds what can be done about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = Some(code);
        self
    }

    /// The exit code: `usual` where the failure has none of its own.
    pub(crate) fn exit_code(&self, usual: u8) -> u8 {
        self.code.unwrap_or(usual)
    }

    /// Prints the failure once.
    pub(crate) fn print(&self) {
        if self.sentence.is_empty() {
            return;
        }
        let hint = self.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        // A closed standard error leaves nowhere to complain.
        let _ = writeln!(std::io::stderr(), "moat: {}{hint}", self.sentence);
    }
}

/// Puts a sentence before a failure.
pub(crate) trait Context<T> {
    /// `what` names the object; it is evaluated only for an error.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let mut failure = error.into();
            failure.sentence = format!("{}: {}", what().into(), failure.sentence);
            failure
        })
    }
}

impl From<moat_engine::Error> for Failure {
    fn from(error: moat_engine::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::ProgramNotFound => Some(127),
            ErrorKind::NotExecutable => Some(126),
            _ => None,
        };
        Self { sentence: error.to_string(), hint: error.hint_text().map(str::to_owned), code }
    }
}

impl From<moat_engine::image::Error> for Failure {
    fn from(error: moat_engine::image::Error) -> Self {
        Self { sentence: error.to_string(), hint: error.hint_text().map(str::to_owned), code: None }
    }
}

impl From<moat_linux::Error> for Failure {
    fn from(error: moat_linux::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::new(sentence)
    }
}
