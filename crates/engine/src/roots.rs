//! Where the engine keeps what it knows.
//!
//! | folder | holds |
//! |---|---|
//! | `DATA/images` | images and their layers |
//! | `DATA/workloads/ID` | [`WorkloadFolder`](crate::workload) |
//! | `DATA/names/NAME` | a symbolic link to the workload of that name: made only if there is none |
//! | `DATA/removing/ID` | workloads that are gone for everybody, while their files are deleted |
//! | `DATA/volumes/NAME` | volumes |
//! | `DATA/kernels/NAME` | [kernels of guests](crate::kernel) |
//! | `DATA/events` | what happened |
//! | `RUN/workloads/ID` | the attach socket of a workload that runs |
//! | `RUN/root` | where every monitor mounts the root file system of its workload, each in a namespace of its own |
//! | `RUN/runtime` | the sandbox's state |

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{Context, Error, Result};

/// The two roots: what lasts, and what a reboot may forget. Both are mode 0700.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Images, workloads, volumes.
    pub data: PathBuf,
    /// Sockets, mount points, the sandbox's state.
    pub run: PathBuf,
}

impl Roots {
    /// The roots of this user, or those that were asked for: with `data` alone the other lies below it.
    ///
    /// Errors: an ordinary user whose environment names no home.
    pub fn find(data: Option<&Path>, run: Option<&Path>) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).context(|| format!("root {}", path.display()));
        let root = moat_linux::credentials::effective_user() == 0 && !crate::rootless::is_inside();
        let data_root = match data {
            Some(path) => absolute(path)?,
            None if root => PathBuf::from("/var/lib/moat"),
            None => user_data()?,
        };
        let run_root = match (run, data) {
            (Some(path), _) => absolute(path)?,
            (None, Some(_)) => data_root.join("run"),
            (None, None) if root => PathBuf::from("/run/moat"),
            (None, None) => user_run().unwrap_or_else(|| data_root.join("run")),
        };
        Ok(Self { data: data_root, run: run_root })
    }

    /// Makes the roots where they are missing.
    ///
    /// Errors: one can not be made, or belongs to somebody else.
    pub fn prepare(&self) -> Result<()> {
        for root in [&self.data, &self.run] {
            match std::fs::metadata(root) {
                Ok(found) => check(root, &found)?,
                Err(_) => make(root)?,
            }
        }
        Ok(())
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn workloads(&self) -> PathBuf {
        self.data.join("workloads")
    }

    pub(crate) fn names(&self) -> PathBuf {
        self.data.join("names")
    }

    pub(crate) fn removing(&self) -> PathBuf {
        self.data.join("removing")
    }

    /// The folder of volumes.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.data.join("events")
    }

    pub(crate) fn running(&self) -> PathBuf {
        self.run.join("workloads")
    }

    pub(crate) fn mount_point(&self) -> PathBuf {
        self.run.join("root")
    }

    /// Where a monitor shows the shared memory of another workload, in its own mount namespace.
    pub(crate) fn shm_point(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// Where a monitor shows parts of volumes, in its own mount namespace.
    pub(crate) fn parts_point(&self) -> PathBuf {
        self.run.join("parts")
    }

    pub(crate) fn sandbox(&self) -> PathBuf {
        self.run.join("runtime")
    }
}

fn user_data() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(folder).join("moat"));
    }
    match std::env::var_os("HOME").filter(|value| !value.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".local/share/moat")),
        None => Err(Error::new("HOME is not set").hint("name a folder for images and workloads with --root")),
    }
}

/// Where there is no session, sockets lie below the data, as with a root that was named.
fn user_run() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty())?;
    Some(PathBuf::from(folder).join("moat"))
}

fn check(root: &Path, found: &std::fs::Metadata) -> Result<()> {
    if !found.is_dir() {
        return Err(Error::new(format!("root {} is not a directory", root.display())));
    }
    if found.uid() != moat_linux::credentials::effective_user() {
        return Err(Error::new(format!("root {} belongs to user {}", root.display(), found.uid())));
    }
    if found.mode() & 0o077 != 0 {
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(root, closed)
            .context(|| format!("root {}: make it mode 0700", root.display()))?;
    }
    Ok(())
}

fn make(root: &Path) -> Result<()> {
    make_folder(root).context(|| format!("root {}", root.display()))
}

/// Makes a folder and those above it, mode 0700; one that is there is left as it is.
pub(crate) fn make_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// Makes a folder, mode 0700, in one that is made where it is missing. Errors: it is there already.
pub(crate) fn claim_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    match builder.create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_folder(path.parent().unwrap_or(path))?;
            builder.create(path)
        }
        other => other,
    }
}
