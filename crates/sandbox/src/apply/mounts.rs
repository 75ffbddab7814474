//! Mounts below the container's root, masks and read-only paths.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use moat_linux::fs::{self, Follow};
use moat_linux::mount::{self, Attributes, FsContext, attr};
use moat_linux::{Errno, mount::propagation};
use rustix::fs::{CWD, FileType, OFlags};

use super::Init;
use crate::step::{MountSource, MountStep};
use crate::tree::{self, Kind};
use crate::{Context, Error, Result};

impl Init<'_> {
    pub(super) fn mount(&mut self, step: &MountStep) -> Result<()> {
        match &step.source {
            MountSource::Bind { path, recursive, prepared } => {
                let tree = match prepared {
                    Some(index) => self
                        .sources
                        .get_mut(*index)
                        .and_then(Option::take)
                        .ok_or_else(|| Error::new("the source was not opened"))?,
                    None => open_source(path, *recursive)?,
                };
                self.attach(step, &tree, false)
            }
            MountSource::New { kind, source, parameters, copy_up } => {
                self.mount_new(step, kind, source, parameters, *copy_up)
            }
            MountSource::CgroupsV1 { hierarchies, links, read_only } => {
                self.mount_cgroups(step, hierarchies, links, *read_only)
            }
        }
    }

    fn mount_new(
        &mut self,
        step: &MountStep,
        kind: &str,
        source: &str,
        parameters: &[(String, String)],
        copy_up: bool,
    ) -> Result<()> {
        let context = FsContext::open(kind).map_err(|error| match error.errno() {
            Errno::NODEV => Error::new(format!("this kernel has no file system of type {kind}")),
            _ => Error::from(error),
        })?;
        // The kernel wants `source` for some types and takes it for all.
        context.set("source", if source.is_empty() { kind } else { source })?;
        for (key, value) in parameters {
            if value.is_empty() { context.set_flag(key)? } else { context.set(key, value)? }
        }
        let virtual_one = ["tmpfs", "proc", "sysfs", "cgroup2", "mqueue", "devpts"].contains(&kind);
        if step.attributes.set & attr::RDONLY != 0 && !virtual_one {
            // Or a medium that can only be read would refuse the mount.
            context.set_flag("ro")?;
        }
        let takes_mode = kind == "tmpfs" && !parameters.iter().any(|(key, _)| key == "mode");
        let below = if takes_mode || copy_up { self.existing(&step.destination)? } else { None };
        if takes_mode && let Some(below) = &below {
            context.set("mode", &format!("{:o}", fs::stat(below.as_fd())?.st_mode & 0o7777))?;
        }
        let mounted = match context.mount(step.attributes.set) {
            Ok(mounted) => mounted,
            // A user namespace without a cgroup namespace of its own may not mount the hierarchy anew, but
            // may show what is mounted already.
            Err(error) if kind == "cgroup2" && matches!(error.errno(), Errno::PERM | Errno::BUSY) => {
                let shown = mount::clone_tree(CWD, Path::new("/sys/fs/cgroup"), true)?;
                let restricting = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
                let set = step.attributes.set & restricting;
                mount::set_attributes(shown.as_fd(), Attributes { set, ..Attributes::default() }, true)?;
                shown
            }
            Err(error) => return Err(error.into()),
        };
        if copy_up && let Some(below) = &below {
            tree::copy(below.as_fd(), mounted.as_fd(), &|uid, gid| (uid, gid)).context(|| "copy up")?;
        }
        // proc and sysfs are what masks and sysctls rely on: a link in the image must not divert them.
        let of_the_kernel = matches!(kind, "proc" | "sysfs");
        self.attach(step, &mounted, of_the_kernel)?;
        if of_the_kernel {
            self.kernel_mounts.push((Path::new("/").join(&step.destination), mounted));
        }
        Ok(())
    }

    fn existing(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let (flags, absent) = (OFlags::PATH | OFlags::DIRECTORY, [Errno::NOENT, Errno::NOTDIR]);
        Ok(fs::find_in_root(self.root()?, path, flags, Follow::InRoot, &absent)?)
    }

    /// Attributes go on while the mount is attached nowhere, so that it is never seen without them.
    fn attach(&self, step: &MountStep, mounted: &OwnedFd, plain_path: bool) -> Result<()> {
        if !step.attributes.is_empty() && matches!(step.source, MountSource::Bind { .. }) {
            mount::set_attributes(mounted.as_fd(), step.attributes, false)?;
        }
        if !step.recursive.is_empty() {
            mount::set_attributes(mounted.as_fd(), step.recursive, true)?;
        }
        let directory = FileType::from_raw_mode(fs::stat(mounted.as_fd())?.st_mode) == FileType::Directory;
        let kind = if directory { Kind::Directory } else { Kind::File };
        let target = if plain_path {
            let opened = tree::make_plain(self.root()?, &step.destination);
            opened.context(|| "it must be an ordinary directory, reached without symbolic links")?
        } else {
            tree::make(self.root()?, &step.destination, kind)?
        };
        mount::attach(mounted.as_fd(), target.as_fd())
            .map_err(|error| sort_error(error, target.as_fd(), kind))?;
        if let Some(change) = step.propagation {
            let attributes = Attributes { propagation: change.kind, ..Attributes::default() };
            mount::set_attributes(mounted.as_fd(), attributes, change.recursive)?;
        }
        Ok(())
    }

    fn mount_cgroups(
        &self,
        step: &MountStep,
        hierarchies: &[(String, PathBuf)],
        links: &[(String, String)],
        read_only: bool,
    ) -> Result<()> {
        let flags = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let context = FsContext::open("tmpfs")?;
        context.set("mode", "755")?;
        let folder = context.mount(flags)?;
        let target = tree::make(self.root()?, &step.destination, Kind::Directory)?;
        mount::attach(folder.as_fd(), target.as_fd())?;
        for (name, path) in hierarchies {
            let what = || format!("cgroup {}", path.display());
            let shown = mount::clone_tree(CWD, path, false).context(what)?;
            fs::mkdir_at(folder.as_fd(), Path::new(name), 0o755)?;
            mount::attach_at(shown.as_fd(), folder.as_fd(), Path::new(name)).context(what)?;
        }
        for (name, target) in links {
            fs::symlink_at(Path::new(target), folder.as_fd(), Path::new(name))?;
        }
        let set = flags | if read_only { attr::RDONLY } else { 0 };
        Ok(mount::set_attributes(folder.as_fd(), Attributes { set, ..Attributes::default() }, true)?)
    }

    pub(super) fn freeze(&self, path: &Path) -> Result<()> {
        let fd = fs::open_in_root(self.root()?, path, OFlags::PATH | OFlags::DIRECTORY, 0, Follow::InRoot)?;
        let attributes = Attributes { set: attr::RDONLY, ..Attributes::default() };
        Ok(mount::set_attributes(fd.as_fd(), attributes, false)?)
    }

    /// Hides a directory behind an empty one, anything else behind the host's /dev/null: never behind
    /// what the image calls /dev/null. A path that is not there needs no mask.
    pub(super) fn mask(&mut self, path: &Path) -> Result<()> {
        let Some(target) = self.find(path)? else { return Ok(()) };
        let directory = FileType::from_raw_mode(fs::stat(target.as_fd())?.st_mode) == FileType::Directory;
        let cover = match (directory, &self.empty) {
            (false, _) => mount::clone_tree(self.null()?, Path::new(""), false)?,
            (true, Some(empty)) => mount::clone_tree(empty.as_fd(), Path::new(""), false)?,
            (true, None) => {
                // The first mask is the directory itself, for kernels before 6.15 copy only what is attached.
                let empty = empty_directory()?;
                mount::attach(empty.as_fd(), target.as_fd())?;
                self.empty = Some(empty);
                return Ok(());
            }
        };
        Ok(mount::attach(cover.as_fd(), target.as_fd())?)
    }

    pub(super) fn read_only(&self, path: &Path) -> Result<()> {
        let Some(target) = self.find(path)? else { return Ok(()) };
        let tree = mount::clone_tree(target.as_fd(), Path::new(""), true)?;
        let attributes = Attributes { set: attr::RDONLY, ..Attributes::default() };
        mount::set_attributes(tree.as_fd(), attributes, false)?;
        Ok(mount::attach(tree.as_fd(), target.as_fd())?)
    }

    /// What is to be masked or made read-only. Below /proc and /sys it is looked up in the mounts that this
    /// process has made: who shares the root file system may have put another folder under these names.
    fn find(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let climbs = path.components().any(|part| part == Component::ParentDir);
        let within = |(place, _): &&(PathBuf, OwnedFd)| !climbs && path.starts_with(place);
        let inside = self.kernel_mounts.iter().rev().find(within);
        let (root, path) = match inside {
            Some((place, mount)) => {
                (mount.as_fd(), Path::new("/").join(path.strip_prefix(place).unwrap_or(path)))
            }
            None => (self.root()?, path.to_owned()),
        };
        let absent = [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS];
        Ok(fs::find_in_root(root, &path, OFlags::PATH, Follow::InRoot, &absent)?)
    }

    /// The host's /dev/null, opened before the root changes and checked to be that device.
    pub(super) fn null(&mut self) -> Result<BorrowedFd<'_>> {
        if self.null.is_none() {
            let null = fs::open(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW)?;
            let found = fs::stat(null.as_fd())?;
            let device = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
            if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice || device != (1, 3) {
                return Err(Error::new("the host's /dev/null is not the null device (character 1:3)"));
            }
            self.null = Some(null);
        }
        self.null.as_ref().map(AsFd::as_fd).ok_or_else(|| Error::new("/dev/null"))
    }
}

/// The kernel has one word for all that can be wrong with a mount point.
fn sort_error(error: moat_linux::Error, target: BorrowedFd<'_>, kind: Kind) -> Error {
    let found = fs::stat(target).map(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory);
    match (kind, found) {
        (Kind::Directory, Ok(false)) => Error::new("a directory can not be mounted on what is none"),
        (Kind::File, Ok(true)) => Error::new("what is no directory can not be mounted on one"),
        _ => error.into(),
    }
}

/// An empty directory that nobody can write to: each mask is a bind of one instance.
fn empty_directory() -> Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set("mode", "755")?;
    context.set("size", "0")?;
    context.set("nr_inodes", "1")?;
    let empty = context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    let private = Attributes { propagation: propagation::PRIVATE, ..Attributes::default() };
    mount::set_attributes(empty.as_fd(), private, false)?;
    Ok(empty)
}

/// Copies the tree of a bind mount's source.
pub(crate) fn open_source(path: &Path, recursive: bool) -> Result<OwnedFd> {
    mount::clone_tree(CWD, path, recursive).map_err(|error| match error.errno() {
        Errno::NOENT => Error::new(format!("the source {} does not exist", path.display())),
        _ => Error::new(format!("the source {}: {error}", path.display())),
    })
}
