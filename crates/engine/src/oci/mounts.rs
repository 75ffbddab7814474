//! The mounts of a workload: Docker's own, then those that were asked for, sorted by depth.

use std::path::{Path, PathBuf};

use moat_model::oci::{IdMapping, Linux, Mount};
use moat_model::workload::{NamespaceMode, NetworkMode};

use super::{IdMaps, Inputs};
use crate::{Error, Result};

/// A mount whose source is there.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyMount {
    /// Absolute path in the workload.
    pub target: String,
    /// What is mounted.
    pub source: Source,
    /// No writing through this mount, nor through those below it.
    pub read_only: bool,
    /// Owners are mapped: empty maps as the workload's user namespace does.
    pub idmap: Option<IdMaps>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file or folder of the host.
    Bind {
        /// Where it is.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// As in mount(8), rprivate and so on.
        propagation: String,
    },
    /// A file system in memory, with its options.
    Tmpfs(Vec<String>),
}

/// The size of /dev/shm where none is said, as Docker has it.
const SHM_BYTES: u64 = 64 << 20;

/// The options of a tmpfs: Docker's defaults, then what was said, where the last of two contrary words counts.
pub fn tmpfs_options(size_bytes: Option<u64>, mode: Option<u32>, further: &[String]) -> Result<Vec<String>> {
    /// Words that take each other's place.
    const PAIRS: [(&str, &str); 5] =
        [("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev"), ("ro", "rw"), ("noatime", "atime")];
    /// Parameters of tmpfs(5).
    const PARAMETERS: [&str; 8] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "mpol"];
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
    for option in further {
        let key = option.split_once('=').map_or(option.as_str(), |(key, _)| key);
        if let Some((off, on)) = PAIRS.iter().find(|(off, on)| option == off || option == on) {
            options.retain(|known| known != off && known != on);
        } else if key.len() < option.len() && PARAMETERS.contains(&key) {
            options.retain(|known| !known.starts_with(&format!("{key}=")));
        } else if !matches!(
            option.as_str(),
            "relatime"
                | "norelatime"
                | "strictatime"
                | "nodiratime"
                | "diratime"
                | "sync"
                | "async"
                | "dirsync"
                | "private"
                | "rprivate"
                | "defaults"
        ) {
            return Err(Error::new(format!("option {option:?} of a tmpfs is not known")).hint(
                "size=, mode=, uid=, gid=, nr_inodes=, nr_blocks=, exec, suid, dev, ro and noatime are",
            ));
        }
        if !matches!(option.as_str(), "defaults" | "private" | "rprivate") {
            options.push(option.clone());
        }
    }
    options.extend(size_bytes.map(|bytes| format!("size={bytes}")));
    options.extend(mode.map(|mode| format!("mode={mode:o}")));
    Ok(options)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: Some(source.into()),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

/// Everything that is mounted beside the root. What has to become of the root's propagation is noted in `linux`.
pub(super) fn mounts(inputs: &Inputs<'_>, linux: &mut Linux) -> Result<Vec<Mount>> {
    let wanted = inputs.mounts;
    for (index, ready) in wanted.iter().enumerate() {
        check_target(&ready.target)?;
        if wanted.iter().take(index).any(|earlier| same_place(&earlier.target, &ready.target)) {
            return Err(Error::new(format!("two mounts go to {}", ready.target)));
        }
    }
    // Who mounts over one of the defaults wants to see his own there, and nothing of ours below it.
    let replaced = |place: &Path| {
        wanted.iter().any(|ready| {
            let target = Path::new(&ready.target);
            same_place(&ready.target, &place.display().to_string())
                || (place.starts_with(target) && target != Path::new("/"))
        })
    };
    let mut found: Vec<Mount> = defaults(inputs);
    found.retain(|mount| !replaced(&mount.destination));
    let mut own = Vec::new();
    for ready in wanted {
        own.push(convert(ready, inputs, linux)?);
    }
    // A mount on a folder goes before those on what is below it.
    own.sort_by_key(|mount: &Mount| mount.destination.components().count());
    found.extend(own);
    Ok(found)
}

pub(crate) fn check_target(target: &str) -> Result<()> {
    let path = Path::new(target);
    if !path.is_absolute() {
        return Err(Error::new(format!("the mount's target {target:?} is not an absolute path")));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::new(format!("the mount's target {target:?} contains \"..\"")));
    }
    if path.components().count() < 2 {
        return Err(Error::new("a mount's target can not be /: the image is there"));
    }
    Ok(())
}

/// Whether two targets are the same but for slashes and dots.
pub(crate) fn same_place(one: &str, other: &str) -> bool {
    Path::new(one).components().eq(Path::new(other).components())
}

/// The file systems that every workload has, in the order in which they are mounted.
fn defaults(inputs: &Inputs<'_>) -> Vec<Mount> {
    let spec = inputs.spec;
    let strict = ["nosuid", "noexec", "nodev"];
    let access = if spec.privileged { "rw" } else { "ro" };
    let mapped = inputs.id_maps.is_some();
    let rootless = !inputs.host.rootful();
    let mut found = Vec::new();
    // A new /proc or /sys belongs to the namespace that it shows, and only its owner may mount it. All workloads of an
    // ordinary user belong to one owner.
    let foreign_pid = match spec.pid {
        NamespaceMode::Private => false,
        NamespaceMode::Container(_) => mapped,
        NamespaceMode::Host => mapped || rootless,
    };
    let foreign_network = match spec.network.mode {
        NetworkMode::None | NetworkMode::Bridge => false,
        NetworkMode::Container(_) => mapped,
        NetworkMode::Host | NetworkMode::Path(_) => mapped || rootless,
    };
    if foreign_pid {
        found.push(mount("/proc", "bind", "/proc", &[&strict[..], &["rbind"]].concat()));
    } else {
        found.push(mount("/proc", "proc", "proc", &strict));
    }
    found.push(mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let terminal_group = match inputs.id_maps {
        Some(maps) => IdMaps::outside(&maps.gids, 5).is_some(),
        None => inputs.host.terminal_group,
    };
    if terminal_group {
        pts.push("gid=5"); // tty, so that write(1) works
    }
    found.push(mount("/dev/pts", "devpts", "devpts", &pts));
    if foreign_network {
        found.push(mount("/sys", "bind", "/sys", &[&strict[..], &["rbind", access]].concat()));
    } else {
        found.push(mount("/sys", "sysfs", "sysfs", &[&strict[..], &[access]].concat()));
    }
    found.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &[&strict[..], &[access]].concat()));
    found.extend(ipc(inputs));
    found
}

/// Message queues and shared memory belong together: with the IPC namespace both are the workload's own, or another's.
fn ipc(inputs: &Inputs<'_>) -> Vec<Mount> {
    let (spec, paths) = (inputs.spec, inputs.namespaces);
    let strict = ["nosuid", "noexec", "nodev"];
    let queues = mount("/dev/mqueue", "mqueue", "mqueue", &strict);
    let bind =
        |source: &str, at: &str| mount(at, "bind", source, &[&strict[..], &["rbind", "rprivate"]].concat());
    match &spec.ipc {
        NamespaceMode::Private => {
            let size = format!("size={}", spec.shm_bytes.unwrap_or(SHM_BYTES));
            vec![queues, mount("/dev/shm", "tmpfs", "shm", &[&strict[..], &["mode=1777", &size]].concat())]
        }
        NamespaceMode::Host if inputs.id_maps.is_some() => {
            vec![bind("/dev/mqueue", "/dev/mqueue"), bind("/dev/shm", "/dev/shm")]
        }
        NamespaceMode::Host => vec![queues, bind("/dev/shm", "/dev/shm")],
        NamespaceMode::Container(_) => {
            let shm = paths.shm.as_ref().map(|path| bind(&path.display().to_string(), "/dev/shm"));
            std::iter::once(queues).chain(shm).collect()
        }
    }
}

fn convert(ready: &ReadyMount, inputs: &Inputs<'_>, linux: &mut Linux) -> Result<Mount> {
    let mut found = Mount { destination: PathBuf::from(&ready.target), ..Mount::default() };
    match &ready.source {
        Source::Bind { source, recursive, propagation } => {
            found.kind = "bind".to_owned();
            found.source = Some(source.clone());
            found.options.push(if *recursive { "rbind" } else { "bind" }.to_owned());
            found.options.push(propagation.clone());
            open_root(&mut linux.rootfs_propagation, propagation);
            if ready.read_only {
                // Mounts below it too: a path is read-only or it is not.
                found.options.push(if *recursive { "rro" } else { "ro" }.to_owned());
            }
        }
        Source::Tmpfs(options) => {
            found.kind = "tmpfs".to_owned();
            found.source = Some("tmpfs".into());
            found.options.clone_from(options);
            if ready.read_only {
                found.options.retain(|option| option != "rw");
                found.options.push("ro".to_owned());
            }
        }
    }
    if let Some(maps) = &ready.idmap {
        map_owners(&mut found, maps, inputs)?;
    }
    Ok(found)
}

/// What is mounted shared or slave reaches the workload only through a root that is so, too.
fn open_root(root: &mut String, propagation: &str) {
    match propagation {
        "shared" | "rshared" => "shared".clone_into(root),
        "slave" | "rslave" if root.is_empty() => "rslave".clone_into(root),
        _ => {}
    }
}

fn map_owners(mount: &mut Mount, maps: &IdMaps, inputs: &Inputs<'_>) -> Result<()> {
    if mount.kind != "bind" {
        return Err(Error::new(format!(
            "mount {}: only a volume or a bind mount has owners to map",
            mount.destination.display()
        )));
    }
    let own: Option<&IdMaps> = inputs.id_maps;
    let maps = if maps.uids.is_empty() { own } else { Some(maps) };
    let maps = maps.ok_or_else(|| {
        Error::new(format!("mount {}: idmap without maps needs --userns", mount.destination.display()))
    })?;
    mount.options.push("idmap".to_owned());
    let copy = |maps: &[IdMapping]| maps.to_vec();
    (mount.uid_mappings, mount.gid_mappings) = (copy(&maps.uids), copy(&maps.gids));
    Ok(())
}
