//! Network namespaces that exist before their workload does: files of nsfs, bound below the run folder.
//!
//! The folder is a mount of its own that is shared with all who copy it: when a namespace is unbound here,
//! it is unbound everywhere, and nobody keeps the network of a workload that has ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use moat_linux::mount::{self, Attributes, propagation};
use moat_linux::process::{self, namespace};
use moat_linux::{Errno, fs};
use rustix::fs::OFlags;

use crate::error::Context;
use crate::route::Route;
use crate::{Error, Result};

/// The namespace of this thread.
pub(crate) fn own() -> Result<OwnedFd> {
    Ok(fs::open(Path::new("/proc/thread-self/ns/net"), OFlags::RDONLY)?)
}

/// The namespace behind a file.
pub(crate) fn open(path: &Path) -> Result<OwnedFd> {
    fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(Error::from)
        .context(|| format!("network namespace {}", path.display()))
}

/// Does something in another namespace, and comes back. Only this thread goes.
pub(crate) fn within<T>(target: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let home = own()?;
    process::join(target, namespace::NETWORK)?;
    let done = work();
    process::join(home.as_fd(), namespace::NETWORK).context(|| "return to the host's network namespace")?;
    done
}

/// Makes a namespace, bound at `path`, with loopback up and ready for interfaces; a socket in it comes back, too.
pub(crate) fn make(path: &Path) -> Result<(OwnedFd, Route)> {
    let what = || format!("network namespace {}", path.display());
    let home = own()?;
    bind_folder(path.parent().unwrap_or(path))?;
    let file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).context(what)?;
    process::unshare(namespace::NETWORK).context(what)?;
    let made = furnish(file.as_fd());
    process::join(home.as_fd(), namespace::NETWORK).context(|| "return to the host's network namespace")?;
    if made.is_err() {
        let _ = remove(path);
    }
    made.context(what)
}

/// In the new namespace.
fn furnish(file: BorrowedFd<'_>) -> Result<(OwnedFd, Route)> {
    let opened = own()?;
    let bound = mount::clone_tree(opened.as_fd(), Path::new(""), false)?;
    mount::attach(bound.as_fd(), file)?;
    // An interface speaks IPv6 when it is given an address of it, and takes none from whoever advertises.
    for (name, value) in [("disable_ipv6", "1"), ("accept_ra", "0"), ("accept_dad", "0")] {
        sysctl_if_there(&format!("net/ipv6/conf/default/{name}"), value)?;
    }
    let mut route = Route::open()?;
    route.set_up(1, "lo")?;
    Ok((opened, route))
}

/// Removes a namespace's file. The namespace itself goes with its last process.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match mount::unmount(path) {
        // Nothing was bound there, or not even the file is there.
        Err(error) if ![Errno::INVAL, Errno::NOENT].contains(&error.errno()) => return Err(error.into()),
        _ => {}
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a namespace is bound at `path`.
pub(crate) fn is_bound(path: &Path) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let opened = fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK);
    opened.and_then(|file| fs::filesystem_magic(file.as_fd())).is_ok_and(|magic| magic == NSFS_MAGIC)
}

/// Makes the folder of namespaces a mount of its own.
fn bind_folder(folder: &Path) -> Result<()> {
    let what = || format!("folder of network namespaces {}", folder.display());
    // Made beside it first, so that whoever finds the mark finds the mount, too.
    let mark = folder.join(".bound");
    if mark.exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(what)?;
    let lock = std::fs::File::open(folder).context(what)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(std::io::Error::from)
        .context(what)?;
    if mark.exists() {
        return Ok(());
    }
    let place = fs::open(folder, OFlags::PATH | OFlags::DIRECTORY).context(what)?;
    if !is_mount_point(folder)? {
        let copy = mount::clone_tree(place.as_fd(), Path::new(""), false).context(what)?;
        let shared = Attributes { propagation: propagation::SHARED, ..Attributes::default() };
        mount::attach(copy.as_fd(), place.as_fd()).context(what)?;
        mount::set_attributes(copy.as_fd(), shared, false).context(what)?;
    }
    std::fs::write(&mark, "").context(what)
}

fn is_mount_point(folder: &Path) -> Result<bool> {
    let id = |path: &Path| -> Result<u64> {
        let opened = fs::open(path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(mount::mount_id(opened.as_fd())?)
    };
    Ok(id(folder)? != id(folder.parent().unwrap_or(folder))?)
}

/// Writes a kernel parameter of the network namespace of this thread: a path below /proc/sys.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(&path, value).context(|| format!("write {value} to {}", path.display()))
}

/// As [`sysctl`], for what a kernel without IPv6 does not have.
pub(crate) fn sysctl_if_there(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    match std::fs::write(&path, value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("write {value} to {}", path.display())),
    }
}

/// Reads a kernel parameter of the network namespace of this thread; `None` where there is none.
pub(crate) fn read_sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}
