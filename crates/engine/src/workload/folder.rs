//! A workload on disk.
//!
//! | file | content |
//! |---|---|
//! | `spec.json` | [`WorkloadRecord`]; written last by `create`, so a folder without it is half-made |
//! | `mounts.json` | its mounts with every volume named; not there when it has none |
//! | `state.json` | [`WorkloadState`] |
//! | `lock` | locked by flock(2) by whoever creates, starts, changes or removes the workload |
//! | `upper`, `work` | what the workload wrote, as overlayfs keeps it |
//! | `hostname`, `hosts`, `resolv.conf` | mounted over those in /etc |
//! | `log/json.log` | its output |
//!
//! and in the other root, as long as it runs: `attach.sock`.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use moat_model::workload::MountSpec;
use rustix::fs::FlockOperation;

use super::name::WorkloadId;
use super::state::{WorkloadRecord, WorkloadState};
use crate::file::{self, Lasting};
use crate::roots::{Roots, claim_folder, make_folder};
use crate::{Context, Error, Result};

/// Where the files of one workload are.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) id: WorkloadId,
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

/// The right to change a workload, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// An empty file in the folder of a workload that is removed together with its anonymous volumes.
const VOLUMES_GO: &str = "volumes-go";

/// What a removal that was begun is about: the mounts, and whether anonymous volumes go, too. `data` is the folder of the
/// workload, wherever it is by now.
pub(crate) fn removal(data: &Path) -> Result<(Vec<MountSpec>, bool)> {
    let mounts = file::read(&data.join("mounts.json"))?.unwrap_or_default();
    Ok((mounts, data.join(VOLUMES_GO).exists()))
}

impl Folder {
    pub(crate) fn new(roots: &Roots, id: WorkloadId) -> Self {
        Self { data: roots.workloads().join(id.as_str()), run: roots.running().join(id.as_str()), id }
    }

    /// Makes the folder, and locks it.
    pub(super) fn make(&self) -> Result<Lock> {
        claim_folder(&self.data).context(|| format!("workload folder {}", self.data.display()))?;
        self.lock()
    }

    /// Waits for the right to change the workload.
    ///
    /// Errors: it was removed meanwhile.
    pub(crate) fn lock(&self) -> Result<Lock> {
        self.take_lock(FlockOperation::LockExclusive)?
            .ok_or_else(|| Error::new(format!("workload {} is locked", self.id.short())))
    }

    /// The right to change the workload, if nobody has it now.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>> {
        self.take_lock(FlockOperation::NonBlockingLockExclusive)
    }

    fn take_lock(&self, operation: FlockOperation) -> Result<Option<Lock>> {
        let what = || format!("lock workload {}", self.id.short());
        let mut options = OpenOptions::new();
        let lock =
            match options.write(true).create(true).truncate(false).mode(0o600).open(self.data.join("lock")) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.gone()),
                other => other.context(what)?,
            };
        loop {
            match rustix::fs::flock(&lock, operation) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => break other.context(what)?,
            }
        }
        // Whoever had the lock before may have removed the workload.
        if self.data.is_dir() { Ok(Some(Lock { _file: lock })) } else { Err(self.gone()) }
    }

    fn gone(&self) -> Error {
        Error::not_found(format!("workload {} does not exist any more", self.id.short()))
    }

    /// What was asked for; `None` for a folder that is half-made.
    pub(crate) fn record(&self) -> Result<Option<WorkloadRecord>> {
        file::read(&self.data.join("spec.json"))
    }

    pub(crate) fn save_record(&self, record: &WorkloadRecord) -> Result<()> {
        // What is removed at its end need not outlive a crash of the machine.
        let lasting = if record.spec.auto_remove { Lasting::Renamed } else { Lasting::Synced };
        file::write(&self.data.join("spec.json"), record, lasting)
    }

    /// Its mounts, every volume named.
    pub(crate) fn mounts(&self) -> Result<Vec<MountSpec>> {
        Ok(file::read(&self.data.join("mounts.json"))?.unwrap_or_default())
    }

    pub(super) fn save_mounts(&self, mounts: &[MountSpec]) -> Result<()> {
        file::write(&self.data.join("mounts.json"), &mounts, Lasting::Renamed)
    }

    /// Notes that its anonymous volumes go with it: who finishes the removal after a SIGKILL must know.
    pub(super) fn note_volumes_go(&self) -> Result<()> {
        let path = self.data.join(VOLUMES_GO);
        File::create(&path).map(drop).context(|| path.display().to_string())
    }

    /// The state as it was saved last; that of a new workload when none was.
    pub(crate) fn state(&self) -> Result<WorkloadState> {
        Ok(file::read(&self.data.join("state.json"))?.unwrap_or_default())
    }

    pub(crate) fn save_state(&self, state: &WorkloadState) -> Result<()> {
        file::write(&self.data.join("state.json"), state, Lasting::Renamed)
    }

    /// The folder of the socket; made where it is missing.
    pub(crate) fn make_run(&self) -> Result<()> {
        make_folder(&self.run).context(|| format!("folder {}", self.run.display()))
    }

    /// Removes what only a workload that runs needs.
    pub(crate) fn remove_run(&self) -> Result<()> {
        file::remove_if_there(&self.run.join(crate::monitor::SOCKET))?;
        match std::fs::remove_dir(&self.run) {
            // What a machine had there.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => file::remove_tree(&self.run),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", self.run.display()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.data.join("upper")
    }

    /// The disk that a machine writes to.
    pub(crate) fn disk(&self) -> PathBuf {
        self.data.join("disk.ext4")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.data.join("work")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("log")
    }

    /// Makes the workload vanish for everybody, in one step; its files go to the returned folder.
    pub(super) fn take_away(&self, roots: &Roots) -> Result<PathBuf> {
        let removing = roots.removing();
        let target = removing.join(self.id.as_str());
        let renamed = match std::fs::rename(&self.data, &target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_folder(&removing).context(|| removing.display().to_string())?;
                std::fs::rename(&self.data, &target)
            }
            other => other,
        };
        renamed.context(|| format!("move {} away", self.data.display()))?;
        Ok(target)
    }
}
