//! An error is a sentence about an object, with the chain of its causes, and a kind where callers decide by it.

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

moat_linux::sentence_error! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub,
    /// What callers may tell apart.
    kind: Kind = Kind::Other, with_kind
}

impl Error {
    /// The sentences, from the outermost to the cause.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.chain.iter().map(String::as_str)
    }
}

impl From<moat_linux::Error> for Error {
    fn from(error: moat_linux::Error) -> Self {
        Self::new(error.to_string())
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
