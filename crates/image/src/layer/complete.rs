//! The last step of a layer: what depends on the layers below.
//!
//! - A folder that the archive only implies (it has `a/b`, but no entry of `a`) must not change how the folder of the
//!   layers below looks: it takes mode, owner, time and attributes from there.
//! - A whiteout that hides nothing goes, because overlayfs would list it in a folder that only this layer has.
//! - A hard link to a file of a layer below brings the file up.
//! - overlayfs looks for no opaque attribute at a layer's root; there, everything below is whited out by name.
//! - Then folders get their modes and times, the deepest first.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags};

use super::Ownership;
use super::entry::Metadata;
use super::path::LayerPath;
use super::unpack::{Folder, Pending, is_whiteout, set_xattrs};
use crate::{Context, Error, Kind, Result};

/// The folders of the layers below, topmost first.
pub(crate) struct Below<'a> {
    layers: &'a [PathBuf],
    ownership: Ownership,
}

impl<'a> Below<'a> {
    pub(crate) fn new(layers: &'a [PathBuf], ownership: Ownership) -> Self {
        Self { layers, ownership }
    }

    /// What the layers below show at `path`, opened by `O_PATH`.
    fn find(&self, path: &LayerPath) -> Result<Option<OwnedFd>> {
        for layer in self.layers {
            let root = open_layer(layer)?;
            if let Some(found) = open_entry(root.as_fd(), path)? {
                return Ok(
                    Some(found).filter(|found| fs::stat(found.as_fd()).is_ok_and(|stat| !is_whiteout(&stat)))
                );
            }
            if self.hides(root.as_fd(), path)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Whether a layer that has nothing at `path` keeps the ones below from showing it.
    fn hides(&self, root: BorrowedFd<'_>, path: &LayerPath) -> Result<bool> {
        let mut above: Vec<LayerPath> = Vec::new();
        let mut next = path.parent();
        while let Some(folder) = next.filter(|folder| !folder.is_root()) {
            next = folder.parent();
            above.push(folder);
        }
        for folder in above.iter().rev() {
            let Some(found) = open_entry(root, folder)? else { return Ok(false) };
            let stat = fs::stat(found.as_fd())?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory
                || self.is_opaque(found.as_fd())?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_opaque(&self, folder: BorrowedFd<'_>) -> Result<bool> {
        let folder = fs::reopen(folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let name = format!("{}opaque", self.ownership.overlay_prefix());
        Ok(fs::get_xattr(folder.as_fd(), &name)?.is_some_and(|value| value == b"y"))
    }

    /// The names that the layers below show at their root.
    fn root_names(&self) -> Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for layer in self.layers {
            let root = fs::open(layer, OFlags::RDONLY | OFlags::DIRECTORY)?;
            names.extend(fs::entries(root.as_fd())?.into_iter().map(|(name, _)| name));
        }
        Ok(names)
    }
}

fn open_layer(path: &Path) -> Result<OwnedFd> {
    Ok(fs::open(path, OFlags::PATH | OFlags::DIRECTORY)?)
}

/// Opens what a layer has at `path` by no symbolic link; `None` when it has nothing there.
fn open_entry(root: BorrowedFd<'_>, path: &LayerPath) -> Result<Option<OwnedFd>> {
    let shown = if path.is_root() { Path::new(".") } else { path.as_path() };
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    match fs::open_in_root(root, shown, flags, 0, Follow::Never) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Completes the layer in `root`; returns how many attributes could not be set.
pub(crate) fn complete(root: &Path, mut pending: Pending, below: &Below<'_>) -> Result<u64> {
    let fd = open_layer(root)?;
    let root = fd.as_fd();
    let links = std::mem::take(&mut pending.late_links);
    for (target, path, metadata) in &links {
        late_link(root, &mut pending, below, target, path, metadata)
            .context(|| format!("unpack {path}, a hard link to {target}"))?;
    }
    if pending.folders.get(&LayerPath::root()).is_some_and(|folder| folder.opaque) {
        opaque_root(root, &mut pending, below)?;
    }
    for path in &pending.whiteouts {
        if !hides_something(&pending, below, path)? {
            let (dir, name) = parent(root, path)?;
            fs::unlink_at(dir.as_fd(), Path::new(&name), false)?;
        }
    }
    let mut ignored = 0;
    // A folder stands before those in it, so from the end on each is finished before its parent.
    for (path, folder) in pending.folders.iter().rev() {
        ignored += describe(root, path, folder, below).context(|| format!("unpack {path}"))?;
    }
    Ok(ignored)
}

/// A whiteout works where the folder that it is in shows the layers below.
fn hides_something(pending: &Pending, below: &Below<'_>, path: &LayerPath) -> Result<bool> {
    let mut folder = path.parent();
    while let Some(above) = folder.filter(|folder| !folder.is_root()) {
        if pending.folders.get(&above).is_some_and(|folder| folder.opaque) {
            return Ok(false);
        }
        folder = above.parent();
    }
    Ok(below.find(path)?.is_some())
}

fn parent(root: BorrowedFd<'_>, path: &LayerPath) -> Result<(OwnedFd, OsString)> {
    let (above, name) = path.split().ok_or_else(|| Error::new("the layer's root has no parent"))?;
    Ok((super::tree::open_folder(root, above.as_path())?, name.to_owned()))
}

fn opaque_root(root: BorrowedFd<'_>, pending: &mut Pending, below: &Below<'_>) -> Result<()> {
    for name in below.root_names()? {
        let path = LayerPath::root().join(&name);
        match fs::mknod_at(root, Path::new(&name), FileType::CharacterDevice, 0, 0, 0) {
            Ok(()) => drop(pending.whiteouts.insert(path)),
            Err(error) if error.errno() == Errno::EXIST => {
                if let Some(folder) = pending.folders.get_mut(&path) {
                    folder.opaque = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Brings a file of the layers below up, as overlayfs does when a file gets a second name.
fn late_link(
    root: BorrowedFd<'_>,
    pending: &mut Pending,
    below: &Below<'_>,
    target: &LayerPath,
    path: &LayerPath,
    told: &Metadata,
) -> Result<()> {
    let missing =
        || Error::new(format!("{target} is no file of this layer or of one below")).with_kind(Kind::Corrupt);
    // An earlier link may have brought it up already.
    let is_here = match parent(root, target) {
        Ok((dir, name)) => {
            fs::stat_at(dir.as_fd(), Path::new(&name))?.is_some_and(|found| !is_whiteout(&found))
        }
        Err(_) => false,
    };
    let brought = if is_here { None } else { Some(below.find(target)?.ok_or_else(missing)?) };
    let (dir, name) = make_parents(root, pending, target)?;
    if let Some(found) = brought {
        let stat = fs::stat(found.as_fd())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mut to = File::from(fs::open_at(dir.as_fd(), Path::new(&name), flags, 0o600)?);
        let mut from = File::from(fs::reopen(found.as_fd(), OFlags::RDONLY)?);
        std::io::copy(&mut from, &mut to).context(|| format!("copy {target}"))?;
        let mut metadata = metadata_of(from.as_fd(), below.ownership)?;
        metadata.mtime = told.mtime;
        give(to.as_fd(), &metadata, below.ownership)?;
    }
    let (link_dir, link) = make_parents(root, pending, path)?;
    fs::link_at(dir.as_fd(), Path::new(&name), link_dir.as_fd(), Path::new(&link))?;
    Ok(())
}

/// Opens the folder of `path`, and makes it where it is not.
fn make_parents(
    root: BorrowedFd<'_>,
    pending: &mut Pending,
    path: &LayerPath,
) -> Result<(OwnedFd, OsString)> {
    match parent(root, path) {
        Ok(found) => return Ok(found),
        Err(error) if path.parent().is_none_or(|above| above.is_root()) => return Err(error),
        Err(_) => {}
    }
    let above = path.parent().unwrap_or_default();
    let (dir, name) = make_parents(root, pending, &above)?;
    fs::mkdir_at(dir.as_fd(), Path::new(&name), 0o700)?;
    pending.folders.insert(above, Folder::default());
    parent(root, path)
}

fn describe(root: BorrowedFd<'_>, path: &LayerPath, folder: &Folder, below: &Below<'_>) -> Result<u64> {
    let entry = open_entry(root, path)?.ok_or_else(|| Error::new("the folder is gone"))?;
    let fd = fs::reopen(entry.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
    if folder.opaque && !path.is_root() {
        fs::set_xattr(fd.as_fd(), &format!("{}opaque", below.ownership.overlay_prefix()), b"y")?;
    }
    let implied;
    let metadata = match &folder.metadata {
        Some(metadata) => metadata,
        None => {
            let found = below.find(path)?;
            let as_folder = |fd: &OwnedFd| fs::reopen(fd.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).ok();
            implied = match found.as_ref().and_then(as_folder) {
                Some(found) => metadata_of(found.as_fd(), below.ownership)?,
                None => Metadata { mode: 0o755, ..Metadata::default() },
            };
            &implied
        }
    };
    give(fd.as_fd(), metadata, below.ownership)
}

fn give(fd: BorrowedFd<'_>, metadata: &Metadata, ownership: Ownership) -> Result<u64> {
    if ownership != Ownership::Caller {
        fs::chown(fd, metadata.uid, metadata.gid).map_err(|error| ownership.explain(error, metadata))?;
    }
    let ignored = set_xattrs(fd, &metadata.xattrs, ownership)?;
    fs::chmod(fd, metadata.mode)?;
    fs::set_time(fd, metadata.mtime)?;
    Ok(ignored)
}

/// What an open file has, without overlayfs's own attributes.
pub(crate) fn metadata_of(fd: BorrowedFd<'_>, ownership: Ownership) -> Result<Metadata> {
    let stat = fs::stat(fd)?;
    let mut xattrs = Vec::new();
    for name in fs::list_xattrs(fd)? {
        let Ok(name) = name.into_string() else { continue };
        if name.starts_with(ownership.overlay_prefix()) || name.starts_with("security.selinux") {
            continue;
        }
        if let Some(value) = fs::get_xattr(fd, &name)? {
            xattrs.push((name, value));
        }
    }
    Ok(Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        xattrs,
    })
}
