//! Making and copying files below a root that is not trusted.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use moat_linux::fs::{self, Follow};
use moat_linux::{Errno, xattr};
use rustix::fs::{Dir, FileType, OFlags, Stat};

use crate::{Context, Error, Result};

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Symbolic links that dangle are followed to where they point, this many times.
const MAX_LINKS: usize = 40;

/// Opens `path` below `root` with O_PATH; what is missing of it is made. Symbolic links are followed as
/// if `root` were `/`, also those that dangle: an image may link /var/run to a /run that it does not have.
pub fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd> {
    make_limited(root, path, kind, MAX_LINKS)
}

fn make_limited(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: usize) -> Result<OwnedFd> {
    if let Some(found) = fs::find_in_root(root, path, OFlags::PATH, Follow::InRoot, &[Errno::NOENT])? {
        return Ok(found);
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
pub fn make_plain(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    if let Some(found) = fs::find_in_root(root, path, flags, Follow::Never, &[Errno::NOENT])? {
        return Ok(found);
    }
    make(root, path, Kind::Directory)?;
    Ok(fs::open_in_root(root, path, flags, 0, Follow::Never)?)
}

/// Copies what is below one directory into another, with modes, owners, times, attributes and hard links. What is
/// there already is an error; nothing is written outside `to`, whoever changes the two meanwhile. `owner` says who
/// owns the copy of what a user and a group own.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, owner: Owner<'_>) -> Result<()> {
    Copy { root: to, owner, links: HashMap::new() }.below(from, to, Path::new(""))
}

/// From the ids of a file to those of its copy.
pub type Owner<'a> = &'a dyn Fn(u32, u32) -> (u32, u32);

/// Gives `to` the mode, the owner, the attributes and the time of the directory `from`.
pub fn copy_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>, owner: Owner<'_>) -> Result<()> {
    let found = fs::stat(from)?;
    let (uid, gid) = owner(found.st_uid, found.st_gid);
    fs::chown(to, uid, gid)?;
    copy_attributes(from, to)?;
    // A change of owner clears set-user-ID bits.
    fs::chmod_descriptor(to, found.st_mode & 0o7777)?;
    set_times(to, &found)
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    owner: Owner<'a>,
    /// Where files with several names were copied to, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    /// `path` is that of `to` below the root.
    fn below(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let readable = fs::open_at(from, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let entries = Dir::read_from(&readable).map_err(std::io::Error::from)?;
        for entry in entries {
            let entry = entry.map_err(std::io::Error::from)?;
            let bytes = entry.file_name().to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(bytes);
            self.entry(from, to, path, Path::new(name)).context(|| name.to_string_lossy())?;
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path, name: &Path) -> Result<()> {
        let source = fs::open_at(from, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        let found = fs::stat(source.as_fd())?;
        let mode = found.st_mode & 0o7777;
        let kind = FileType::from_raw_mode(found.st_mode);
        let path = path.join(name);
        if kind != FileType::Directory && found.st_nlink > 1 {
            let first = self.links.get(&(found.st_dev, found.st_ino));
            if let Some(first) = first {
                let first =
                    fs::open_in_root(self.root, first, OFlags::PATH | OFlags::NOFOLLOW, 0, Follow::Never)?;
                return Ok(fs::link_descriptor(first.as_fd(), to, name)?);
            }
            self.links.insert((found.st_dev, found.st_ino), path.clone());
        }
        match kind {
            FileType::Directory => {
                fs::mkdir_at(to, name, 0o700)?;
                let below = fs::open_at(to, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
                self.below(source.as_fd(), below.as_fd(), &path)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                let mut target = File::from(fs::open_at(to, name, flags, 0o600)?);
                // The file that was looked at, whatever bears its name by now.
                let mut reader = File::from(fs::reopen(source.as_fd(), OFlags::RDONLY)?);
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
        let (uid, gid) = (self.owner)(found.st_uid, found.st_gid);
        fs::chown(made.as_fd(), uid, gid)?;
        if kind != FileType::Symlink {
            // Attributes after the owner, whose change clears file capabilities, and set-user-ID bits.
            copy_attributes(source.as_fd(), made.as_fd())?;
            fs::chmod_descriptor(made.as_fd(), mode)?;
        }
        set_times(made.as_fd(), &found)
    }
}

/// Copies extended attributes. Those of an overlay describe its layers, and are nobody else's.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in xattr::list(from)? {
        let bytes = name.to_bytes();
        if bytes.starts_with(b"trusted.overlay.") || bytes.starts_with(b"user.overlay.") {
            continue;
        }
        let Some(value) = xattr::get(from, &name)? else { continue };
        match xattr::set(to, &name, &value) {
            // A label that the file system has by itself, or one that only another policy knows.
            Err(error)
                if bytes.starts_with(b"security.selinux")
                    && matches!(error.errno(), Errno::NOTSUP | Errno::PERM | Errno::INVAL) => {}
            other => other?,
        }
    }
    Ok(())
}

fn set_times(fd: BorrowedFd<'_>, found: &Stat) -> Result<()> {
    let access = (found.st_atime, found.st_atime_nsec as i64);
    Ok(fs::set_times(fd, access, (found.st_mtime, found.st_mtime_nsec as i64))?)
}
