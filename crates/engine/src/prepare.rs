//! What is looked up and made on the host when a workload starts, its root file system being mounted: the user, the
//! sources of mounts, the files of /etc, the working directory, devices, and namespaces of other workloads.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_linux::fs::{self, Follow};
use moat_linux::mount;
use moat_linux::process::{self as sys, namespace};
use moat_model::oci::Spec;
use moat_model::workload::{MountSource, MountSpec, NamespaceMode};
use moat_sandbox::tree::{self, Kind};
use rustix::fs::{CWD, OFlags};

use crate::files::{self, Names};
use crate::launch::Launch;
use crate::network::Network;
use crate::oci::{self, IdMaps, Inputs, NamespacePaths};
use crate::user::{self, Identity};
use crate::volume;
use crate::{Context, Engine, Error, Result};

/// How a folder is opened to look for something below it.
const FOLDER: OFlags = OFlags::from_bits_retain(OFlags::PATH.bits() | OFlags::DIRECTORY.bits());

/// Makes the configuration. `root` is where the root file system is mounted.
///
/// Errors: a sentence about what was asked for and can not be had.
pub(crate) fn configure(launch: &Launch, root: &Path, network: &Network, first_start: bool) -> Result<Spec> {
    let (record, image, facts) = (&launch.record, &launch.image, &launch.facts);
    let spec = &record.spec;
    let opened = fs::open(root, FOLDER)?;
    let user = spec.user.as_deref().unwrap_or(&image.user);
    let identity = user::look_up(opened.as_fd(), user, &spec.group_add)?;
    let maps = launch.id_maps()?;
    if maps.is_none() && facts.sandbox.in_user_namespace {
        crate::rootless::check_identity(&identity)?;
    }
    let volumes = launch.engine.volumes();
    let wanted = launch.folder.mounts()?;
    let parts = launch.engine.roots().parts_point();
    let looking = volume::Looking { root: opened.as_fd(), parts: &parts, first_start, maps: maps.as_ref() };
    let mut mounts = volume::ready(&volumes, &wanted, &looking)?;
    let host_name = oci::host_name(record.id.as_str(), spec, facts);
    let names = Names {
        host_name: &host_name,
        domain: spec.domainname.as_deref(),
        network: &spec.network,
        addresses: &network.addresses(),
        gateway: network.gateway(&spec.network.mode),
        resolver: network.attachment.as_ref().and_then(|attachment| attachment.resolver),
    };
    files::write(&launch.folder.data, &names, outer_root(maps.as_ref()))?;
    let shared = network.names_of.as_ref().map(|folder| folder.data.as_path());
    let files = files::mounts(&launch.folder.data, shared, &mounts, spec.read_only);
    mounts.extend(files);
    let namespaces = namespaces(launch, network)?;
    let made = oci::config(&Inputs {
        id: &record.id,
        spec,
        image,
        host: facts,
        identity: &identity,
        root,
        mounts: &mounts,
        devices: &oci::devices::look_up(spec)?,
        block_devices: &oci::devices::block_devices(&spec.limits)?,
        id_maps: maps.as_ref(),
        namespaces: &namespaces,
    })?;
    let cwd = made.process.as_ref().map_or(Path::new("/"), |process| &process.cwd);
    if spec.isolation == moat_model::workload::Isolation::Microvm {
        // The sandbox in the guest makes it, on the disk that is written to.
        return Ok(made);
    }
    make_working_directory(opened.as_fd(), cwd, (&volumes, &wanted), maps.as_ref())?;
    Ok(made)
}

/// Who root inside is outside.
fn outer_root(maps: Option<&IdMaps>) -> (u32, u32) {
    let Some(maps) = maps else { return (0, 0) };
    let outside = |maps: &[moat_model::oci::IdMapping]| IdMaps::outside(maps, 0).unwrap_or(0);
    (outside(&maps.uids), outside(&maps.gids))
}

/// Makes the working directory where the image has none, as Docker does. One within a volume is made in the volume.
fn make_working_directory(
    root: BorrowedFd<'_>,
    path: &Path,
    (volumes, mounts): (&volume::Volumes, &[MountSpec]),
    maps: Option<&IdMaps>,
) -> Result<()> {
    let what = || format!("working directory {}", path.display());
    let over = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.target))
        .max_by_key(|mount| Path::new(&mount.target).components().count());
    let (data, below) = match over {
        None => (None, path),
        Some(mount) => match &mount.source {
            MountSource::Volume { name: Some(name), subpath: None, .. } => {
                let data = fs::open(&volumes.find(name)?.path()?, FOLDER)?;
                (Some(data), path.strip_prefix(&mount.target).unwrap_or(path))
            }
            // What a bind mount or a tmpfs has, only its own side can make.
            _ => return Ok(()),
        },
    };
    if below.as_os_str().is_empty() {
        return Ok(());
    }
    let within = data.as_ref().map_or(root, |data| data.as_fd());
    if fs::open_in_root(within, below, OFlags::PATH, 0, Follow::InRoot).is_ok() {
        return Ok(());
    }
    let made = tree::make(within, below, Kind::Directory).context(what)?;
    if data.is_none() && maps.is_some() {
        let (uid, gid) = outer_root(maps);
        fs::chown(made.as_fd(), uid, gid).context(what)?;
    }
    Ok(())
}

/// The namespaces of other workloads that this one joins, and their /dev/shm.
fn namespaces(launch: &Launch, network: &Network) -> Result<NamespacePaths> {
    let spec = &launch.record.spec;
    let engine = &launch.engine;
    let path = |mode: &NamespaceMode, kind: &str| match mode {
        NamespaceMode::Container(other) => engine.find(other)?.namespace(kind).map(Some),
        NamespaceMode::Private | NamespaceMode::Host => Ok(None),
    };
    let shm = match &spec.ipc {
        NamespaceMode::Container(other) => Some(other_shm(engine, other)?),
        _ => None,
    };
    Ok(NamespacePaths {
        pid: path(&spec.pid, "pid")?,
        ipc: path(&spec.ipc, "ipc")?,
        uts: path(&spec.uts, "uts")?,
        network: network.namespace.clone(),
        user: None,
        shm,
    })
}

/// Shows the /dev/shm of another workload in the mount namespace of this process, and gives its place there.
///
/// A mount can be copied only from within its own mount namespace: this process, which has a single thread, goes there
/// and comes back. Nothing of the other workload is run, and no link of it is followed.
fn other_shm(engine: &Engine, other: &str) -> Result<PathBuf> {
    let what = || format!("the /dev/shm of workload {other}");
    let theirs = fs::open(&engine.find(other)?.namespace("mnt")?, OFlags::RDONLY)?;
    let ours = fs::open(Path::new("/proc/self/ns/mnt"), OFlags::RDONLY)?;
    sys::join(theirs.as_fd(), namespace::MOUNT).context(what)?;
    let copied = copy_shm();
    sys::join(ours.as_fd(), namespace::MOUNT).context(what)?;
    let copied = copied.context(what)?;
    let place = engine.roots().shm_point();
    crate::roots::make_folder(&place).context(|| place.display().to_string())?;
    let target = fs::open(&place, FOLDER)?;
    mount::attach(copied.as_fd(), target.as_fd()).context(what)?;
    Ok(place)
}

fn copy_shm() -> Result<OwnedFd> {
    let root = fs::open_at(CWD, Path::new("/"), FOLDER, 0)?;
    let shm = fs::open_in_root(root.as_fd(), Path::new("/dev/shm"), FOLDER, 0, Follow::Never)?;
    // TMPFS_MAGIC
    if fs::filesystem_magic(shm.as_fd())? != 0x0102_1994 {
        return Err(Error::new("it is not in memory"));
    }
    Ok(mount::clone_tree(shm.as_fd(), Path::new(""), false)?)
}

/// The user of a further process in a workload that runs, looked up below the root of its first process.
pub(crate) fn identity_in(pid: i32, user: &str, groups: &[String]) -> Result<Identity> {
    let root = fs::open(&PathBuf::from(format!("/proc/{pid}/root")), FOLDER)?;
    user::look_up(root.as_fd(), user, groups)
}
