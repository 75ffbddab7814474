//! An empty volume gets what the image has at its place, owners, modes, times and attributes included.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use moat_sandbox::tree;
use rustix::fs::OFlags;

use super::Volume;
use crate::oci::IdMaps;
use crate::{Context, Result, file};

const FOLDER: OFlags = OFlags::from_bits_retain(OFlags::PATH.bits() | OFlags::DIRECTORY.bits());

/// Fills the volume, if it is empty, from `target` below the root of the image.
///
/// `filling` says that a copy is not whole: who finds it empties the volume and begins again.
pub(super) fn fill(volume: &Volume, root: BorrowedFd<'_>, target: &str, maps: Option<&IdMaps>) -> Result<()> {
    let source = match fs::open_in_root(root, Path::new(target), FOLDER, 0, Follow::InRoot) {
        Ok(source) => source,
        // The image has nothing there, or a file.
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let _lock = volume.lock()?;
    let path = volume.path()?;
    let mark = volume.folder.join("filling");
    if mark.exists() {
        empty(&path)?;
    } else if !is_empty(&path)? {
        return Ok(());
    }
    std::fs::write(&mark, "").context(|| mark.display().to_string())?;
    let data = fs::open(&path, FOLDER | OFlags::NOFOLLOW)?;
    // The workload's root shows its ids as they are outside; the volume keeps them as they are inside.
    let owner = |uid: u32, gid: u32| match maps {
        Some(maps) => {
            (IdMaps::inside(&maps.uids, uid).unwrap_or(uid), IdMaps::inside(&maps.gids, gid).unwrap_or(gid))
        }
        None => (uid, gid),
    };
    let copied = tree::copy(source.as_fd(), data.as_fd(), &owner)
        .and_then(|()| tree::copy_metadata(source.as_fd(), data.as_fd(), &owner));
    copied.context(|| format!("copy {target} of the image into volume {}", volume.name))?;
    file::remove_if_there(&mark)
}

fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(path).context(|| path.display().to_string())?;
    Ok(entries.next().is_none())
}

fn empty(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).context(|| path.display().to_string())? {
        let entry = entry.context(|| path.display().to_string())?;
        let kind = entry.file_type().context(|| path.display().to_string())?;
        if kind.is_dir() { file::remove_tree(&entry.path())? } else { file::remove_if_there(&entry.path())? }
    }
    Ok(())
}
