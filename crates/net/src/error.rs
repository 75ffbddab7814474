//! An error is a sentence about an object, with the chain of its causes.

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

moat_linux::sentence_error! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate),
    /// What it means.
    kind: ErrorKind = ErrorKind::Host, with_kind
}

impl Error {
    pub(crate) fn host(sentence: impl Into<String>) -> Self {
        Self::new(sentence)
    }

    pub(crate) fn invalid(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::Invalid)
    }

    pub(crate) fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::Conflict)
    }

    pub(crate) fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(sentence).with_kind(ErrorKind::NotFound)
    }
}

impl From<moat_linux::Error> for Error {
    fn from(error: moat_linux::Error) -> Self {
        let text = error.to_string();
        if error.errno() == moat_linux::Errno::PERM {
            let hint =
                "networks of the host are made by root; run it with `--network none` or `--network host`";
            return Self::host(text).hint(hint);
        }
        Self::host(text)
    }
}
