//! The sources of a workload's mounts, looked up when it starts.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use moat_linux::fs::{self, Follow};
use moat_linux::mount::{self, mount_id};
use moat_model::workload::{MountSource, MountSpec};
use rustix::fs::{FileType, OFlags};

use super::Volumes;
use super::fill::fill;
use crate::oci::{IdMaps, ReadyMount, Source, parse_map, tmpfs_options};
use crate::roots::make_folder;
use crate::{Context, Error, Result};

/// How sources are looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looking<'a> {
    /// The workload's root file system.
    pub(crate) root: BorrowedFd<'a>,
    /// A folder on which parts of volumes are shown, in a mount namespace of the caller's own.
    pub(crate) parts: &'a Path,
    /// On the workload's first start empty volumes get what the image has at their place.
    pub(crate) first_start: bool,
    /// Ids of the workload's user namespace.
    pub(crate) maps: Option<&'a IdMaps>,
}

/// Looks up every source.
///
/// Errors: a source is not there, or is not what the mount needs.
pub(crate) fn ready(volumes: &Volumes, mounts: &[MountSpec], how: &Looking<'_>) -> Result<Vec<ReadyMount>> {
    let mut found = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let what = || format!("mount {}", mount.target);
        let source = match &mount.source {
            MountSource::Volume { name, no_copy, subpath, .. } => {
                let name =
                    name.as_deref().ok_or_else(|| Error::new("the volume has no name")).context(what)?;
                let volume = volumes.find(name).context(what)?;
                if how.first_start && !no_copy && subpath.is_none() {
                    fill(&volume, how.root, &mount.target, how.maps).context(what)?;
                }
                let path = volume.path()?;
                let source = match subpath {
                    Some(below) => show_part(&path, below, &how.parts.join(index.to_string()))
                        .context(|| format!("volume {name}"))?,
                    None => path,
                };
                Source::Bind { source, recursive: true, propagation: "rprivate".to_owned() }
            }
            MountSource::Bind { path, create, propagation, non_recursive } => {
                let propagation = propagation.as_deref().unwrap_or("rprivate");
                bind_source(path, *create).context(what)?;
                check_propagation(path, propagation).context(what)?;
                Source::Bind {
                    source: PathBuf::from(path),
                    recursive: !non_recursive,
                    propagation: propagation.to_owned(),
                }
            }
            MountSource::Tmpfs { size_bytes, mode, options } => {
                Source::Tmpfs(tmpfs_options(*size_bytes, *mode, options).context(what)?)
            }
        };
        found.push(ReadyMount {
            target: mount.target.clone(),
            source,
            read_only: mount.read_only,
            idmap: idmap(mount, how.maps).context(what)?,
        });
    }
    Ok(found)
}

/// The mounts as they would be, for a workload that is only planned: nothing is made, shown or filled.
///
/// Errors: as [`ready`], but for what is not there yet.
pub(crate) fn planned(
    volumes: &Volumes,
    mounts: &[MountSpec],
    maps: Option<&IdMaps>,
) -> Result<Vec<ReadyMount>> {
    let planned = |mount: &MountSpec| -> Result<ReadyMount> {
        let bind = |source, recursive, propagation: &str| Source::Bind {
            source,
            recursive,
            propagation: propagation.to_owned(),
        };
        let source = match &mount.source {
            MountSource::Volume { name, subpath, .. } => {
                let place = volumes.place(name.as_deref().unwrap_or_default())?;
                let below = subpath.as_deref().unwrap_or_default();
                bind(if below.is_empty() { place } else { place.join(below) }, true, "rprivate")
            }
            MountSource::Bind { path, create, propagation, non_recursive } => {
                let propagation = propagation.as_deref().unwrap_or("rprivate");
                if !create || Path::new(path).exists() {
                    bind_source(path, false)?;
                    check_propagation(path, propagation)?;
                }
                bind(PathBuf::from(path), !non_recursive, propagation)
            }
            MountSource::Tmpfs { size_bytes, mode, options } => {
                Source::Tmpfs(tmpfs_options(*size_bytes, *mode, options)?)
            }
        };
        let target = mount.target.clone();
        Ok(ReadyMount { target, source, read_only: mount.read_only, idmap: idmap(mount, maps)? })
    };
    mounts.iter().map(|mount| planned(mount).context(|| format!("mount {}", mount.target))).collect()
}

/// Shows a folder or file within a volume at `place`, and gives its path there. What workloads have put into the volume
/// can lead nowhere else, and what was found can not be exchanged any more.
fn show_part(volume: &Path, below: &str, place: &Path) -> Result<PathBuf> {
    if Path::new(below).is_absolute() || below.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("subpath {below:?} must be relative and without \"..\"")));
    }
    let data = fs::open(volume, OFlags::PATH | OFlags::DIRECTORY)?;
    let found = fs::open_in_root(data.as_fd(), Path::new(below), OFlags::PATH, 0, Follow::InRoot)
        .context(|| format!("subpath {below:?}"))?;
    let tree = mount::clone_tree(found.as_fd(), Path::new(""), true)?;
    let what = || format!("show subpath {below:?} at {}", place.display());
    let folder = FileType::from_raw_mode(fs::stat(tree.as_fd())?.st_mode) == FileType::Directory;
    let place = place.join(if folder { "folder" } else { "file" });
    if folder {
        make_folder(&place).context(what)?;
    } else {
        make_folder(place.parent().unwrap_or(&place)).context(what)?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).open(&place).context(what)?;
    }
    // Left by the last run under the same monitor; the first time nothing is mounted there.
    let _ = mount::unmount(&place);
    let target = fs::open(&place, OFlags::PATH | OFlags::NOFOLLOW).context(what)?;
    mount::attach(tree.as_fd(), target.as_fd()).context(what)?;
    Ok(place)
}

/// The source of a bind mount is there, or is made as a folder, as Docker does for `-v`.
fn bind_source(path: &str, create: bool) -> Result<()> {
    if !Path::new(path).is_absolute() {
        return Err(Error::invalid(format!("the source {path:?} is not an absolute path")));
    }
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if create && error.kind() == std::io::ErrorKind::NotFound => {
            let mut builder = std::fs::DirBuilder::new();
            builder.mode(0o755).recursive(true).create(path).context(|| format!("make the source {path}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::invalid(format!("the source {path} does not exist"))
                .hint("-v makes it, --mount does not"))
        }
        Err(error) => Err(error).context(|| format!("the source {path}")),
    }
}

/// Mounts of the host reach the workload, or the other way round, only from a mount that is shared.
fn check_propagation(path: &str, propagation: &str) -> Result<()> {
    let needs: &[&str] = match propagation {
        "private" | "rprivate" => return Ok(()),
        "shared" | "rshared" => &["shared:"],
        "slave" | "rslave" => &["shared:", "master:"],
        other => {
            return Err(Error::invalid(format!("propagation {other:?} is not known"))
                .hint("shared, slave and private are, each also with an r before it"));
        }
    };
    let source = fs::open(Path::new(path), OFlags::PATH)?;
    let id = mount_id(source.as_fd())?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").context(|| "the host's mounts")?;
    // proc_pid_mountinfo(5): optional fields stand between the sixth and a lone dash.
    let line =
        table.lines().find(|line| line.split(' ').next().and_then(|text| text.parse().ok()) == Some(id));
    let fields = line.unwrap_or_default().split(' ').skip(6).take_while(|field| *field != "-");
    if fields.into_iter().any(|field| needs.iter().any(|wanted| field.starts_with(wanted))) {
        return Ok(());
    }
    let kind = needs.first().unwrap_or(&"").trim_end_matches(':');
    Err(Error::invalid(format!("the source {path} is not on a {kind} mount, so {propagation} has no effect"))
        .hint(format!("mount --make-{kind} makes it one")))
}

/// Volumes keep ids as their workloads see them, so in a user namespace they are always mapped.
fn idmap(mount: &MountSpec, maps: Option<&IdMaps>) -> Result<Option<IdMaps>> {
    match &mount.idmap {
        None => {
            let volume = matches!(mount.source, MountSource::Volume { .. });
            Ok(maps.filter(|_| volume).map(|_| IdMaps::default()))
        }
        Some(texts) => {
            let parsed = texts.iter().map(|text| parse_map(text, "idmap")).collect::<Result<Vec<_>>>()?;
            Ok(Some(IdMaps { uids: parsed.clone(), gids: parsed }))
        }
    }
}
