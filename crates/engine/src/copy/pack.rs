//! From a tree to a tar stream. The tree may belong to a workload that changes it meanwhile.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_image::{EntryType, Metadata, TarWriter};
use moat_linux::{fs, xattr};
use rustix::fs::{FileType, OFlags, Stat};

use super::Ids;
use super::place::{Source, is_of_the_kernel};
use crate::{Context, Result};

struct Pack<'a, W: Write> {
    to: TarWriter<W>,
    ids: &'a Ids,
    /// Files with several names, and the one under which they were written.
    seen: HashMap<(u64, u64), PathBuf>,
}

/// Writes `source` and all below it; the entries' names begin with `name`.
///
/// File systems that the kernel shows are left out but for the folder that they are mounted on; so are sockets.
pub(super) fn pack(source: &Source, name: &Path, ids: &Ids, to: impl Write) -> Result<()> {
    let mut pack = Pack { to: TarWriter::new(to), ids, seen: HashMap::new() };
    pack.one(&source.fd, &source.stat, name, source.stat.st_dev)?;
    pack.to.finish()?;
    Ok(())
}

impl<W: Write> Pack<'_, W> {
    /// `device` is that of the folder in which it is.
    fn one(&mut self, fd: &OwnedFd, stat: &Stat, path: &Path, device: u64) -> Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let foreign = stat.st_dev != device && is_of_the_kernel(fd.as_fd())?;
        match kind {
            FileType::Directory => {
                self.entry(EntryType::Directory, fd, stat, &path.join(""), None)?;
                if foreign { Ok(()) } else { self.below(fd, stat, path) }
            }
            _ if foreign => Ok(()),
            FileType::RegularFile => self.file(fd, stat, path),
            FileType::Symlink => {
                let target = fs::read_link(fd.as_fd())?;
                self.entry(EntryType::Symlink, fd, stat, path, Some(&target))
            }
            FileType::CharacterDevice => self.entry(EntryType::Char, fd, stat, path, None),
            FileType::BlockDevice => self.entry(EntryType::Block, fd, stat, path, None),
            FileType::Fifo => self.entry(EntryType::Fifo, fd, stat, path, None),
            _ => Ok(()),
        }
    }

    fn below(&mut self, fd: &OwnedFd, stat: &Stat, path: &Path) -> Result<()> {
        let folder = fs::reopen(fd.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = fs::entries(folder.as_fd())?;
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (name, _) in entries {
            let path = path.join(&name);
            let opened = fs::open_at(folder.as_fd(), Path::new(&name), OFlags::PATH | OFlags::NOFOLLOW, 0);
            let found = match opened {
                // It went while this looked.
                Err(error) if error.errno() == moat_linux::Errno::NOENT => continue,
                other => other?,
            };
            let below = fs::stat(found.as_fd())?;
            self.one(&found, &below, &path, stat.st_dev).context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn metadata(&self, fd: BorrowedFd<'_>, stat: &Stat) -> Result<Metadata> {
        let (uid, gid) = self.ids.inside((stat.st_uid, stat.st_gid));
        let mut xattrs = Vec::new();
        for name in xattr::list(fd)? {
            let Ok(text) = name.to_str() else { continue };
            // What the kernel or a policy keeps for itself means nothing elsewhere.
            if text.starts_with("user.") && !text.starts_with("user.overlay.")
                || text == "security.capability"
            {
                xattrs.extend(xattr::get(fd, &name)?.map(|value| (text.to_owned(), value)));
            }
        }
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Ok(Metadata { mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs })
    }

    fn entry(
        &mut self,
        kind: EntryType,
        fd: &OwnedFd,
        stat: &Stat,
        path: &Path,
        link: Option<&Path>,
    ) -> Result<()> {
        let metadata = self.metadata(fd.as_fd(), stat)?;
        let device = if matches!(kind, EntryType::Char | EntryType::Block) { stat.st_rdev } else { 0 };
        Ok(self.to.entry(kind, path, &metadata, link, device)?)
    }

    fn file(&mut self, fd: &OwnedFd, stat: &Stat, path: &Path) -> Result<()> {
        let metadata = self.metadata(fd.as_fd(), stat)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return Ok(self.to.entry(EntryType::Link, path, &metadata, Some(&first), 0)?);
            }
            self.seen.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        let content = File::from(fs::reopen(fd.as_fd(), OFlags::RDONLY)?);
        Ok(self.to.file(path, &metadata, stat.st_size.unsigned_abs(), content)?)
    }
}
