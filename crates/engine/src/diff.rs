//! What a workload has changed in its root file system, told by its upper directory.
//!
//! overlayfs keeps there what was written: new files, whole copies of changed ones, and marks for what was removed. Each
//! is held against the image's layers, merged: what is not in them is new. Where the workload has mounts the engine
//! has made places for them; those are none of its changes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::{fs, xattr};
use rustix::fs::{FileType, OFlags, Stat};

use crate::view::View;
use crate::{Context, Result, Workload};

/// How a path differs from the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// `A`
    Added,
    /// `C`
    Changed,
    /// `D`
    Deleted,
}

impl ChangeKind {
    /// Docker's letter.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// A path that differs from the image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Absolute, within the workload.
    pub path: PathBuf,
    /// How.
    pub kind: ChangeKind,
}

struct Diff {
    changes: Vec<Change>,
    /// Places that the engine has made.
    places: Vec<PathBuf>,
}

impl Workload {
    /// What it has changed, by path.
    pub fn diff(&self) -> Result<Vec<Change>> {
        self.refuse_microvm("can not list the changes of")?;
        let view = View::of_image(self.engine(), self.image()?)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let upper = fs::open(&self.folder().upper(), flags)?;
        let lower = fs::open_at(view.root(), Path::new("."), flags, 0)?;
        let mut diff = Diff { changes: Vec::new(), places: self.mount_places()? };
        diff.folder(&upper, Some(&lower), Path::new("/"))
            .context(|| format!("diff of workload {}", self.name()))?;
        diff.changes.sort();
        Ok(diff.changes)
    }

    /// Where the engine mounts something: what is there in the upper directory was made for that.
    pub(crate) fn mount_places(&self) -> Result<Vec<PathBuf>> {
        let own = ["/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        let mut places: Vec<PathBuf> = own.iter().map(PathBuf::from).collect();
        places.extend(self.mounts()?.iter().map(|mount| Path::new("/").join(&mount.target)));
        Ok(places)
    }
}

impl Diff {
    fn folder(&mut self, upper: &OwnedFd, lower: Option<&OwnedFd>, path: &Path) -> Result<()> {
        let readable = fs::reopen(upper.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let opaque = is_opaque(upper)?;
        for (name, _) in fs::entries(readable.as_fd())? {
            let name = Path::new(&name);
            let path = path.join(name);
            // Gone while this looked.
            let Some(found) = fs::stat_at(readable.as_fd(), name)? else { continue };
            let below = match lower {
                Some(lower) => fs::stat_at(lower.as_fd(), name)?.filter(|found| !is_whiteout(found)),
                None => None,
            };
            if self.places.contains(&path) {
                continue;
            }
            if is_whiteout(&found) {
                if below.is_some() {
                    self.changes.push(Change { path, kind: ChangeKind::Deleted });
                }
                continue;
            }
            if kind(&found) != FileType::Directory {
                let change = if below.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
                self.changes.push(Change { path, kind: change });
                continue;
            }
            self.below(&readable, lower, name, path, below.as_ref())?;
        }
        if let (true, Some(lower)) = (opaque, lower) {
            self.hidden(&readable, lower, path)?;
        }
        Ok(())
    }

    /// A folder of the upper directory. One that only holds places of mounts was made for them.
    fn below(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        name: &Path,
        path: PathBuf,
        found: Option<&Stat>,
    ) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let folder = fs::open_at(upper.as_fd(), name, flags, 0)?;
        let same = found.is_some_and(|found| kind(found) == FileType::Directory);
        let lower = match lower {
            Some(lower) if same => Some(fs::open_at(lower.as_fd(), name, flags, 0)?),
            _ => None,
        };
        let before = self.changes.len();
        self.folder(&folder, lower.as_ref(), &path)?;
        let holds_place = self.places.iter().any(|place| place.starts_with(&path));
        if !(holds_place && self.changes.len() == before) {
            let change = if found.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
            self.changes.push(Change { path, kind: change });
        }
        Ok(())
    }

    /// A folder that was removed and made anew hides all that the image has in it.
    fn hidden(&mut self, upper: &OwnedFd, lower: &OwnedFd, path: &Path) -> Result<()> {
        let readable = fs::reopen(lower.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        for (name, _) in fs::entries(readable.as_fd())? {
            if fs::stat_at(upper.as_fd(), Path::new(&name))?.is_none() {
                self.changes.push(Change { path: path.join(name), kind: ChangeKind::Deleted });
            }
        }
        Ok(())
    }
}

fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

/// overlayfs's mark for a name that is gone.
fn is_whiteout(found: &Stat) -> bool {
    kind(found) == FileType::CharacterDevice && found.st_rdev == 0
}

fn is_opaque(folder: &OwnedFd) -> Result<bool> {
    for name in [c"trusted.overlay.opaque", c"user.overlay.opaque"] {
        if xattr::get(folder.as_fd(), name)?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}
