//! Paths of a side: where something is copied from, and where it goes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags, Stat};

use super::PathStat;
use crate::{Context, Error, Result, Timestamp};

/// Symbolic links that dangle are followed to where they point, this many times.
const MAX_LINKS: usize = 40;

/// Something that is copied, by its descriptor.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
    /// The last part of the path; `.` for the root itself.
    pub(super) name: PathBuf,
    /// The path ended with `/.`: the folder's content is meant.
    pub(super) contents_only: bool,
}

impl Source {
    /// Finds `path` below `root`. A symbolic link at its end is followed if asked for, or if the path says that it is
    /// a folder.
    ///
    /// Errors: it is not there; it is no folder though the path says so; it is of the kernel's own file systems.
    pub(super) fn find(root: BorrowedFd<'_>, path: &str, follow: bool) -> Result<Self> {
        let ending = Ending::of(path);
        let follow = if follow || ending.wants_folder { Follow::InRoot } else { Follow::InRootNoLast };
        let flags = OFlags::PATH | if follow == Follow::InRoot { OFlags::empty() } else { OFlags::NOFOLLOW };
        let fd = match fs::open_in_root(root, &rooted(ending.stem), flags, 0, follow) {
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::not_found("there is no such file or folder"));
            }
            other => other?,
        };
        let stat = fs::stat(fd.as_fd())?;
        if ending.wants_folder && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Error::invalid("it is not a folder"));
        }
        if is_of_the_kernel(fd.as_fd())? {
            return Err(Error::invalid("it is not a file but something that the kernel shows"));
        }
        let name = Path::new(ending.stem).file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
        Ok(Self { fd, stat, name, contents_only: ending.contents_only })
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What the archive's entries begin with.
    pub(super) fn archive_name(&self) -> PathBuf {
        if self.contents_only { PathBuf::from(".") } else { self.name.clone() }
    }

    pub(super) fn stat(&self) -> Result<PathStat> {
        let link_target = match self.kind() {
            FileType::Symlink => Some(fs::read_link(self.fd.as_fd())?.display().to_string()),
            _ => None,
        };
        let seconds = std::time::Duration::from_secs(self.stat.st_mtime.max(0).unsigned_abs());
        Ok(PathStat {
            name: self.name.display().to_string(),
            size_bytes: self.stat.st_size.unsigned_abs(),
            mode: self.stat.st_mode,
            modified: Timestamp::from(std::time::UNIX_EPOCH + seconds),
            link_target,
        })
    }
}

/// What the end of a path says.
struct Ending<'a> {
    /// The path without it.
    stem: &'a str,
    wants_folder: bool,
    contents_only: bool,
}

impl<'a> Ending<'a> {
    fn of(path: &'a str) -> Self {
        if let Some(stem) = path.strip_suffix('.').filter(|stem| stem.is_empty() || stem.ends_with('/')) {
            return Self { stem: stem.trim_end_matches('/'), wants_folder: true, contents_only: true };
        }
        let stem = path.trim_end_matches('/');
        Self { stem, wants_folder: stem.len() < path.len(), contents_only: false }
    }
}

/// A path of a side always begins at its root.
fn rooted(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// Whether it lies in a file system in which files are not files: reading them may have effects, and never end.
pub(super) fn is_of_the_kernel(fd: BorrowedFd<'_>) -> Result<bool> {
    /// Of the kernel's linux/magic.h.
    const MAGIC: [u64; 13] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x1cd1,      // devpts
        0x1980_0202, // mqueue
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
        0x6265_6570, // configfs
    ];
    Ok(MAGIC.contains(&fs::filesystem_magic(fd)?))
}

/// Where something goes.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: TargetKind,
    /// For messages.
    pub(super) path: String,
    /// The path ended with a slash.
    pub(super) wants_folder: bool,
}

#[derive(Debug)]
pub(super) enum TargetKind {
    /// A folder that is there.
    Folder(OwnedFd),
    /// Something else that is there, in this folder under this name.
    File { parent: OwnedFd, name: PathBuf },
    /// Nothing yet, in this folder.
    Missing { parent: OwnedFd, name: PathBuf },
}

impl Target {
    /// Finds `path` below `root`; symbolic links are followed, also one at its end, also one that dangles.
    ///
    /// Errors: the folder that it would be in is not there; it is of the kernel's own file systems.
    pub(super) fn find(root: BorrowedFd<'_>, path: &str) -> Result<Self> {
        let ending = Ending::of(path);
        let kind = Self::resolve(root, &rooted(ending.stem), MAX_LINKS)?;
        let folder = match &kind {
            TargetKind::Folder(folder) => folder,
            TargetKind::File { parent, .. } | TargetKind::Missing { parent, .. } => parent,
        };
        if is_of_the_kernel(folder.as_fd())? {
            return Err(Error::invalid(
                "it is in a file system that the kernel shows, nothing can be copied there",
            ));
        }
        Ok(Self { kind, path: path.to_owned(), wants_folder: ending.wants_folder })
    }

    fn resolve(root: BorrowedFd<'_>, path: &Path, links: usize) -> Result<TargetKind> {
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        match fs::open_in_root(root, path, folder, 0, Follow::InRoot) {
            Ok(found) => return Ok(TargetKind::Folder(found)),
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(name) = path.file_name() else {
            return Err(Error::not_found("the folder does not exist"));
        };
        let above = path.parent().unwrap_or(Path::new("/"));
        let parent = match fs::open_in_root(root, above, folder, 0, Follow::InRoot) {
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::not_found(format!("the folder {} does not exist", above.display())));
            }
            other => other?,
        };
        let name = PathBuf::from(name);
        let found = match fs::stat_at(parent.as_fd(), &name)? {
            None => return Ok(TargetKind::Missing { parent, name }),
            Some(found) => found,
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            return Ok(TargetKind::File { parent, name });
        }
        let Some(left) = links.checked_sub(1) else {
            return Err(Error::invalid("there are too many symbolic links"));
        };
        let link = fs::open_at(parent.as_fd(), &name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        let target = fs::read_link(link.as_fd()).context(|| name.display().to_string())?;
        Self::resolve(root, &above.join(target), left)
    }

    /// The folder.
    ///
    /// Errors: it is not there, or is none.
    pub(super) fn into_folder(self) -> Result<OwnedFd> {
        match self.kind {
            TargetKind::Folder(folder) => Ok(folder),
            TargetKind::File { .. } => Err(Error::invalid(format!("{} is not a folder", self.path))),
            TargetKind::Missing { .. } => {
                Err(Error::not_found(format!("the folder {} does not exist", self.path)))
            }
        }
    }

    /// The folder that it is or will be in, and its name there.
    pub(super) fn into_parent(self) -> Result<(OwnedFd, PathBuf)> {
        match self.kind {
            TargetKind::File { parent, name } | TargetKind::Missing { parent, name } => Ok((parent, name)),
            TargetKind::Folder(_) => Err(Error::new(format!("{} is a folder", self.path))),
        }
    }
}
