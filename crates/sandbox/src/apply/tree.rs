//! Making and copying files below a root that is not trusted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{Dir, FileType, OFlags};

use crate::{Context, Error, Result};

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Symbolic links that dangle are followed to where they point, this many times.
const MAX_LINKS: usize = 40;

/// Opens `path` below `root` with O_PATH; what is missing of it is made. Symbolic links are followed as
/// if `root` were `/`, also those that dangle: an image may link /var/run to a /run that it does not have.
pub(super) fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd> {
    make_limited(root, path, kind, MAX_LINKS)
}

fn make_limited(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: usize) -> Result<OwnedFd> {
    match fs::open_in_root(root, path, OFlags::PATH, 0, Follow::InRoot) {
        Err(error) if error.errno() == Errno::NOENT => {}
        other => return Ok(other?),
    }
    let Some(left) = links.checked_sub(1) else {
        return Err(Error::new(format!("{}: too many symbolic links", path.display())));
    };
    let parts: Vec<Component<'_>> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .collect();
    let Some((Component::Normal(name), above)) = parts.split_last() else {
        return Err(Error::new(format!("{} can not be made below the root", path.display())));
    };
    let above: PathBuf = above.iter().collect();
    let parent = if above.as_os_str().is_empty() {
        fs::open_in_root(root, Path::new("/"), OFlags::PATH, 0, Follow::InRoot)?
    } else {
        make_limited(root, &above, Kind::Directory, left)?
    };
    let name = Path::new(name);
    let made = match kind {
        Kind::Directory => fs::mkdir_at(parent.as_fd(), name, 0o755),
        Kind::File => {
            fs::open_at(parent.as_fd(), name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, 0o644).map(drop)
        }
    };
    match made {
        Ok(()) => {}
        Err(error) if error.errno() == Errno::EXIST => {
            return follow_dangling(root, &parent, &above, name, kind, left);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(fs::open_at(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, 0)?)
}

fn follow_dangling(
    root: BorrowedFd<'_>,
    parent: &OwnedFd,
    above: &Path,
    name: &Path,
    kind: Kind,
    links: usize,
) -> Result<OwnedFd> {
    let link = fs::open_at(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
    if FileType::from_raw_mode(fs::stat(link.as_fd())?.st_mode) != FileType::Symlink {
        // Somebody made it in this moment; it is below the root, which is all that matters.
        return Ok(link);
    }
    make_limited(root, &above.join(fs::read_link(link.as_fd())?), kind, links)
}

/// As [`make`] for a directory, but no symbolic link may be on the way.
pub(super) fn make_plain(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match fs::open_in_root(root, path, flags, 0, Follow::Never) {
        Err(error) if error.errno() == Errno::NOENT => {
            make(root, path, Kind::Directory)?;
            Ok(fs::open_in_root(root, path, flags, 0, Follow::Never)?)
        }
        other => Ok(other?),
    }
}

/// Copies what is below one directory into another: files, directories, links, modes, owners.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let readable = fs::open_at(from, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    let entries = Dir::read_from(&readable).map_err(std::io::Error::from)?;
    for entry in entries {
        let entry = entry.map_err(std::io::Error::from)?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(bytes);
        copy_entry(from, to, Path::new(name)).context(|| name.to_string_lossy())?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let source = fs::open_at(from, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
    let found = fs::stat(source.as_fd())?;
    let mode = found.st_mode & 0o7777;
    let kind = FileType::from_raw_mode(found.st_mode);
    match kind {
        FileType::Directory => {
            fs::mkdir_at(to, name, mode)?;
            let below = fs::open_at(to, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
            copy(source.as_fd(), below.as_fd())?;
        }
        FileType::RegularFile => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let mut target = std::fs::File::from(fs::open_at(to, name, flags, mode)?);
            let mut reader =
                std::fs::File::from(fs::open_at(from, name, OFlags::RDONLY | OFlags::NOFOLLOW, 0)?);
            std::io::copy(&mut reader, &mut target)?;
        }
        FileType::Symlink => fs::symlink_at(&fs::read_link(source.as_fd())?, to, name)?,
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
            let (major, minor) = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
            fs::mknod_at(to, name, kind, mode, major, minor)?;
        }
        // A socket is of no use without the process that listens.
        _ => return Ok(()),
    }
    let made = fs::open_at(to, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
    fs::chown(made.as_fd(), found.st_uid, found.st_gid)?;
    if matches!(kind, FileType::RegularFile | FileType::Directory) {
        // A change of owner clears set-user-ID bits.
        fs::chmod_at(to, name, mode)?;
    }
    Ok(())
}
