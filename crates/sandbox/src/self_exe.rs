//! The runtime's own program, out of a container's reach.
//!
//! Until it executes the user's program, init *is* the runtime, and /proc/PID/exe leads from inside the
//! container to the runtime's file on the host: who opens it there and waits until the runtime has ended
//! could write to it (CVE-2019-5736). So the runtime moves to a read-only view of its file that is attached
//! to no mount namespace, which nobody can make writable again: in place where the kernel lets it, else by
//! executing itself again from there. Who may make no such view executes a sealed copy in memory.
//!
//! The kernel takes a detached mount apart when its last descriptor is closed, and waits for a grace period
//! then. A new container unmounts the host's tree anyway, which waits as well: init gives the view to that tree
//! ([`hand_down`]), and one wait is enough for both.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use moat_linux::fs::{self, Follow};
use moat_linux::mount::{self, Attributes, attr};
use moat_linux::{image, process as sys};
use rustix::fs::{CWD, OFlags};

use crate::{Context, Error, Result};

const OWN: &str = "/proc/self/exe";

/// Marks the second start with the path of the first one's file; it is not part of any container's environment.
const AGAIN: &str = "_MOAT_PROTECTED";

/// The view that this process has moved to, and the path of the file that it shows. A process has one program.
static VIEW: OnceLock<(OwnedFd, PathBuf)> = OnceLock::new();

/// Makes sure that this process runs from a file that can not be written. Returns in a process that does;
/// it may have been executed again meanwhile, with the same arguments and environment.
pub fn protect() -> Result<()> {
    if is_protected()? {
        return Ok(());
    }
    if std::env::var_os(AGAIN).is_some() {
        return Err(Error::new("this program can not be protected against containers: its copy is writable"));
    }
    let view = match read_only_view() {
        Ok(view) => {
            let own = std::fs::read_link(OWN).context(|| OWN)?;
            if image::move_to(fs::reopen(view.as_fd(), OFlags::RDONLY)?.as_fd()).is_ok() {
                // Nobody has set it before: this runs once.
                let _ = VIEW.set((view, own));
                return Ok(());
            }
            view
        }
        Err(_) => sealed_copy().context(|| "make a sealed copy of this program")?,
    };
    let own = std::fs::read_link(OWN).context(|| OWN)?;
    // A path holds no NUL byte.
    let mark = CString::new([AGAIN.as_bytes(), b"=", own.as_os_str().as_bytes()].concat()).ok();
    Err(sys::execute_again(Some(view.as_fd()), c"", mark).into())
}

/// The file that this program was started from, also where the process has moved away from it.
pub fn own_path() -> Result<PathBuf> {
    if let Some((_, path)) = VIEW.get() {
        return Ok(path.clone());
    }
    match std::env::var_os(AGAIN) {
        Some(path) => Ok(PathBuf::from(path)),
        None => std::fs::read_link(OWN).context(|| OWN),
    }
}

/// Mounts the view that this process runs from over the program's file below `tree`, the root of a tree of mounts
/// of this process's own that is about to be detached. Nothing depends on it: without it, or where the file is not
/// found, the view goes when its last descriptor is closed.
pub(crate) fn hand_down(tree: BorrowedFd<'_>) {
    let Some((view, path)) = VIEW.get() else { return };
    if let Ok(place) = fs::open_in_root(tree, path, OFlags::PATH, 0, Follow::InRoot) {
        let _ = mount::attach(view.as_fd(), place.as_fd());
    }
}

fn is_protected() -> Result<bool> {
    let own = fs::open(Path::new(OWN), OFlags::RDONLY)?;
    Ok(fs::mount_flags(own.as_fd())?.contains(rustix::fs::StatVfsMountFlags::RDONLY)
        || fs::is_sealed(own.as_fd()))
}

fn read_only_view() -> Result<OwnedFd> {
    let view = mount::clone_tree(CWD, Path::new(OWN), false)?;
    let read_only = Attributes { set: attr::RDONLY, ..Attributes::default() };
    mount::set_attributes(view.as_fd(), read_only, false)?;
    Ok(view)
}

fn sealed_copy() -> Result<OwnedFd> {
    let mut copy = fs::memfd("moat-runtime")?;
    let mut own = std::fs::File::open(OWN)?;
    std::io::copy(&mut own, &mut copy)?;
    copy.flush()?;
    fs::seal(copy.as_fd())?;
    // Executed by descriptor; a copy that is still open for writing would be busy.
    Ok(fs::reopen(copy.as_fd(), OFlags::RDONLY)?)
}
