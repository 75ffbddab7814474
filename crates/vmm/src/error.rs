//! An error is a sentence about an object, with the chain of its causes and what the user can do.

moat_linux::sentence_error! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub,
    /// The exit code that the program should end with; 1 unless told.
    code: u8 = 1, with_code
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
