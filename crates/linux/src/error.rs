//! The error of a system call: the call as strace(1) would print it, and the name of the errno.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// A failed system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    call: &'static str,
    args: String,
    errno: Errno,
}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Names the call and prints its arguments.
    pub fn new(call: &'static str, args: impl Into<String>, errno: Errno) -> Self {
        Self { call, args: args.into(), errno }
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}): {}", self.call, self.args, errno_name(self.errno))
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::new(Self::from(error.errno).kind(), error)
    }
}

/// Puts the call's name and arguments to an errno; the arguments are printed only when it failed.
pub(crate) fn named<T>(
    result: rustix::io::Result<T>,
    call: &'static str,
    args: impl FnOnce() -> String,
) -> Result<T> {
    result.map_err(|errno| Error::new(call, args(), errno))
}

/// Turns the C convention (-1 and `errno`) into a result.
pub(crate) fn syscall(returned: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if returned != -1 {
        return Ok(returned);
    }
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(code))
}

/// A file descriptor as an error prints it: `{7}</srv/x>`.
pub fn fd_name(fd: BorrowedFd<'_>) -> String {
    let raw = fd.as_raw_fd();
    if raw == libc::AT_FDCWD {
        return "AT_FDCWD".to_owned();
    }
    match std::fs::read_link(format!("/proc/self/fd/{raw}")) {
        Ok(path) => format!("{{{raw}}}<{}>", path.display()),
        Err(_) => format!("{{{raw}}}"),
    }
}

macro_rules! errno_names {
    ($($name:ident)*) => {
        /// The symbolic name of an error number, `errno N` for one that has none here.
        pub fn errno_name(errno: Errno) -> String {
            match errno.raw_os_error() {
                $(libc::$name => stringify!($name).to_owned(),)*
                other => format!("errno {other}"),
            }
        }
    };
}

errno_names! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
    EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
    EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA EOVERFLOW EBADFD EUSERS
    ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT EADDRINUSE
    EADDRNOTAVAIL ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT
    ECONNREFUSED EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED
    EBADMSG EPROTO EILSEQ
}
