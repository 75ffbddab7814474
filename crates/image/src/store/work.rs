//! Folders for what is under way. Each is locked by the process that works there, and tells what it is about to use,
//! so that nobody takes that away meanwhile.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::layer::tree;
use crate::{Context, Digest, Error, Result};

/// The file of a work folder that says what its owner is about to use.
const LEASE: &str = "lease.json";

/// What must not go while somebody works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) blobs: BTreeSet<Digest>,
    /// Chain ids.
    pub(crate) layers: BTreeSet<Digest>,
}

/// A folder for unfinished things; it goes, with what is in it, when this is dropped.
#[derive(Debug)]
pub(crate) struct Work {
    path: PathBuf,
    _lock: File,
}

/// A name that no other process of this machine uses, and this one not again.
pub(super) fn unique_name(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // A process id comes back one day; the time tells the two apart.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{:x}-{count}", std::process::id(), now.as_nanos())
}

fn try_lock(folder: &File) -> rustix::io::Result<()> {
    rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive)
}

impl Work {
    /// Makes a folder; `what` shows in its name.
    pub(crate) fn new(store: &Store, what: &str) -> Result<Self> {
        // Whoever removes holds the lock, so nobody sees the folder before its own lock is taken.
        let _lock = store.lock_to_add()?;
        Self::adopt(store.root().join("work").join(unique_name(what)))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder inside, which others may search once it is elsewhere.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o755).create(&path).context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Says what is about to be used. What is there from now on stays until this is dropped.
    pub(crate) fn lease(&self, store: &Store, lease: &Lease) -> Result<()> {
        let _lock = store.lock_to_add()?;
        let text = serde_json::to_vec(lease).map_err(|error| Error::new(error.to_string()))?;
        let path = self.path.join(LEASE);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays behind, because the disk fails, say, is found by the store's check.
        let _ = remove_tree(&self.path);
    }
}

pub(super) fn remove_tree(path: &Path) -> Result<()> {
    use std::os::fd::AsFd;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = File::open(parent).context(|| format!("remove {}", path.display()))?;
    tree::remove(parent.as_fd(), Path::new(name)).context(|| format!("remove {}", path.display()))
}

impl Store {
    /// What is in `work`: the leases of those who live, and the paths that nobody owns. The caller may remove.
    pub(super) fn look_at_work(&self) -> Result<(Vec<Lease>, Vec<PathBuf>)> {
        let (mut leases, mut stale) = (Vec::new(), Vec::new());
        let folder = self.root().join("work");
        for entry in std::fs::read_dir(&folder).context(|| folder.display().to_string())? {
            let entry = entry.context(|| folder.display().to_string())?;
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // A file that is being replaced; its writer's process id stands in its name.
                if !writer_lives(&path) {
                    stale.push(path);
                }
                continue;
            }
            let Ok(opened) = File::open(&path) else { continue };
            if try_lock(&opened).is_ok() {
                stale.push(path);
                continue;
            }
            match std::fs::read(path.join(LEASE)) {
                Ok(text) => {
                    let lease = serde_json::from_slice(&text);
                    leases.push(lease.map_err(|error| Error::new(format!("{}: {error}", path.display())))?);
                }
                // It uses nothing yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| path.display().to_string()),
            }
        }
        Ok((leases, stale))
    }
}

fn writer_lives(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let pid = name.split('-').nth(1).and_then(|pid| pid.parse::<i32>().ok());
    pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

impl Work {
    /// As [`new`](Self::new), for a caller who holds the store's lock.
    pub(super) fn adopt(path: PathBuf) -> Result<Self> {
        let failed = || format!("make {}", path.display());
        DirBuilder::new().mode(0o700).create(&path).context(failed)?;
        let folder = File::open(&path).context(failed)?;
        try_lock(&folder).context(failed)?;
        Ok(Self { path, _lock: folder })
    }
}
