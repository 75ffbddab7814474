//! The root of a workload as others than the workload may look at it.
//!
//! Of one that runs it is the root of its first process, with all that is mounted there, seen through /proc; nothing
//! is mounted for it. Of one that does not, and where the mounts are not wanted, the root file system is mounted by a
//! thread with a mount namespace of its own, which nobody else sees and which goes with the thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use moat_image::Image;
use moat_linux::fs::{self, Follow};
use moat_linux::mount::{self, Attributes, attr};
use moat_linux::process::{self as sys, namespace};
use moat_sandbox::tree::{self, Kind};
use rustix::fs::{CWD, FileType, OFlags};

use crate::oci::{IdMaps, ReadyMount, Source, user_namespace};
use crate::overlay::Overlay;
use crate::{Context, Engine, Error, Result, Workload, volume};

const FOLDER: OFlags = OFlags::from_bits_retain(OFlags::PATH.bits() | OFlags::DIRECTORY.bits());

/// A root that can be looked at as long as this lives.
#[derive(Debug)]
pub(crate) struct View {
    root: OwnedFd,
    id_maps: Option<IdMaps>,
    keeper: Option<Keeper>,
}

/// The thread whose mount namespace holds the root.
#[derive(Debug)]
struct Keeper {
    /// Dropped first: the thread then ends.
    _stay: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(Keeper { _stay, thread }) = self.keeper.take() {
            drop(_stay);
            // It holds nothing but a mount namespace: how it ended does not matter.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl View {
    /// Opens the root of a workload, with what is mounted there or as the bare root file system.
    pub(crate) fn open(workload: &Workload, mounts: bool) -> Result<Self> {
        workload.refuse_microvm("can not look into")?;
        let what = || format!("the root of workload {}", workload.name());
        let state = workload.state()?;
        let id_maps = user_namespace(workload.spec().userns.as_deref(), None)?;
        if state.is_running() && state.process.is_alive() {
            let pid = state.process.pid;
            if mounts {
                let root = fs::open(&PathBuf::from(format!("/proc/{pid}/root")), FOLDER).context(what)?;
                // The process may have ended, and another have got its number.
                if !state.process.is_alive() {
                    return Err(Error::conflict(format!("workload {} has ended", workload.name())));
                }
                return Ok(Self { root, id_maps, keeper: None });
            }
            let theirs =
                fs::open(&PathBuf::from(format!("/proc/{pid}/ns/mnt")), OFlags::RDONLY).context(what)?;
            return Self::kept(id_maps, move || bare_root(&theirs)).context(what);
        }
        let workload = workload.clone();
        let maps = id_maps.clone();
        Self::kept(id_maps, move || mount_root(&workload, mounts, maps.as_ref())).context(what)
    }

    /// The image's layers alone.
    pub(crate) fn of_image(engine: &Engine, image: &Image) -> Result<Self> {
        let (engine, layers) = (engine.clone(), engine.images().layer_paths(image));
        Self::kept(None, move || {
            own_namespace()?;
            match layers.as_slice() {
                // The overlay of one layer is that layer.
                [only] => Ok(fs::open(only, FOLDER)?),
                // Nothing is mounted within it, so it need not be attached anywhere where the kernel has such mounts.
                layers => match overlay(layers).mount()? {
                    Some(root) => Ok(root),
                    None => mount_at_point(&engine, &overlay(layers)),
                },
            }
        })
    }

    fn kept(
        id_maps: Option<IdMaps>,
        make: impl FnOnce() -> Result<OwnedFd> + Send + 'static,
    ) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let (stay, end) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("moat-view".to_owned()).spawn(move || {
            // Whoever waits is told, or is gone.
            let _ = tell.send(make());
            let _ = end.recv();
        });
        let thread = thread.context(|| "a thread for a mount namespace")?;
        let root = told.recv().map_err(|_| Error::new("the thread with the mount namespace has ended"))?;
        Ok(Self { root: root?, id_maps, keeper: Some(Keeper { _stay: stay, thread: Some(thread) }) })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn id_maps(&self) -> Option<IdMaps> {
        self.id_maps.clone()
    }
}

/// A mount namespace for this thread, from which nothing gets out.
fn own_namespace() -> Result<()> {
    sys::unshare(namespace::MOUNT)?;
    let slave = Attributes { propagation: mount::propagation::SLAVE, ..Attributes::default() };
    let root = fs::open(Path::new("/"), FOLDER)?;
    Ok(mount::set_attributes(root.as_fd(), slave, true)?)
}

/// A copy of the root mount of another mount namespace, without what is mounted on it. This thread goes there for it;
/// nothing there is looked up but the root itself.
fn bare_root(theirs: &OwnedFd) -> Result<OwnedFd> {
    // The working directory and the root are this thread's own from here on, which setns(2) asks for.
    sys::unshare(namespace::MOUNT)?;
    sys::join(theirs.as_fd(), namespace::MOUNT)?;
    let root = fs::open_at(CWD, Path::new("/"), FOLDER, 0)?;
    Ok(mount::clone_tree(root.as_fd(), Path::new(""), false)?)
}

/// Mounts the root file system of a workload that does not run.
fn mount_root(workload: &Workload, mounts: bool, maps: Option<&IdMaps>) -> Result<OwnedFd> {
    own_namespace()?;
    let layers = workload.engine().images().layer_paths(workload.image()?);
    let (upper, work) = (workload.folder().upper(), workload.folder().work());
    let volatile = workload.spec().auto_remove;
    let overlay = Overlay { upper: Some((&upper, &work)), volatile, ..overlay(&layers) };
    let root = mount_at_point(workload.engine(), &overlay)?;
    if mounts {
        let first_start = workload.state()?.started.is_none();
        let volumes = workload.engine().volumes();
        let parts = workload.engine().roots().parts_point();
        let looking = volume::Looking { root: root.as_fd(), parts: &parts, first_start, maps };
        let mut ready = volume::ready(&volumes, &workload.mounts()?, &looking)?;
        ready.sort_by_key(|mount| Path::new(&mount.target).components().count());
        for mount in &ready {
            attach(root.as_fd(), mount).context(|| format!("mount {}", mount.target))?;
        }
    }
    Ok(root)
}

/// Layers alone.
fn overlay(layers: &[PathBuf]) -> Overlay<'_> {
    Overlay { layers, upper: None, volatile: false, user_xattr: crate::rootless::is_inside() }
}

fn mount_at_point(engine: &Engine, overlay: &Overlay<'_>) -> Result<OwnedFd> {
    let point = engine.roots().mount_point();
    crate::roots::make_folder(&point).context(|| point.display().to_string())?;
    overlay.mount_at(&point)?;
    Ok(fs::open(&point, FOLDER)?)
}

/// Volumes and bind mounts have something to show; what is in memory is not there when a workload does not run.
fn attach(root: BorrowedFd<'_>, ready: &ReadyMount) -> Result<()> {
    let Source::Bind { source, recursive, .. } = &ready.source else { return Ok(()) };
    let tree = mount::clone_tree(CWD, source, *recursive)?;
    let folder = FileType::from_raw_mode(fs::stat(tree.as_fd())?.st_mode) == FileType::Directory;
    let target =
        tree::make(root, Path::new(&ready.target), if folder { Kind::Directory } else { Kind::File })?;
    if ready.read_only {
        let attributes = Attributes { set: attr::RDONLY, ..Attributes::default() };
        mount::set_attributes(tree.as_fd(), attributes, *recursive)?;
    }
    mount::attach(tree.as_fd(), target.as_fd())?;
    // So that it is reached by its path below the root.
    fs::open_in_root(root, Path::new(&ready.target), OFlags::PATH, 0, Follow::InRoot)
        .map(drop)
        .map_err(Error::from)
}
