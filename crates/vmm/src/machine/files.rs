//! Opening what a specification names: by path, or by the number of an inherited descriptor.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::{Context, Error, Result};

/// The descriptor's number, where a name is `fd:N`.
fn number(name: &str) -> Result<Option<i32>> {
    let Some(number) = name.strip_prefix("fd:") else { return Ok(None) };
    match number.parse() {
        // What stands on 0 to 2 is the guest's console.
        Ok(number @ 3..) => Ok(Some(number)),
        _ => Err(Error::new(format!("{name:?} names no descriptor"))
            .hint("an inherited descriptor is fd:N, N being 3 or more")),
    }
}

/// An inherited descriptor; `None` where the name is a path.
pub(super) fn inherited(name: &str) -> Result<Option<OwnedFd>> {
    let Some(number) = number(name)? else { return Ok(None) };
    // Two names of one number are two descriptors: the number itself is never closed.
    Ok(Some(moat_linux::fs::duplicate_inherited(number).context(|| format!("inherited file {name}"))?))
}

/// Opens a file for reading: a kernel, an initial file system, a snapshot.
pub(crate) fn open(what: &str, name: &str) -> Result<File> {
    if let Some(fd) = inherited(name)? {
        return Ok(File::from(fd));
    }
    let context = || format!("{what} {name}");
    // Non-blocking, for a name may be a FIFO, whose open would wait for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(Path::new(name), flags, Mode::empty()).context(context)?);
    if !file.metadata().context(context)?.is_file() {
        return Err(Error::new("it is no regular file")).context(context);
    }
    Ok(file)
}

/// The folder in which a path lies.
pub(crate) fn folder_of(path: &str) -> Result<OwnedFd> {
    let parent = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())
        .context(|| format!("folder of {path}"))
}

/// Opens a disk.
pub(super) fn open_disk(name: &str, read_only: bool) -> Result<File> {
    match inherited(name)? {
        Some(fd) => Ok(File::from(fd)),
        None => crate::backend::open_disk(Path::new(name), read_only),
    }
}

/// Opens a channel of bytes both ways, of which no call blocks: a terminal, a FIFO, or a unix socket at which
/// somebody listens.
pub(super) fn open_channel(name: &str) -> Result<OwnedFd> {
    use std::os::unix::fs::FileTypeExt;
    if let Some(fd) = inherited(name)? {
        // What is inherited is this machine's alone, so the flag is nobody else's.
        rustix::io::ioctl_fionbio(&fd, true)?;
        return Ok(fd);
    }
    let kind = std::fs::metadata(name)?.file_type();
    if kind.is_socket() {
        let socket = UnixStream::connect(name)?;
        socket.set_nonblocking(true)?;
        return Ok(OwnedFd::from(socket));
    }
    if !kind.is_fifo() && !kind.is_char_device() {
        return Err(Error::new("it is no terminal, no FIFO and no socket"));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(name, flags, Mode::empty())?)
}

/// Whether a descriptor's number is the caller's own; only for messages.
pub(super) fn describe(file: &File) -> String {
    format!("descriptor {}", file.as_raw_fd())
}
