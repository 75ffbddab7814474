//! A folder as a layer's archive: what a workload has changed, or a whole root file system.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use moat_linux::fs;
use rustix::fs::{FileType, OFlags, Stat};
use tar::{EntryType, Header};

use crate::layer::complete::metadata_of;
use crate::{Context, Metadata, Ownership, Result};

/// Writes a folder as an archive, entries in the order of their names.
struct Exporter<'a, W: Write> {
    to: tar::Builder<W>,
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
    let mut to = tar::Builder::new(to);
    to.mode(tar::HeaderMode::Complete);
    let mut exporter = Exporter { to, ownership, overlay, seen: HashMap::new(), left_out };
    exporter.folder(&folder, Path::new("")).context(what)?;
    exporter.to.into_inner().and_then(|mut to| to.flush()).context(what)
}

impl<W: Write> Exporter<'_, W> {
    fn folder(&mut self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let metadata = metadata_of(folder.as_fd(), self.ownership)?;
        let shown = if path.as_os_str().is_empty() { PathBuf::from("./") } else { path.join("") };
        self.entry(EntryType::Directory, &shown, &metadata, None, 0)?;
        let opaque = format!("{}opaque", self.ownership.overlay_prefix());
        if self.overlay && fs::get_xattr(folder.as_fd(), &opaque)?.is_some_and(|value| value == b"y") {
            let mark = Metadata { mode: 0o644, ..Metadata::default() };
            self.entry(EntryType::Regular, &path.join(".wh..wh..opq"), &mark, None, 0)?;
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
                self.entry(EntryType::Symlink, path, &plain(&stat), Some(&target), 0)
            }
            FileType::CharacterDevice if self.overlay && stat.st_rdev == 0 => {
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(name);
                let mark = Metadata { mode: 0o644, ..Metadata::default() };
                self.entry(EntryType::Regular, &path.with_file_name(hidden), &mark, None, 0)
            }
            FileType::CharacterDevice => self.entry(EntryType::Char, path, &plain(&stat), None, stat.st_rdev),
            FileType::BlockDevice => self.entry(EntryType::Block, path, &plain(&stat), None, stat.st_rdev),
            FileType::Fifo => self.entry(EntryType::Fifo, path, &plain(&stat), None, 0),
            _ => Ok(()),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
        // Without waiting: something else may have come in the file's place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(fs::open_at(dir, name, flags, 0)?);
        let stat = fs::stat(file.as_fd())?;
        let metadata = metadata_of(file.as_fd(), self.ownership)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.entry(EntryType::Link, path, &metadata, Some(&first), 0);
            }
            self.seen.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        let size = stat.st_size.unsigned_abs();
        self.extended(path, &metadata, None)?;
        let mut header = header(EntryType::Regular, &metadata);
        header.set_size(size);
        set_short(&mut header, path, None);
        header.set_cksum();
        // A file that grows or shrinks meanwhile is cut, or filled, to the size that was told.
        use std::io::Read;
        let content = file.take(size).chain(std::io::repeat(0)).take(size);
        Ok(self.to.append(&header, content)?)
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &Path,
        metadata: &Metadata,
        link: Option<&Path>,
        device: u64,
    ) -> Result<()> {
        self.extended(path, metadata, link)?;
        let mut header = header(kind, metadata);
        header.set_size(0);
        header.set_device_major(rustix::fs::major(device))?;
        header.set_device_minor(rustix::fs::minor(device))?;
        set_short(&mut header, path, link);
        header.set_cksum();
        Ok(self.to.append(&header, std::io::empty())?)
    }

    /// What a header has no room for: long names, large ids, times below a second, attributes.
    fn extended(&mut self, path: &Path, metadata: &Metadata, link: Option<&Path>) -> Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        if path.as_os_str().len() > 100 {
            records.push(("path".to_owned(), bytes(path)));
        }
        if let Some(link) = link.filter(|link| link.as_os_str().len() > 100) {
            records.push(("linkpath".to_owned(), bytes(link)));
        }
        let (seconds, nanoseconds) = metadata.mtime;
        if nanoseconds != 0 || seconds < 0 {
            records.push(("mtime".to_owned(), time(seconds, nanoseconds).into_bytes()));
        }
        for (name, id) in [("uid", metadata.uid), ("gid", metadata.gid)] {
            if id >= 0o10_000_000 {
                records.push((name.to_owned(), id.to_string().into_bytes()));
            }
        }
        for (name, value) in &metadata.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records: Vec<(&str, &[u8])> =
            records.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        if !records.is_empty() {
            self.to.append_pax_extensions(records)?;
        }
        Ok(())
    }
}

/// Decimal seconds; a time before 1970 counts its fraction backwards.
fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
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

fn header(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode);
    // What does not fit stands in an extended header, and readers take that.
    header.set_uid(u64::from(metadata.uid).min(0o7_777_777));
    header.set_gid(u64::from(metadata.gid).min(0o7_777_777));
    header.set_mtime(metadata.mtime.0.max(0).unsigned_abs());
    header
}

/// Names as far as a header holds them; longer ones stand in an extended header.
fn set_short(header: &mut Header, path: &Path, link: Option<&Path>) {
    let copy = |to: &mut [u8], from: &Path| {
        let from = from.as_os_str().as_bytes();
        let count = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
    };
    let fields = header.as_old_mut();
    copy(&mut fields.name, path);
    if let Some(link) = link {
        copy(&mut fields.linkname, link);
    }
}
