//! Removing trees by descriptor, and walking into a layer's folder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags};

use crate::Result;

/// How a folder is opened to act on what is in it.
const FOLDER: OFlags =
    OFlags::from_bits_retain(OFlags::RDONLY.bits() | OFlags::DIRECTORY.bits() | OFlags::NOFOLLOW.bits());

/// Removes what `name` is in `dir`, with everything in it. Symbolic links are not followed; what is not there is fine.
///
/// One descriptor is open for each level; layers are no deeper than their limit.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    match fs::unlink_at(dir, name, false) {
        Ok(()) => return Ok(()),
        Err(error) if error.errno() == Errno::NOENT => return Ok(()),
        Err(error) if error.errno() == Errno::ISDIR => {}
        Err(error) => return Err(error.into()),
    }
    let folder = open_to_empty(dir, name)?;
    empty(folder.as_fd())?;
    Ok(fs::unlink_at(dir, name, true)?)
}

/// Removes everything in a folder.
pub(crate) fn empty(folder: BorrowedFd<'_>) -> Result<()> {
    for (name, kind) in fs::entries(folder)? {
        let name = Path::new(&name);
        if kind == FileType::Directory || kind == FileType::Unknown {
            remove(folder, name)?;
        } else {
            fs::unlink_at(folder, name, false)?;
        }
    }
    Ok(())
}

/// Opens a folder to empty it, also one that denies that to its owner.
fn open_to_empty(dir: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
    let opened = fs::open_at(dir, name, FOLDER, 0);
    if !rustix::process::geteuid().is_root() {
        // An ordinary user's own folder may lack the bits to list or to change it.
        let denied = opened.is_err();
        if denied || fs::stat_at(dir, name)?.is_some_and(|found| found.st_mode & 0o700 != 0o700) {
            fs::chmod_at(dir, name, 0o700)?;
            return Ok(fs::open_at(dir, name, FOLDER, 0)?);
        }
    }
    Ok(opened?)
}

/// Opens a folder below a layer's root, as a path that other calls take; its symbolic links stay within the layer.
pub(crate) fn open_folder(root: BorrowedFd<'_>, path: &Path) -> moat_linux::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    fs::open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, 0, Follow::InRoot)
}
