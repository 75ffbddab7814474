//! A folder as a layer's archive: what a workload has changed, or a whole root file system.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::fs;
use rustix::fs::{FileType, OFlags, Stat};
use tar::EntryType;

use super::write::TarWriter;
use crate::layer::complete::metadata_of;
use crate::{Context, Metadata, Ownership, Result};

/// Writes a folder as an archive, entries in the order of their names.
struct Exporter<'a, W: Write> {
    to: TarWriter<W>,
    ownership: Ownership,
    /// Whether overlayfs's marks become whiteouts; otherwise they mean nothing.
    overlay: bool,
    /// Files with several names, and the one under which they were written.
    seen: HashMap<(u64, u64), PathBuf>,
    left_out: &'a dyn Fn(&Path) -> bool,
}

/// Writes the upper folder of an overlay as the archive of a layer: overlayfs's marks become whiteouts.
///
/// `left_out` names paths, relative to the folder, that are not written, with all below them. Sockets are left out, as
/// an archive can not hold them. Errors: reading or writing failed.
pub fn write_upper(
    upper: &Path,
    ownership: Ownership,
    to: impl Write,
    left_out: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    write(upper, ownership, true, to, left_out)
}

/// Writes a root file system as an archive, in the form of a layer that stands alone.
///
/// `left_out` as with [`write_upper`].
pub fn write_root(
    root: &Path,
    ownership: Ownership,
    to: impl Write,
    left_out: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    write(root, ownership, false, to, left_out)
}

fn write(
    root: &Path,
    ownership: Ownership,
    overlay: bool,
    to: impl Write,
    left_out: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    let what = || format!("archive {}", root.display());
    let folder = fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut exporter =
        Exporter { to: TarWriter::new(to), ownership, overlay, seen: HashMap::new(), left_out };
    exporter.folder(&folder, Path::new("")).context(what)?;
    exporter.to.finish().map(drop).context(what)
}

impl<W: Write> Exporter<'_, W> {
    fn folder(&mut self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let metadata = metadata_of(folder.as_fd(), self.ownership)?;
        let shown = if path.as_os_str().is_empty() { PathBuf::from("./") } else { path.join("") };
        self.to.entry(EntryType::Directory, &shown, &metadata, None, 0)?;
        let opaque = format!("{}opaque", self.ownership.overlay_prefix());
        if self.overlay && fs::get_xattr(folder.as_fd(), &opaque)?.is_some_and(|value| value == b"y") {
            let mark = Metadata { mode: 0o644, ..Metadata::default() };
            self.to.entry(EntryType::Regular, &path.join(".wh..wh..opq"), &mark, None, 0)?;
        }
        let mut entries = fs::entries(folder.as_fd())?;
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (name, _) in entries {
            let path = path.join(&name);
            if !(self.left_out)(&path) {
                self.one(folder.as_fd(), Path::new(&name), &path).context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    fn one(&mut self, dir: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
        // One that goes while this looks is left out.
        let Some(stat) = fs::stat_at(dir, name)? else { return Ok(()) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                self.folder(&fs::open_at(dir, name, flags, 0)?, path)
            }
            FileType::RegularFile => self.file(dir, name, path),
            FileType::Symlink => {
                let link = fs::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                let target = fs::read_link(link.as_fd())?;
                self.to.entry(EntryType::Symlink, path, &plain(&stat), Some(&target), 0)
            }
            FileType::CharacterDevice if self.overlay && stat.st_rdev == 0 => {
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(name);
                let mark = Metadata { mode: 0o644, ..Metadata::default() };
                self.to.entry(EntryType::Regular, &path.with_file_name(hidden), &mark, None, 0)
            }
            FileType::CharacterDevice => {
                self.to.entry(EntryType::Char, path, &plain(&stat), None, stat.st_rdev)
            }
            FileType::BlockDevice => self.to.entry(EntryType::Block, path, &plain(&stat), None, stat.st_rdev),
            FileType::Fifo => self.to.entry(EntryType::Fifo, path, &plain(&stat), None, 0),
            _ => Ok(()),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
        // Something else may have come in the file's place: opening a device or a pipe can have effects.
        let found = fs::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        let stat = fs::stat(found.as_fd())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let file = File::from(fs::reopen(found.as_fd(), OFlags::RDONLY)?);
        let metadata = metadata_of(file.as_fd(), self.ownership)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.to.entry(EntryType::Link, path, &metadata, Some(&first), 0);
            }
            self.seen.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        self.to.file(path, &metadata, stat.st_size.unsigned_abs(), file)
    }
}

fn plain(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        xattrs: Vec::new(),
    }
}
