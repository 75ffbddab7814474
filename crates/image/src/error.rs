//! An error is a sentence about an object, with the chain of its causes, and a kind where callers decide by it.

use std::fmt;

/// What a caller may want to tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that a caller would handle otherwise than by printing it.
    #[default]
    Other,
    /// There is no image, blob or repository of that name.
    NotFound,
    /// A name or id fits several images.
    Ambiguous,
    /// Something still uses it.
    InUse,
    /// The registry wants other credentials, or grants these not enough.
    Unauthorized,
    /// A digest, size or format is not what was promised.
    Corrupt,
    /// A layer or a document is larger than its limit.
    TooLarge,
}

/// What went wrong: sentences from the outermost to the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    chain: Vec<String>,
    hint: Option<String>,
    kind: Kind,
}

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One sentence about an object.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { chain: vec![sentence.into()], hint: None, kind: Kind::Other }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What callers may tell apart.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do, where something is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The sentences, from the outermost to the cause.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.chain.iter().map(String::as_str)
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
        // An error of ours that travelled through an interface of std comes out as it went in.
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
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

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
