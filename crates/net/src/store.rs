//! What is kept on disk of networks and of the places that workloads have on them.
//!
//! | file | content |
//! |---|---|
//! | `DATA/networks/ID/network.json` | [`NetworkState`], synced and renamed into place |
//! | `RUN/networks/ID/leases/ADDRESS` | the workload that the address belongs to; made by link(2), which is the claim |
//! | `RUN/networks/ID/endpoints/WORKLOAD.json` | [`EndpointState`]; what the resolver reads |
//! | `RUN/networks/ID/resolver.lock` | locked by the resolver while it lives |
//! | `RUN/attachments/WORKLOAD/attachment.json` | [`NetAttachment`], written before anything is made |
//! | `RUN/netns/NAME` | network namespaces |
//!
//! `RUN` is worth nothing after a reboot, so it is renamed into place but not synced. A network is locked
//! shared by whoever joins a workload to it, and exclusively by whoever makes or removes it; a workload's
//! folder is locked by whoever changes its attachment. There is no lock that all share.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use moat_model::id::ContainerId;
use moat_model::network::{EndpointState, NetAttachment, NetworkState};
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Context;
use crate::{Error, Result};

/// The two roots.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

/// A lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    pub(crate) fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }

    pub(crate) fn network_file(&self, id: &str) -> PathBuf {
        self.networks().join(id).join("network.json")
    }

    /// What a network has while the host runs.
    pub(crate) fn network_run(&self, id: &str) -> PathBuf {
        self.run.join("networks").join(id)
    }

    pub(crate) fn leases(&self, id: &str) -> PathBuf {
        self.network_run(id).join("leases")
    }

    pub(crate) fn endpoints(&self, id: &str) -> PathBuf {
        self.network_run(id).join("endpoints")
    }

    pub(crate) fn endpoint_file(&self, id: &str, workload: &str) -> PathBuf {
        self.endpoints(id).join(format!("{workload}.json"))
    }

    pub(crate) fn attachments(&self) -> PathBuf {
        self.run.join("attachments")
    }

    pub(crate) fn attachment(&self, workload: &str) -> PathBuf {
        self.attachments().join(workload)
    }

    pub(crate) fn attachment_file(&self, workload: &str) -> PathBuf {
        self.attachment(workload).join("attachment.json")
    }

    pub(crate) fn namespaces(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// All networks, by name.
    pub(crate) fn list_networks(&self) -> Result<Vec<NetworkState>> {
        let mut found = Vec::new();
        for id in names(&self.networks())? {
            // A folder without the file belongs to a network that is just being made or removed.
            found.extend(read::<NetworkState>(&self.network_file(&id))?);
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// All places on a network.
    pub(crate) fn list_endpoints(&self, id: &str) -> Result<Vec<EndpointState>> {
        let mut found = Vec::new();
        let folder = self.endpoints(id);
        for name in names(&folder)? {
            if name.ends_with(".json") {
                found.extend(read::<EndpointState>(&folder.join(name))?);
            }
        }
        Ok(found)
    }

    /// All workloads that have an attachment, or had one that was cut off.
    pub(crate) fn list_workloads(&self) -> Result<Vec<String>> {
        Ok(names(&self.attachments())?.into_iter().filter(|name| ContainerId::new(name).is_ok()).collect())
    }

    pub(crate) fn load_attachment(&self, workload: &str) -> Result<Option<NetAttachment>> {
        read(&self.attachment_file(workload))
    }

    /// Locks a network. Errors: those of the file system; not that the network is gone.
    pub(crate) fn lock_network(&self, id: &str, exclusive: bool) -> Result<Lock> {
        let folder = self.network_run(id);
        make_folder(&folder)?;
        lock(&folder, exclusive)
    }

    /// Locks the packet filter: shared by whoever changes elements, and alone by whoever puts it up anew from what is
    /// saved, since that takes away what is not saved yet. What is to be changed is saved before.
    pub(crate) fn lock_filter(&self, exclusive: bool) -> Result<Lock> {
        let folder = self.attachments();
        make_folder(&folder)?;
        lock(&folder, exclusive)
    }

    /// Locks a network against everybody, where nobody has it locked.
    pub(crate) fn try_lock_network(&self, id: &str) -> Result<Option<Lock>> {
        try_lock(&self.network_run(id))
    }

    /// Locks the attachment of a workload; `None` where somebody is at work with it, or it is gone.
    pub(crate) fn try_lock_attachment(&self, workload: &str) -> Result<Option<Lock>> {
        try_lock(&self.attachment(workload))
    }
}

/// Locks a folder.
pub(crate) fn lock(folder: &Path, exclusive: bool) -> Result<Lock> {
    let what = || format!("lock {}", folder.display());
    let file = File::open(folder).context(what)?;
    let operation = if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
    rustix::fs::flock(&file, operation).map_err(std::io::Error::from).context(what)?;
    Ok(Lock { _file: file })
}

/// Locks a folder against everybody; `None` where somebody has it locked, or it is gone.
fn try_lock(folder: &Path) -> Result<Option<Lock>> {
    let what = || format!("lock {}", folder.display());
    let file = match File::open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(what)?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(std::io::Error::from(errno)).context(what),
    }
}

/// Makes a folder and those above it, for their owner alone.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.context(|| format!("make folder {}", path.display()))
}

/// The names in a folder, sorted; none where there is no folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let what = || format!("read folder {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(
            entry.context(what)?.file_name().into_string().ok().filter(|name| !name.starts_with('.')),
        );
    }
    found.sort();
    Ok(found)
}

/// Reads a file of ours; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| path.display().to_string())?,
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|error| Error::host(format!("{}: {error}", path.display())))
}

/// Writes a file beside `path` and renames it into place; `sync` lets it outlive a power cut.
pub(crate) fn write(path: &Path, value: &impl Serialize, sync: bool) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let what = || format!("write {}", path.display());
    let text = serde_json::to_vec(value).map_err(|error| Error::host(error.to_string())).context(what)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.{number}", std::process::id()));
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let written = opened.and_then(|mut file| {
        file.write_all(&text)?;
        if sync { file.sync_all() } else { Ok(()) }
    });
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    renamed.context(what)?;
    if sync {
        let folder = path.parent().unwrap_or(path);
        File::open(folder).and_then(|folder| folder.sync_all()).context(what)?;
    }
    Ok(())
}

/// Files that [`write`] was about to rename when its process was killed.
pub(crate) fn cut_off(folder: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("read folder {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(what)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let writer = name.strip_prefix('.').and_then(|name| name.rsplit('.').nth(1)?.parse::<u32>().ok());
        if writer.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a file; it is no error that it is gone.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a folder with all that is in it; it is no error that it is gone.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
