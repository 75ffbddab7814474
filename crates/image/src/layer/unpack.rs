//! Writing a layer into a folder, by descriptor, while its archive streams by.
//!
//! A path of the archive is opened beneath the layer's folder by openat2(2), so that no symbolic link of the archive
//! leads out of it. The last name is always made new (`O_EXCL`, `mkdir`, `symlink`) and never followed. Whiteouts
//! become what overlayfs knows them by: a character device 0:0, and an attribute of an opaque folder.
//!
//! What depends on the layers below, and the times and modes of folders, waits for [`complete`](super::complete).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags};

use super::entry::{Action, Entry, LayerReader, Metadata};
use super::limits::MAX_FOLDER_BYTES;
use super::path::LayerPath;
use super::{Ownership, tree};
use crate::{Context, Error, Kind, Result};

/// So many symbolic links may lead from one to the next.
const MAX_LINKS: u32 = 40;

/// What was written, and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Device nodes that this user may not make.
    pub skipped_devices: u64,
    /// Attributes that a layer may not set, or that the file system does not take.
    pub ignored_xattrs: u64,
}

/// What is to be done once the layers below are in place.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(super) folders: BTreeMap<LayerPath, Folder>,
    pub(super) whiteouts: BTreeSet<LayerPath>,
    /// Hard links to files of layers below: the file and its new name.
    pub(super) late_links: Vec<(LayerPath, LayerPath, Metadata)>,
}

/// A folder of the layer.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// `None` when the archive has no entry of it: then it is as in the layers below.
    pub(super) metadata: Option<Metadata>,
    pub(super) opaque: bool,
}

/// An opened folder of the layer, under the path that leads to it without symbolic links.
#[derive(Clone)]
struct Place {
    path: LayerPath,
    fd: Rc<OwnedFd>,
}

pub(crate) struct Unpacker {
    root: Place,
    root_path: PathBuf,
    ownership: Ownership,
    own: (u32, u32),
    umask: u32,
    /// The folder of the last entry: archives go folder by folder.
    last: Option<(LayerPath, Place)>,
    folder_bytes: usize,
    pending: Pending,
    report: UnpackReport,
}

impl Unpacker {
    /// Unpacks into `root`, an empty folder.
    pub(crate) fn new(root: &Path, ownership: Ownership) -> Result<Self> {
        let fd = fs::open(root, OFlags::PATH | OFlags::DIRECTORY)?;
        let root_path = fd_path(fd.as_fd())?;
        let mut pending = Pending::default();
        pending.folders.insert(LayerPath::root(), Folder::default());
        Ok(Self {
            root: Place { path: LayerPath::root(), fd: Rc::new(fd) },
            root_path,
            ownership,
            own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            umask: umask()?,
            last: None,
            folder_bytes: 0,
            pending,
            report: UnpackReport::default(),
        })
    }

    /// Writes everything that the archive holds.
    pub(crate) fn unpack<R: BufRead>(mut self, from: &mut LayerReader<R>) -> Result<(Pending, UnpackReport)> {
        while let Some(entry) = from.next_entry()? {
            self.report.entries += 1;
            self.report.ignored_xattrs += u64::from(entry.ignored_xattrs);
            let path = entry.path.clone();
            self.apply(entry, from).context(|| format!("unpack {path}"))?;
        }
        Ok((self.pending, self.report))
    }

    fn apply<R: BufRead>(&mut self, entry: Entry, from: &mut LayerReader<R>) -> Result<()> {
        let Entry { path, action, metadata, .. } = entry;
        if matches!(action, Action::Opaque) {
            let place = self.open(&path, 0)?;
            self.folder(&place.path)?.opaque = true;
            return Ok(());
        }
        let Some((parent, name)) = path.split() else {
            self.folder(&LayerPath::root())?.metadata = Some(metadata);
            return Ok(());
        };
        let parent = self.open(&parent, 0)?;
        let path = parent.path.join(name);
        let (dir, name) = (parent.fd.as_fd(), Path::new(name));
        match action {
            Action::Directory => return self.directory(dir, &path, name, Some(metadata)),
            Action::File { size, sparse } => {
                let file = self.file(dir, &path, name, &metadata)?;
                write_content(&file, size, sparse.as_deref(), from)?;
                self.report.bytes += size;
                self.describe(&file, &metadata)?;
            }
            Action::Symlink(target) => {
                let target = Path::new(OsStr::from_bytes(&target));
                self.fresh(dir, &path, name, |dir, name| fs::symlink_at(target, dir, name))?;
                self.own_at(dir, name, &metadata)?;
                fs::set_time_at(dir, name, metadata.mtime)?;
            }
            Action::HardLink(target) => self.hard_link(dir, path, name, target, metadata)?,
            Action::Device { block, major, minor } => {
                self.device(dir, &path, name, &metadata, (block, major, minor))?;
            }
            Action::Fifo => self.node(dir, &path, name, &metadata, FileType::Fifo, (0, 0))?,
            Action::Whiteout => self.whiteout(dir, path, name)?,
            Action::Opaque => {}
        }
        Ok(())
    }

    /// The record of a folder that exists.
    fn folder(&mut self, path: &LayerPath) -> Result<&mut Folder> {
        if !self.pending.folders.contains_key(path) {
            self.folder_bytes += path.as_path().as_os_str().len();
            if self.folder_bytes > MAX_FOLDER_BYTES {
                return Err(Error::new(format!(
                    "layer archive has folders whose paths take more than {MAX_FOLDER_BYTES} bytes"
                ))
                .with_kind(Kind::TooLarge));
            }
        }
        Ok(self.pending.folders.entry(path.clone()).or_default())
    }

    /// Opens the folder at `path` and makes it, and those above it, where the archive has not.
    fn open(&mut self, path: &LayerPath, links: u32) -> Result<Place> {
        if path.is_root() {
            return Ok(self.root.clone());
        }
        if let Some((_, place)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return Ok(place.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = self.root.fd.as_fd();
        let place = match fs::open_in_root(root, path.as_path(), flags, 0, Follow::Never) {
            Ok(fd) => Place { path: path.clone(), fd: Rc::new(fd) },
            Err(error) => match error.errno() {
                Errno::LOOP => match tree::open_folder(root, path.as_path()) {
                    Ok(fd) => Place { path: self.path_of(fd.as_fd())?, fd: Rc::new(fd) },
                    Err(error) if error.errno() == Errno::NOENT => self.make(path, links)?,
                    Err(error) => return Err(error.into()),
                },
                Errno::NOENT | Errno::NOTDIR => self.make(path, links)?,
                _ => return Err(error.into()),
            },
        };
        self.last = Some((path.clone(), place.clone()));
        Ok(place)
    }

    /// Makes the folder at `path`, of which the archive has no entry.
    fn make(&mut self, path: &LayerPath, links: u32) -> Result<Place> {
        let (above, name) = path.split().ok_or_else(|| Error::new("the layer's root is gone"))?;
        let above = self.open(&above, links)?;
        let real = above.path.join(name);
        let (dir, name) = (above.fd.as_fd(), Path::new(name));
        match fs::stat_at(dir, name)? {
            Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                // It leads to a folder that only the layers below have.
                let link = fs::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                let target = resolve(&above.path, &fs::read_link(link.as_fd())?)?;
                if links >= MAX_LINKS {
                    return Err(Error::new(format!("too many symbolic links lead from {path} to the next"))
                        .with_kind(Kind::Corrupt));
                }
                return self.open(&target, links + 1);
            }
            Some(found) if !is_whiteout(&found) => {
                return Err(Error::new(format!("{real} is a folder in one entry, and a file in another"))
                    .with_kind(Kind::Corrupt));
            }
            _ => self.directory(dir, &real, name, None)?,
        }
        let fd = fs::open_at(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
        Ok(Place { path: real, fd: Rc::new(fd) })
    }

    /// The path of an opened folder of the layer.
    fn path_of(&self, fd: BorrowedFd<'_>) -> Result<LayerPath> {
        let path = fd_path(fd)?;
        let below = path.strip_prefix(&self.root_path);
        let below = below.map_err(|_| Error::new(format!("{} is not within the layer", path.display())))?;
        LayerPath::new(below.as_os_str().as_bytes(), usize::MAX)
    }

    fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        name: &Path,
        metadata: Option<Metadata>,
    ) -> Result<()> {
        let mut opaque = false;
        match fs::mkdir_at(dir, name, 0o700) {
            Ok(()) => {}
            Err(error) if error.errno() == Errno::EXIST => {
                let found = fs::stat_at(dir, name)?;
                let is_folder = |mode| FileType::from_raw_mode(mode) == FileType::Directory;
                if !found.as_ref().is_some_and(|found| is_folder(found.st_mode)) {
                    // The layer says that the path is gone, and that it has a folder there: nothing shows through.
                    opaque = found.as_ref().is_some_and(is_whiteout);
                    self.clear(dir, path, name)?;
                    fs::mkdir_at(dir, name, 0o700)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let folder = self.folder(path)?;
        folder.opaque |= opaque;
        if metadata.is_some() {
            folder.metadata = metadata;
        }
        Ok(())
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        name: &Path,
        metadata: &Metadata,
    ) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = metadata.mode & 0o777;
        Ok(File::from(self.fresh(dir, path, name, |dir, name| fs::open_at(dir, name, flags, mode))?))
    }

    /// Makes something new; what an earlier entry has put there goes.
    fn fresh<T>(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        name: &Path,
        make: impl Fn(BorrowedFd<'_>, &Path) -> moat_linux::Result<T>,
    ) -> Result<T> {
        match make(dir, name) {
            Err(error) if error.errno() == Errno::EXIST => {
                self.clear(dir, path, name)?;
                Ok(make(dir, name)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes what an earlier entry has put at `path`, and what is known of it.
    fn clear(&mut self, dir: BorrowedFd<'_>, path: &LayerPath, name: &Path) -> Result<()> {
        tree::remove(dir, name)?;
        self.last = None;
        self.pending.whiteouts.remove(path);
        let below: Vec<LayerPath> = self
            .pending
            .folders
            .range(path..)
            .map(|(folder, _)| folder)
            .take_while(|folder| folder.as_path().starts_with(path.as_path()))
            .cloned()
            .collect();
        for folder in &below {
            self.pending.folders.remove(folder);
            self.folder_bytes = self.folder_bytes.saturating_sub(folder.as_path().as_os_str().len());
        }
        if !below.is_empty() {
            self.pending.whiteouts.retain(|gone| !gone.as_path().starts_with(path.as_path()));
        }
        self.pending.late_links.retain(|(_, link, _)| !link.as_path().starts_with(path.as_path()));
        Ok(())
    }

    fn hard_link(
        &mut self,
        dir: BorrowedFd<'_>,
        path: LayerPath,
        name: &Path,
        target: LayerPath,
        metadata: Metadata,
    ) -> Result<()> {
        let found = match target.split() {
            // No folder is made for a target: when it is not here, it is below.
            Some((parent, target)) => match tree::open_folder(self.root.fd.as_fd(), parent.as_path()) {
                Ok(parent) => fs::stat_at(parent.as_fd(), Path::new(target))?
                    .filter(|found| !is_whiteout(found))
                    .map(|found| (parent, target.to_owned(), found)),
                Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => None,
                Err(error) => return Err(error.into()),
            },
            None => None,
        };
        let Some((parent, target_name, found)) = found else {
            // Something else of this name may be here already; the link takes its place.
            self.clear(dir, &path, name)?;
            self.pending.late_links.push((target, path, metadata));
            return Ok(());
        };
        if fs::stat_at(dir, name)?
            .is_some_and(|here| (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino))
        {
            return Ok(());
        }
        let target_name = Path::new(&target_name);
        self.fresh(dir, &path, name, |dir, name| fs::link_at(parent.as_fd(), target_name, dir, name))
    }

    fn device(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        name: &Path,
        metadata: &Metadata,
        (block, major, minor): (bool, u32, u32),
    ) -> Result<()> {
        let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
        if self.ownership == Ownership::Privileged {
            return self.node(dir, path, name, metadata, kind, (major, minor));
        }
        // The kernel lets nobody else make one; workloads get the devices of their own /dev.
        self.report.skipped_devices += 1;
        Ok(())
    }

    fn node(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        name: &Path,
        metadata: &Metadata,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<()> {
        let mode = metadata.mode & 0o777;
        self.fresh(dir, path, name, |dir, name| fs::mknod_at(dir, name, kind, mode, major, minor))?;
        self.own_at(dir, name, metadata)?;
        fs::chmod_at(dir, name, metadata.mode)?;
        Ok(fs::set_time_at(dir, name, metadata.mtime)?)
    }

    /// Whiteouts concern the layers below: what this layer itself has at the path stays.
    fn whiteout(&mut self, dir: BorrowedFd<'_>, path: LayerPath, name: &Path) -> Result<()> {
        match fs::mknod_at(dir, name, FileType::CharacterDevice, 0, 0, 0) {
            Ok(()) => {
                self.pending.whiteouts.insert(path);
            }
            Err(error) if error.errno() == Errno::EXIST => {
                if self.pending.folders.contains_key(&path) {
                    self.folder(&path)?.opaque = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn own_at(&self, dir: BorrowedFd<'_>, name: &Path, metadata: &Metadata) -> Result<()> {
        if self.ownership.changes((metadata.uid, metadata.gid), self.own) {
            fs::chown_at(dir, name, metadata.uid, metadata.gid)
                .map_err(|error| self.ownership.explain(error, metadata))?;
        }
        Ok(())
    }

    /// Owner, mode, attributes and time of an open file; the owner first, because chown(2) takes set-uid and
    /// capabilities away.
    fn describe(&mut self, file: &File, metadata: &Metadata) -> Result<()> {
        let fd = file.as_fd();
        if self.ownership.changes((metadata.uid, metadata.gid), self.own) {
            fs::chown(fd, metadata.uid, metadata.gid)
                .map_err(|error| self.ownership.explain(error, metadata))?;
        }
        if metadata.mode & (0o7000 | self.umask) != 0 {
            fs::chmod(fd, metadata.mode)?;
        }
        self.report.ignored_xattrs += set_xattrs(fd, &metadata.xattrs, self.ownership)?;
        Ok(fs::set_time(fd, metadata.mtime)?)
    }
}

/// Sets attributes; returns how many the file system or the kernel does not take from this user.
pub(super) fn set_xattrs(
    fd: BorrowedFd<'_>,
    xattrs: &[(String, Vec<u8>)],
    ownership: Ownership,
) -> Result<u64> {
    let mut ignored = 0;
    for (name, value) in xattrs {
        match fs::set_xattr(fd, name, value) {
            Ok(()) => {}
            Err(error) if error.errno() == Errno::OPNOTSUPP => ignored += 1,
            Err(error) if error.errno() == Errno::PERM && ownership != Ownership::Privileged => ignored += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ignored)
}

fn write_content<R: BufRead>(
    file: &File,
    size: u64,
    sparse: Option<&[(u64, u64)]>,
    from: &mut LayerReader<R>,
) -> Result<()> {
    let failed = || moat_linux::fd_name(file.as_fd());
    let Some(parts) = sparse else {
        let mut file = file;
        loop {
            let bytes = from.content(u64::MAX)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let count = bytes.len();
            file.write_all(bytes).context(|| format!("write {}", failed()))?;
            from.consume(count);
        }
    };
    fs::set_length(file.as_fd(), size)?;
    for (mut offset, mut length) in parts.iter().copied() {
        while length > 0 {
            let bytes = from.content(length)?;
            let count = bytes.len();
            file.write_all_at(bytes, offset).context(|| format!("write {}", failed()))?;
            from.consume(count);
            offset += count as u64;
            length -= count as u64;
        }
    }
    Ok(())
}

/// Whether this is what overlayfs takes for "gone".
pub(super) fn is_whiteout(found: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice && found.st_rdev == 0
}

/// Where a symbolic link in `folder` leads within the layer.
fn resolve(folder: &LayerPath, target: &Path) -> Result<LayerPath> {
    use std::path::Component;
    let mut path = if target.is_absolute() { PathBuf::new() } else { folder.as_path().to_owned() };
    for component in target.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    LayerPath::new(path.as_os_str().as_bytes(), usize::MAX)
}

fn fd_path(fd: BorrowedFd<'_>) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(&link).context(|| format!("read {link}"))
}

/// The mask that the kernel takes off the mode of new files; read, because to ask umask(2) is to change it.
fn umask() -> Result<u32> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).context(|| path)?;
    let mask = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .ok_or_else(|| Error::new(format!("{path} tells no umask")))
}
