//! The root file system: from a folder of the host's to `/`.

use std::os::fd::AsFd;
use std::path::Path;

use moat_linux::mount::{self, Attributes, attr};
use moat_linux::{Errno, fs, process as sys};
use rustix::fs::{CWD, OFlags};

use super::Init;
use crate::step::{Action, Propagation};
use crate::{Context, Error, Result, self_exe};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

impl Init<'_> {
    pub(super) fn change_root(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::RootPropagation(change) | Action::FinalPropagation(change) => propagate("/", *change),
            Action::BindRoot { path, private_parent } => self.bind_root(path, *private_parent),
            Action::OpenRoot { path } => {
                self.root = Some(open_root(path)?);
                Ok(())
            }
            Action::PivotRoot => self.pivot().context(|| "pivot_root"),
            Action::MoveRoot => self.move_root().context(|| "move the root mount"),
            Action::ChangeRoot => {
                sys::change_directory_to(self.root()?)?;
                sys::change_root_here()?;
                Ok(sys::change_directory(Path::new("/"))?)
            }
            _ => {
                let root = fs::open(Path::new("/"), DIRECTORY)?;
                let read_only = Attributes { set: attr::RDONLY, ..Attributes::default() };
                mount::set_attributes(root.as_fd(), read_only, false).context(|| "make the root read-only")
            }
        }
    }

    /// pivot_root(2) wants a mount point that is no shared mount, below one that is not shared either.
    fn bind_root(&mut self, path: &Path, private_parent: bool) -> Result<()> {
        // Checked before it is mounted on, so that the sentence is about the path.
        drop(open_root(path)?);
        if private_parent {
            make_parent_private(path)?;
        }
        let tree = mount::clone_tree(CWD, path, true).context(|| root_sentence(path))?;
        let below = fs::open(path, DIRECTORY)?;
        mount::attach(tree.as_fd(), below.as_fd()).context(|| root_sentence(path))?;
        // The tree is attached now: its descriptor is the root.
        self.root = Some(tree);
        Ok(())
    }

    /// The old root ends up on top of the new one, and is detached from there: no folder for it is
    /// needed in an image that may be read-only.
    fn pivot(&mut self) -> Result<()> {
        let old = fs::open(Path::new("/"), DIRECTORY)?;
        sys::change_directory_to(self.root()?)?;
        mount::pivot_root_here()?;
        sys::change_directory_to(old.as_fd())?;
        // Or the unmount would reach the host's mounts that share with these.
        let slave = Attributes { propagation: mount::propagation::SLAVE, ..Attributes::default() };
        mount::set_attributes(old.as_fd(), slave, true)?;
        self_exe::hand_down(old.as_fd());
        mount::unmount_here()?;
        Ok(sys::change_directory(Path::new("/"))?)
    }

    /// For a root that can not be pivoted (an initramfs): its mounts stay in reach of who holds
    /// CAP_SYS_ADMIN, as with runc's flag of the same name.
    fn move_root(&mut self) -> Result<()> {
        sys::change_directory_to(self.root()?)?;
        mount::move_here_to_root()?;
        sys::change_root_here()?;
        Ok(sys::change_directory(Path::new("/"))?)
    }
}

fn root_sentence(path: &Path) -> String {
    format!("root {}", path.display())
}

fn open_root(path: &Path) -> Result<std::os::fd::OwnedFd> {
    fs::open(path, DIRECTORY).map_err(|error| match error.errno() {
        Errno::NOENT => Error::new(format!("root.path {} does not exist", path.display())),
        Errno::NOTDIR => Error::new(format!("root.path {} is not a directory", path.display())),
        _ => Error::new(format!("root.path {}: {error}", path.display())),
    })
}

fn propagate(path: &str, change: Propagation) -> Result<()> {
    let root = fs::open(Path::new(path), DIRECTORY)?;
    let attributes = Attributes { propagation: change.kind, ..Attributes::default() };
    Ok(mount::set_attributes(root.as_fd(), attributes, change.recursive)?)
}

/// Only a mount point can be made private: the nearest one above `path` is looked for.
fn make_parent_private(path: &Path) -> Result<()> {
    let private = Attributes { propagation: mount::propagation::PRIVATE, ..Attributes::default() };
    for folder in path.ancestors() {
        let fd = fs::open(folder, DIRECTORY)?;
        match mount::set_attributes(fd.as_fd(), private, false) {
            Err(error) if error.errno() == Errno::INVAL => {}
            other => return other.context(|| format!("make the mount around {} private", path.display())),
        }
    }
    Ok(())
}
