//! Containers on disk: one folder each below the state root, readable by a person.
//!
//! | file | content |
//! |---|---|
//! | `state.json` | [`ContainerState`] of a container that is complete, and below `config` its configuration |
//! | `state.json.begun` | the same while it is being built; it becomes `state.json` by a rename |
//! | `exec.fifo` | exists from `create` to `start`; a byte in it lets the program run |
//! | `status.fifo` | on which init tells `start` that the program could not be executed |
//!
//! The folder is made by mkdir(2), which is what claims the name, and locked by flock(2) by whoever
//! changes the container. State lies on a tmpfs or is worth nothing after a reboot, so it is renamed
//! into place but not synced. No rename replaces a file: ext4 would write the new one to the disk at once, and
//! its removal, a few milliseconds later, would wait for that. The state is one file for the same kind of reason:
//! the more files were removed lately, the longer ext4 looks for the number of a new one.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use moat_model::id::ContainerId;
use moat_model::oci::{self, Spec};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cgroup::CgroupState;
use crate::{Context, Error, Result};

/// What is saved of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Its name.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    /// When the container was created, RFC 3339.
    pub created: String,
    /// The user who created it.
    pub owner: u32,
    /// Its control groups.
    pub cgroup: CgroupState,
    /// The annotations of its configuration.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The first process as the host sees it; 0 before it was made. This and the next field are the last ones, and
    /// the only ones that change.
    pub pid: i32,
    /// When that process was started, in clock ticks since boot: tells it from a later one of that number.
    pub pid_start_ticks: u64,
}

/// Where a container is in its life.
///
/// ```text
/// (none) --create--> Creating --> Created --start--> Running <--pause/resume--> Paused
///                        \            \                  |                         |
///                         `---(killed)-`---> Stopped <---'-------------------------'
/// Stopped --delete--> (none);  delete --force from anywhere
/// ```
///
/// Nothing of it is saved: it follows from the process, the FIFO and the freezer, so a killed runtime
/// can not leave a status that is a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Being built, or left half-built by a runtime that was killed.
    Creating,
    /// Built, waits for `start`.
    Created,
    /// The program runs.
    Running,
    /// Frozen.
    Paused,
    /// The first process has ended.
    Stopped,
}

impl Status {
    /// The specification's word (`paused` is runc's).
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's folder, which exists.
#[derive(Debug)]
pub struct Folder {
    id: ContainerId,
    path: PathBuf,
    lock: Option<File>,
    /// Where the process stands in the state that this value has begun.
    process_at: u64,
}

/// The state root: the folder in which containers have theirs.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// A state root; it is made, mode 0700, when the first container is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Claims a name: makes the folder and locks it.
    ///
    /// Errors: the name is taken; the root can not be written.
    pub fn claim(&self, id: &ContainerId) -> Result<Folder> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let path = self.root.join(id.as_str());
        let made = match builder.create(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parents = DirBuilder::new().mode(0o700).recursive(true).create(&self.root);
                parents.context(|| format!("state root {}", self.root.display()))?;
                builder.create(&path)
            }
            other => other,
        };
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::new(format!("container with id exists already: {id}")));
            }
            Err(error) => return Err(error).context(|| format!("state folder {}", path.display())),
        }
        let mut folder = Folder { id: id.clone(), path, lock: None, process_at: 0 };
        folder.lock()?;
        Ok(folder)
    }

    /// The folder of a container that exists.
    pub fn open(&self, id: &ContainerId) -> Result<Folder> {
        let path = self.root.join(id.as_str());
        if path.is_dir() {
            Ok(Folder { id: id.clone(), path, lock: None, process_at: 0 })
        } else {
            Err(Error::new(format!("container does not exist: {id}")))
        }
    }

    /// The names of all containers, sorted.
    pub fn list(&self) -> Result<Vec<ContainerId>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(|| format!("state root {}", self.root.display()))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.context(|| self.root.display().to_string())?.file_name();
            found.extend(name.to_str().and_then(|name| ContainerId::new(name).ok()));
        }
        found.sort();
        Ok(found)
    }
}

impl Folder {
    /// The container's name.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the right to change the container; held until the folder is dropped.
    ///
    /// Errors: the container was deleted meanwhile.
    pub fn lock(&mut self) -> Result<()> {
        let what = || format!("lock container {}", self.id);
        let folder = File::open(&self.path).context(what)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(std::io::Error::from)
            .context(what)?;
        if !self.path.is_dir() {
            return Err(Error::new(format!("container does not exist: {}", self.id)));
        }
        self.lock = Some(folder);
        Ok(())
    }

    /// Lets others change the container. A fork must do so: a lock belongs to all copies of a descriptor.
    pub(crate) fn unlock(&mut self) {
        self.lock = None;
    }

    /// The FIFO that `start` writes to.
    pub fn exec_fifo(&self) -> PathBuf {
        self.path.join("exec.fifo")
    }

    /// Whether init still reads the FIFO. That it exists says less: a `start` that was killed leaves it.
    fn awaits_start(&self) -> bool {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().write(true).custom_flags(flags).open(self.exec_fifo()).is_ok()
    }

    /// The FIFO on which init tells of a failure after `start`.
    pub fn status_fifo(&self) -> PathBuf {
        self.path.join("status.fifo")
    }

    /// Saves the state with which building begins, and the configuration: the bundle may change, the container does
    /// not. Nothing is made before this is done.
    pub(crate) fn begin(&mut self, state: &ContainerState, config: &[u8]) -> Result<()> {
        let text = state_text(state, config)?;
        self.process_at = process_at(&text) as u64;
        write_own(&self.begun(), &text)
    }

    /// Writes the process into the state of a container that is being built. What stands before it is the same as
    /// it was: only the end is written, by one write to one page, which no death cuts in two.
    pub(crate) fn stage(&self, state: &ContainerState) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let (path, text) = (self.begun(), json(state)?);
        let end = text.get(process_at(&text)..).unwrap_or_default();
        let opened = OpenOptions::new().write(true).open(&path);
        let written = opened.and_then(|file| file.write_all_at(end, self.process_at));
        written.context(|| format!("write {}", path.display()))
    }

    /// Puts the staged state into force.
    pub(crate) fn commit(&self) -> Result<()> {
        let path = self.complete();
        std::fs::rename(self.begun(), &path).context(|| format!("write {}", path.display()))
    }

    /// The state of a container that is complete.
    pub(crate) fn complete(&self) -> PathBuf {
        self.path.join("state.json")
    }

    fn begun(&self) -> PathBuf {
        self.path.join("state.json.begun")
    }

    /// The saved state, that of a container which is still being built included; `None` when the runtime was
    /// killed before it had saved one.
    pub fn load(&self) -> Result<Option<ContainerState>> {
        match read_state(&self.complete())? {
            Some(state) => Ok(Some(state)),
            // Its process is not the container's before all is built.
            None => Ok(self.load_begun().map(|state| ContainerState { pid: 0, pid_start_ticks: 0, ..state })),
        }
    }

    /// The state of a container that is being built, or was until the runtime was killed; `None` also for one that
    /// this death has cut off.
    fn load_begun(&self) -> Option<ContainerState> {
        read_state(&self.begun()).ok().flatten()
    }

    /// As it was staged by a create which did not come to put it into force.
    pub(crate) fn load_staged(&self) -> Option<ContainerState> {
        self.load_begun().filter(|state| state.pid != 0)
    }

    /// The configuration of a container that is complete.
    pub fn config(&self) -> Result<Spec> {
        #[derive(Deserialize)]
        struct Saved<'text> {
            #[serde(borrow)]
            config: &'text RawValue,
        }
        let path = self.complete();
        let name = path.display().to_string();
        let text = std::fs::read(&path).context(|| name.clone())?;
        let saved: Saved<'_> =
            serde_json::from_slice(&text).map_err(|error| Error::new(format!("{name}: {error}")))?;
        crate::plan::parse_config(saved.config.get().as_bytes(), &name)
    }

    /// Removes the folder: the name is free again.
    pub fn remove(self) -> Result<()> {
        // What is known to be there goes without a look at the folder.
        let _ = std::fs::remove_file(self.complete());
        match std::fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(_) => {
                std::fs::remove_dir_all(&self.path).context(|| format!("remove {}", self.path.display()))
            }
        }
    }
}

fn read_state(path: &Path) -> Result<Option<ContainerState>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| path.display().to_string())?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))
}

/// Where the process stands in the text of a state.
fn process_at(text: &[u8]) -> usize {
    const KEY: &[u8] = b"\"pid\":";
    text.windows(KEY.len()).rposition(|part| part == KEY).unwrap_or(0)
}

fn json(state: &ContainerState) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|error| Error::new(error.to_string()))
}

/// The text of a state and a configuration, such that the process, whatever its numbers, stands within one page.
fn state_text(state: &ContainerState, config: &[u8]) -> Result<Vec<u8>> {
    const PAGE_BYTES: usize = 4096;
    // Both keys, and both numbers at their longest.
    const MOST_BYTES: usize = 64;
    let own = json(state)?;
    let fields = own.strip_prefix(b"{").unwrap_or_default();
    let mut text = [b"{\"config\":", config.trim_ascii(), b",", fields].concat();
    let at = process_at(&text);
    let left = PAGE_BYTES - at % PAGE_BYTES;
    if left < MOST_BYTES {
        text.splice(at..at, std::iter::repeat_n(b' ', left));
    }
    Ok(text)
}

impl ContainerState {
    /// Whether the first process still lives (a zombie does not).
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && process_start(self.pid).is_some_and(|ticks| ticks == self.pid_start_ticks)
    }

    /// Where the container is in its life.
    pub fn status(&self, folder: &Folder) -> Result<Status> {
        if self.pid == 0 {
            return Ok(Status::Creating);
        }
        if !self.is_alive() {
            return Ok(Status::Stopped);
        }
        if self.cgroup.is_frozen()? {
            return Ok(Status::Paused);
        }
        Ok(if folder.awaits_start() { Status::Created } else { Status::Running })
    }

    /// The state as hooks and `state` print it.
    pub fn to_oci(&self, status: Status) -> oci::State {
        oci::State {
            oci_version: oci::VERSION.to_owned(),
            id: self.id.clone(),
            status: status.name().to_owned(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

/// When a process was started, in clock ticks since boot (proc(5), field 22 of stat); `None` when it
/// does not exist or is a zombie.
pub fn process_start(pid: i32) -> Option<u64> {
    let text = moat_linux::fs::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // The name, in parentheses, may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let dead = matches!(fields.first(), Some(&("Z" | "X")));
    if dead { None } else { fields.get(19)?.parse().ok() }
}

/// Writes a file that only its owner reads, also if the folder should be open one day.
fn write_own(path: &Path, content: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(content)).context(|| format!("write {}", path.display()))
}

/// Writes a file beside `path`, with the permissions `mode`, and renames it into place.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
    let created = match create() {
        // Left by a process of the same number that was killed; or a link that somebody who may write to
        // the folder wants to be followed.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            std::fs::remove_file(&temporary).and_then(|()| create())
        }
        other => other,
    };
    let written = created.and_then(|mut file| file.write_all(content));
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    renamed.context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str) -> ContainerState {
        ContainerState {
            id: id.to_owned(),
            bundle: "/\"pid\":/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: 0,
            cgroup: CgroupState::default(),
            annotations: BTreeMap::new(),
            pid: 0,
            pid_start_ticks: 0,
        }
    }

    #[test]
    fn the_process_lies_within_a_page_and_changes_nothing_before_it() {
        for length in 3700..4200 {
            let begun = state(&"x".repeat(length));
            let built = ContainerState { pid: i32::MAX, pid_start_ticks: u64::MAX, ..begun.clone() };
            let mut text = state_text(&begun, b" {\"pid\": 1}\n").unwrap();
            let at = process_at(&text);
            let end = json(&built).unwrap().split_off(process_at(&json(&built).unwrap()));
            text.truncate(at);
            text.extend(end);
            assert_eq!(at / 4096, (text.len() - 1) / 4096, "{length}");
            let read: ContainerState = serde_json::from_slice(&text).unwrap();
            assert_eq!((read.pid, read.pid_start_ticks), (i32::MAX, u64::MAX));
            assert_eq!((read.id, read.bundle), (built.id, built.bundle));
        }
    }
}
