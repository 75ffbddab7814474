//! From a tar stream to a tree. The folder may belong to a workload that changes it meanwhile, and the stream may be
//! anybody's: nothing is written outside the folder, and no link is followed below it.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use moat_image::{EntryType, TarEntry, TarReader};
use moat_linux::fs::{self, Follow};
use moat_linux::{Errno, xattr};
use rustix::fs::{FileType, OFlags, Stat};

use super::{CopyOptions, Ids};
use crate::{Context, Error, Result};

/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 1024;

/// What is made of entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unpack<'a> {
    /// Owners are kept, by these ids; else everything belongs to `owner`.
    ids: Option<&'a Ids>,
    owner: (u32, u32),
    /// Set-user-ID bits, device nodes for everybody and file capabilities are made: in a workload they mean something
    /// there only.
    powers: bool,
}

impl<'a> Unpack<'a> {
    /// Into a workload.
    pub(super) fn workload(options: &CopyOptions, ids: &'a Ids) -> Result<Self> {
        Ok(Self { ids: options.archive.then_some(ids), owner: ids.outside((0, 0))?, powers: true })
    }

    /// Onto the host: without `-a` nothing that could give somebody a right. Docker keeps set-user-ID bits and the modes of
    /// device nodes: a workload could so leave its host a program that makes everybody root.
    pub(super) fn host(options: &CopyOptions) -> Self {
        const SAME: &Ids = &Ids(None);
        let owner = (moat_linux::credentials::effective_user(), moat_linux::credentials::effective_group());
        Self { ids: options.archive.then_some(SAME), owner, powers: options.archive }
    }
}

struct Unpacking<'a> {
    root: BorrowedFd<'a>,
    how: &'a Unpack<'a>,
    /// The folder of the last entry, so that it is not looked up for each.
    last: Option<(PathBuf, OwnedFd)>,
    /// Times of folders, set when all is in them.
    folders: Vec<(OwnedFd, (i64, u32))>,
}

/// Most folders that are kept open until the end for their times.
const MAX_OPEN: usize = 256;

/// Unpacks into the folder `root`.
pub(super) fn unpack(root: BorrowedFd<'_>, from: impl BufRead, how: &Unpack<'_>) -> Result<()> {
    let mut reader = TarReader::new(from);
    let mut unpacking = Unpacking { root, how, last: None, folders: Vec::new() };
    while let Some(entry) = reader.next_entry()? {
        let path = checked(&entry.path)?;
        unpacking.one(&entry, &path, &mut reader).context(|| path.display().to_string())?;
    }
    unpacking.finish()
}

/// A path within the folder: relative, without `..`.
fn checked(raw: &[u8]) -> Result<PathBuf> {
    let path = Path::new(std::ffi::OsStr::from_bytes(raw));
    let bad = |why: &str| Err(Error::invalid(format!("the archive's entry {:?} {why}", path.display())));
    if raw.contains(&0) {
        return bad("has a NUL in its name");
    }
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return bad("leads out of the folder"),
        }
    }
    if clean.components().count() > MAX_DEPTH {
        return bad("lies too deep");
    }
    Ok(clean)
}

impl Unpacking<'_> {
    fn one<R: BufRead>(&mut self, entry: &TarEntry, path: &Path, reader: &mut TarReader<R>) -> Result<()> {
        let Some(name) = path.file_name() else { return self.top(entry) };
        let name = Path::new(name);
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = self.folder(above)?;
        let parent = parent.as_fd();
        match entry.kind {
            EntryType::Directory => self.make_folder(parent, name, entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_room(parent, name)?;
                self.make_file(parent, name, entry, reader)
            }
            EntryType::Link => {
                let target = checked(&entry.link)?;
                let found =
                    fs::open_in_root(self.root, &target, OFlags::PATH | OFlags::NOFOLLOW, 0, Follow::Never)?;
                if FileType::from_raw_mode(fs::stat(found.as_fd())?.st_mode) == FileType::Directory {
                    return Err(Error::invalid(format!(
                        "a folder can not have another name ({})",
                        target.display()
                    )));
                }
                // A name of the file that already is there goes; the file itself must not.
                if !same(found.as_fd(), parent, name)? {
                    make_room(parent, name)?;
                    fs::link_descriptor(found.as_fd(), parent, name)?;
                }
                Ok(())
            }
            EntryType::Symlink => {
                make_room(parent, name)?;
                fs::symlink_at(Path::new(std::ffi::OsStr::from_bytes(&entry.link)), parent, name)?;
                let made = fs::open_at(parent, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                self.own(made.as_fd(), entry)?;
                Ok(fs::set_times(made.as_fd(), time(entry), time(entry))?)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.make_node(parent, name, entry),
            // What other archivers add for themselves.
            _ => Ok(()),
        }
    }

    /// The folder itself: it keeps its owner and its mode, since it was there before.
    fn top(&self, entry: &TarEntry) -> Result<()> {
        if entry.kind == EntryType::Directory { Ok(()) } else { Err(Error::invalid("the entry has no name")) }
    }

    /// A folder below the root, by a path without links. What an archive only implies is made.
    fn folder(&mut self, path: &Path) -> Result<OwnedFd> {
        if let Some((known, folder)) = &self.last
            && known == path
        {
            return Ok(moat_linux::mount::duplicate(folder.as_fd())?);
        }
        let found = self.open_or_make(path)?;
        self.last = Some((path.to_owned(), moat_linux::mount::duplicate(found.as_fd())?));
        Ok(found)
    }

    fn open_or_make(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match fs::open_in_root(self.root, shown, flags, 0, Follow::Never) {
            Err(error) if error.errno() == Errno::NOENT => {}
            Err(error) if matches!(error.errno(), Errno::LOOP | Errno::NOTDIR) => {
                return Err(Error::invalid(format!("{} is not a folder", path.display())));
            }
            other => return Ok(other?),
        }
        let name = path.file_name().map(Path::new).ok_or_else(|| Error::new("the folder is gone"))?;
        let parent = self.open_or_make(path.parent().unwrap_or(Path::new("")))?;
        let made = make_directory(parent.as_fd(), name)?;
        let (uid, gid) = self.how.owner;
        fs::chown(made.as_fd(), uid, gid)?;
        fs::chmod_descriptor(made.as_fd(), 0o755)?;
        Ok(made)
    }

    fn make_folder(&mut self, parent: BorrowedFd<'_>, name: &Path, entry: &TarEntry) -> Result<()> {
        match fs::stat_at(parent, name)? {
            Some(found) if kind(&found) != FileType::Directory => {
                return Err(Error::invalid("a folder can not be copied over what is none"));
            }
            Some(_) | None => {}
        }
        let made = make_directory(parent, name)?;
        self.own(made.as_fd(), entry)?;
        self.attributes(made.as_fd(), entry)?;
        fs::chmod_descriptor(made.as_fd(), self.mode(entry))?;
        if self.folders.len() < MAX_OPEN {
            self.folders.push((made, entry.mtime));
        }
        Ok(())
    }

    fn make_file<R: BufRead>(
        &self,
        parent: BorrowedFd<'_>,
        name: &Path,
        entry: &TarEntry,
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let mut file = File::from(fs::open_at(parent, name, flags, 0o600)?);
        match &entry.sparse {
            None => copy(reader, &mut file, entry.size)?,
            Some(parts) => {
                for (offset, length) in parts {
                    file.seek(SeekFrom::Start(*offset)).context(|| "seek")?;
                    copy(reader, &mut file, *length)?;
                }
                fs::set_length(file.as_fd(), entry.size)?;
            }
        }
        self.own(file.as_fd(), entry)?;
        self.attributes(file.as_fd(), entry)?;
        fs::chmod(file.as_fd(), self.mode(entry))?;
        Ok(fs::set_times(file.as_fd(), time(entry), time(entry))?)
    }

    fn make_node(&self, parent: BorrowedFd<'_>, name: &Path, entry: &TarEntry) -> Result<()> {
        let kind = match entry.kind {
            EntryType::Fifo => FileType::Fifo,
            EntryType::Char => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        // Who may open a device is for its own host to say.
        let device = kind != FileType::Fifo;
        let mode = self.mode(entry) & if device && !self.how.powers { 0o700 } else { 0o7777 };
        make_room(parent, name)?;
        let (major, minor) = entry.device;
        fs::mknod_at(parent, name, kind, 0o600, major, minor)?;
        let made = fs::open_at(parent, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        self.own(made.as_fd(), entry)?;
        fs::chmod_descriptor(made.as_fd(), mode)?;
        Ok(fs::set_times(made.as_fd(), time(entry), time(entry))?)
    }

    fn own(&self, fd: BorrowedFd<'_>, entry: &TarEntry) -> Result<()> {
        let (uid, gid) = match self.how.ids {
            Some(ids) => ids.outside((entry.uid, entry.gid))?,
            None => self.how.owner,
        };
        Ok(fs::chown(fd, uid, gid)?)
    }

    fn attributes(&self, fd: BorrowedFd<'_>, entry: &TarEntry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            let harmless = name.starts_with("user.") && !name.starts_with("user.overlay.");
            let power = name == "security.capability" && self.how.powers;
            if !(harmless || power) {
                continue;
            }
            let c_name = CString::new(name.as_str())
                .map_err(|_| Error::invalid("an attribute has a NUL in its name"))?;
            match xattr::set(fd, &c_name, value) {
                // The file system has none.
                Err(error) if error.errno() == Errno::NOTSUP => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn mode(&self, entry: &TarEntry) -> u32 {
        if self.how.powers { entry.mode & 0o7777 } else { entry.mode & 0o1777 }
    }

    /// The deepest folders come last in an archive: they get their times first.
    fn finish(self) -> Result<()> {
        for (folder, (seconds, nanoseconds)) in self.folders.into_iter().rev() {
            let time = (seconds, i64::from(nanoseconds));
            fs::set_times(folder.as_fd(), time, time)?;
        }
        Ok(())
    }
}

fn time(entry: &TarEntry) -> (i64, i64) {
    (entry.mtime.0, i64::from(entry.mtime.1))
}

fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

/// Makes a folder that may be there already, and gives it by a descriptor; no link is followed.
fn make_directory(parent: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
    match fs::mkdir_at(parent, name, 0o700) {
        Err(error) if error.errno() == Errno::EXIST => {}
        other => other?,
    }
    Ok(fs::open_at(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?)
}

/// Removes what stands in the place of something that is no folder.
fn make_room(parent: BorrowedFd<'_>, name: &Path) -> Result<()> {
    match fs::stat_at(parent, name)? {
        None => Ok(()),
        Some(found) if kind(&found) == FileType::Directory => {
            Err(Error::invalid("what is no folder can not be copied over one"))
        }
        Some(_) => Ok(fs::unlink_at(parent, name, false)?),
    }
}

/// Whether `name` is the file behind `file`.
fn same(file: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &Path) -> Result<bool> {
    let one = fs::stat(file)?;
    let other = fs::stat_at(parent, name)?;
    Ok(other.is_some_and(|other| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)))
}

fn copy<R: BufRead>(reader: &mut TarReader<R>, to: &mut File, mut left: u64) -> Result<()> {
    while left > 0 {
        let bytes = reader.content(left)?;
        if bytes.is_empty() {
            return Err(Error::invalid("the archive ends within the file"));
        }
        to.write_all(bytes).context(|| "write")?;
        let count = bytes.len();
        reader.consume(count);
        left -= count as u64;
    }
    Ok(())
}
