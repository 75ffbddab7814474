//! Volumes: folders that outlive the workloads which write to them.
//!
//! | file | content |
//! |---|---|
//! | `NAME/volume.json` | [`VolumeState`] |
//! | `NAME/_data` | what the workloads see |
//! | `NAME/users/ID` | an empty file for each workload that mounts it; without one the volume can be removed |
//! | `NAME/lock` | locked by flock(2) by whoever removes, fills or takes the volume |
//! | `NAME/filling` | there while the image's content is copied into it: what it holds is not whole |
//! | `.new-*`, `.gone-*` | volumes that are half made or half removed; no name begins with a dot |
//!
//! A volume appears and disappears by one rename.

mod fill;
mod ready;
mod resolve;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use moat_linux::Errno;
use moat_model::workload::{MountSource, MountSpec};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::file::{self, Lasting};
use crate::roots::make_folder;
use crate::{Context, Error, Result, Timestamp};

pub(crate) use ready::{Looking, planned, ready};
pub(crate) use resolve::{decide, resolve};

/// The longest name: it is a file name, with room for the marks of half-made ones.
const MAX_NAME: usize = 200;

/// What is saved of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// When it was made.
    pub created: Timestamp,
    /// Nobody gave it a name: it goes with its workload where that is asked for.
    #[serde(default)]
    pub anonymous: bool,
    /// Free text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// A volume as it is wished for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name; an anonymous one gets 64 random hexadecimal digits.
    pub name: Option<String>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver: `type=none`, `o=bind`, `device=PATH` shows a folder of the host.
    pub options: BTreeMap<String, String>,
}

/// A volume that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What is saved of it.
    pub state: VolumeState,
    folder: PathBuf,
}

/// A volume that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedVolume {
    /// Its name.
    pub name: String,
    /// What it took on the disk.
    pub bytes: u64,
}

/// All volumes of an engine.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

impl Volumes {
    /// The volumes below `root`, which need not exist.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes a volume; one of the name that is there already is as good, if it has the same options.
    ///
    /// Errors: the name is not allowed; an option is not known; another volume of the name has other options.
    pub fn create(&self, spec: &VolumeSpec) -> Result<Volume> {
        self.create_for(spec, None)
    }

    /// As [`Volumes::create`]. A volume that is made is held for the workload `user` from the moment on at which it
    /// can be seen: an anonymous one that nobody holds was left on purpose.
    pub(crate) fn create_for(&self, spec: &VolumeSpec, user: Option<&str>) -> Result<Volume> {
        let name = match &spec.name {
            Some(name) => name.clone(),
            None => random_name()?,
        };
        check_name(&name)?;
        let state = VolumeState {
            created: Timestamp::now(),
            anonymous: spec.name.is_none(),
            labels: spec.labels.clone(),
            options: spec.options.clone(),
        };
        bind_device(&name, &state.options)?;
        make_folder(&self.root).context(|| format!("make volume {name}"))?;
        loop {
            if let Some(there) = self.get(&name)? {
                return same_options(there, &state);
            }
            if self.appear(&name, &state, user).context(|| format!("make volume {name}"))? {
                return Ok(Volume { folder: self.root.join(&name), name, state });
            }
        }
    }

    /// Whether the volume was made; another of the name may have come first, and may even be gone again.
    fn appear(&self, name: &str, state: &VolumeState, user: Option<&str>) -> Result<bool> {
        let half = self.root.join(marked("new", name)?);
        make_folder(&half).context(|| half.display().to_string())?;
        // So that a check that comes by takes it for what it is.
        let _at_work = try_lock(&half)?;
        let made = Self::make(&half, state, user).and_then(|()| {
            match rustix::fs::renameat_with(CWD, &half, CWD, self.root.join(name), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => Ok(false),
                other => Ok(other.map(|()| true)?),
            }
        });
        if !matches!(made, Ok(true)) {
            file::remove_tree(&half)?;
        }
        made
    }

    fn make(folder: &Path, state: &VolumeState, user: Option<&str>) -> Result<()> {
        let users = folder.join("users");
        make_folder(&users)?;
        if let Some(user) = user {
            note_user(&users.join(user))?;
        }
        File::create_new(folder.join("lock")).context(|| "lock")?;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o755).create(folder.join("_data")).context(|| "_data")?;
        // The mask of whoever calls must not make it another mode.
        moat_linux::fs::chmod_at(CWD, &folder.join("_data"), 0o755)?;
        let lasting = if state.anonymous { Lasting::Renamed } else { Lasting::Synced };
        file::write(&folder.join("volume.json"), state, lasting)
    }

    fn get(&self, name: &str) -> Result<Option<Volume>> {
        let folder = self.root.join(name);
        let state = file::read(&folder.join("volume.json"))?;
        Ok(state.map(|state| Volume { name: name.to_owned(), state, folder }))
    }

    /// Whether there is a volume of the name.
    ///
    /// Errors: the name is not allowed.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        check_name(name)?;
        Ok(self.get(name)?.is_some())
    }

    /// The folder that workloads see of a volume, also of one that is still to be made.
    ///
    /// Errors: the name is not allowed.
    pub(crate) fn place(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        match self.get(name)? {
            Some(volume) => volume.path(),
            None => Ok(self.root.join(name).join("_data")),
        }
    }

    /// The volume of a name.
    ///
    /// Errors: there is none.
    pub fn find(&self, name: &str) -> Result<Volume> {
        let found = if check_name(name).is_ok() { self.get(name)? } else { None };
        found.ok_or_else(|| {
            Error::not_found(format!("volume {name:?} does not exist"))
                .hint("`moat volume ls` lists those that do")
        })
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.root)? {
            if !name.starts_with('.') {
                found.extend(self.get(&name)?);
            }
        }
        Ok(found)
    }

    /// Removes a volume that no workload has.
    ///
    /// Errors: there is none; a workload has it.
    pub fn remove(&self, name: &str) -> Result<RemovedVolume> {
        let volume = self.find(name)?;
        let lock = volume.lock()?;
        if let [user, ..] = volume.users()?.as_slice() {
            let short = user.get(..12).unwrap_or(user);
            return Err(Error::conflict(format!("volume {name} is in use by workload {short}"))
                .hint("remove the workload first"));
        }
        self.take_away(&volume, lock)
    }

    /// Removes volumes that no workload has: anonymous ones, or all, of those that `wanted` picks.
    pub fn prune(&self, all: bool, wanted: &dyn Fn(&Volume) -> bool) -> Result<Vec<RemovedVolume>> {
        let mut removed = Vec::new();
        for volume in self.list()? {
            if !(all || volume.state.anonymous) || !wanted(&volume) {
                continue;
            }
            // One that vanishes or is taken meanwhile is none of ours.
            let Ok(lock) = volume.lock() else { continue };
            if volume.users()?.is_empty() {
                removed.push(self.take_away(&volume, lock)?);
            }
        }
        Ok(removed)
    }

    /// `lock` is held until nobody can find the volume any more.
    fn take_away(&self, volume: &Volume, lock: File) -> Result<RemovedVolume> {
        let bytes = volume.size_bytes()?;
        let gone = self.root.join(marked("gone", &volume.name)?);
        std::fs::rename(&volume.folder, &gone).context(|| format!("remove volume {}", volume.name))?;
        drop(lock);
        let _at_work = try_lock(&gone)?;
        file::remove_tree(&gone)?;
        Ok(RemovedVolume { name: volume.name.clone(), bytes })
    }

    /// Gives up the volumes among a workload's mounts; anonymous ones that nobody else has are removed if asked for.
    pub fn release(&self, mounts: &[MountSpec], workload: &str, remove_anonymous: bool) -> Result<()> {
        mounts
            .iter()
            .filter_map(volume_name)
            .try_for_each(|name| self.release_name(name, workload, remove_anonymous))
    }

    fn release_name(&self, name: &str, workload: &str, remove_anonymous: bool) -> Result<()> {
        let Some(volume) = self.get(name)? else { return Ok(()) };
        let lock = match volume.lock() {
            Err(error) if error.kind() == crate::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let last = volume.users()?.iter().all(|user| user == workload);
        if remove_anonymous && volume.state.anonymous && last {
            // With the note of its user, or whoever is killed in between would leave a volume of nobody's.
            self.take_away(&volume, lock)?;
        } else {
            file::remove_if_there(&volume.folder.join("users").join(workload))?;
        }
        Ok(())
    }

    /// What a SIGKILL has left: half-made and half-removed volumes, and users that do not exist any more; `repair` removes
    /// them. `exists` tells of a workload's id whether it is known. An anonymous volume goes with its last user: who was
    /// killed while a workload was made left it, since one that is removed is known until it has released its volumes.
    pub(crate) fn check(&self, repair: bool, exists: &dyn Fn(&str) -> bool) -> Result<Vec<Leftover>> {
        let mut findings = Vec::new();
        for name in file::names_in(&self.root)? {
            let path = self.root.join(&name);
            if name.starts_with('.') {
                // Whoever works on it holds the lock of its folder.
                let Some(_lock) = try_lock(&path)? else { continue };
                if repair {
                    file::remove_tree(&path)?;
                }
                findings.push(Leftover {
                    path,
                    fault: "is left from a volume that was made or removed".to_owned(),
                });
                continue;
            }
            for user in file::names_in(&path.join("users"))? {
                if !exists(&user) {
                    if repair {
                        self.release_name(&name, &user, true)?;
                    }
                    let path = path.join("users").join(&user);
                    let fault = format!("volume {name} is held for a workload that does not exist");
                    findings.push(Leftover { path, fault });
                }
            }
        }
        Ok(findings)
    }
}

/// What a SIGKILL has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) path: PathBuf,
    pub(crate) fault: String,
}

/// The lock of a folder that is no volume, or not yet; `None` while somebody has it.
fn try_lock(folder: &Path) -> Result<Option<File>> {
    let what = || folder.display().to_string();
    let folder = match File::open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(what)?,
    };
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(folder)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno).context(what),
    }
}

impl Volume {
    /// The folder that workloads see.
    ///
    /// Errors: an option of the volume is not known.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(bind_device(&self.name, &self.state.options)?.unwrap_or_else(|| self.folder.join("_data")))
    }

    /// Ids of the workloads that have it.
    pub fn users(&self) -> Result<Vec<String>> {
        file::names_in(&self.folder.join("users"))
    }

    /// What its own folder takes on the disk, files with several names counted once.
    pub fn size_bytes(&self) -> Result<u64> {
        disk_usage(&self.folder.join("_data"))
    }

    /// Waits for the right to change it.
    ///
    /// Errors: it was removed.
    fn lock(&self) -> Result<File> {
        let what = || format!("lock volume {}", self.name);
        let gone = || Error::not_found(format!("volume {} does not exist any more", self.name));
        let path = self.folder.join("lock");
        // Never made here: whoever came late would put it into a folder that is being removed.
        let lock = match OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(gone()),
            other => other.context(what)?,
        };
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.context(what)?,
            }
        }
        // Another of the name may stand here by now; its lock is another file.
        let ours = lock.metadata().context(what)?;
        match std::fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(lock),
            _ => Err(gone()),
        }
    }

    /// Notes that a workload has it.
    fn hold(&self, workload: &str) -> Result<()> {
        let _lock = self.lock()?;
        note_user(&self.folder.join("users").join(workload))
    }
}

/// Makes the file that stands for a user, if it is not there.
fn note_user(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop).context(|| path.display().to_string())
}

/// The volume that a mount of a created workload names.
fn volume_name(mount: &MountSpec) -> Option<&str> {
    match &mount.source {
        MountSource::Volume { name, .. } => name.as_deref(),
        MountSource::Bind { .. } | MountSource::Tmpfs { .. } => None,
    }
}

/// Docker's rule, which keeps a name within one folder.
fn check_name(name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && legal && (2..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "volume name {name:?} must be 2 to {MAX_NAME} of the characters A-Z a-z 0-9 _ . -, a letter or digit first"
    ))
    .hint("a path of the host begins with a slash"))
}

fn random_name() -> Result<String> {
    Ok(crate::workload::WorkloadId::random()?.as_str().to_owned())
}

/// The name of a folder that is no volume, or not yet.
fn marked(mark: &str, name: &str) -> Result<String> {
    Ok(format!(".{mark}-{name}-{}", random_name()?.get(..16).unwrap_or_default()))
}

fn same_options(there: Volume, wanted: &VolumeState) -> Result<Volume> {
    if there.state.options == wanted.options || wanted.options.is_empty() {
        return Ok(there);
    }
    Err(Error::conflict(format!("volume {} exists already, with other options", there.name)))
}

/// The folder of the host that a volume shows, where its options say so.
///
/// Errors: an option that is not known. Docker's driver hands them to mount(8), which reaches file systems of the
/// network; nothing of that is supported yet.
fn bind_device(name: &str, options: &BTreeMap<String, String>) -> Result<Option<PathBuf>> {
    if options.is_empty() {
        return Ok(None);
    }
    let refuse = |what: String| {
        Err(Error::invalid(format!("volume {name}: {what}"))
            .hint("type=none, o=bind and device=PATH show a folder of the host"))
    };
    for (key, value) in options {
        match (key.as_str(), value.as_str()) {
            ("type", "none" | "bind" | "") | ("o", "bind" | "rbind") => {}
            ("device", path) if Path::new(path).is_absolute() => {}
            ("device", path) => return refuse(format!("device {path:?} is not an absolute path")),
            ("type" | "o", _) => return refuse(format!("option {key}={value} is not supported")),
            _ => return refuse(format!("option {key} is not known")),
        }
    }
    match (options.get("o"), options.get("device")) {
        (Some(_), Some(path)) => Ok(Some(PathBuf::from(path))),
        _ => refuse("a folder of the host needs both o=bind and device".to_owned()),
    }
}

/// What a tree takes on the disk; symbolic links are not followed.
pub(crate) fn disk_usage(path: &Path) -> Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut folders = vec![path.to_owned()];
    let mut bytes = 0_u64;
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            // What vanishes meanwhile takes nothing.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.context(|| folder.display().to_string())?,
        };
        for entry in entries {
            let entry = entry.context(|| folder.display().to_string())?;
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            }
            if found.is_dir() || found.nlink() == 1 || seen.insert((found.dev(), found.ino())) {
                bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
