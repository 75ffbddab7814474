//! Planning the root file system: mounts and their options, devices, links, masks, the change of root.

use std::path::{Path, PathBuf};

use moat_linux::mount::{Attributes, attr};
use moat_linux::process::namespace;
use moat_model::oci::{self, Mount};

use super::{
    Namespaces, PROPAGATIONS, Request, Steps, below_bundle, in_field, join_cgroup, parse_propagation,
};
use crate::cgroup::{CgroupState, Hierarchy, Layout};
use crate::host::Host;
use crate::step::{Action, MountIdMapping, MountSource, MountStep, Node, Propagation, Terminal};
use crate::{Error, Result};

/// fstab(5) options that set or clear attributes of a mount: name, bits to set, bits to clear.
const ATTRIBUTES: [(&str, u64, u64); 19] = [
    ("ro", attr::RDONLY, 0),
    ("rw", 0, attr::RDONLY),
    ("nosuid", attr::NOSUID, 0),
    ("suid", 0, attr::NOSUID),
    ("nodev", attr::NODEV, 0),
    ("dev", 0, attr::NODEV),
    ("noexec", attr::NOEXEC, 0),
    ("exec", 0, attr::NOEXEC),
    ("nosymfollow", attr::NOSYMFOLLOW, 0),
    ("symfollow", 0, attr::NOSYMFOLLOW),
    ("nodiratime", attr::NODIRATIME, 0),
    ("diratime", 0, attr::NODIRATIME),
    ("noatime", attr::NOATIME, attr::ATIME_FIELD),
    ("atime", attr::RELATIME, attr::ATIME_FIELD),
    ("relatime", attr::RELATIME, attr::ATIME_FIELD),
    ("norelatime", attr::RELATIME, attr::ATIME_FIELD),
    ("strictatime", attr::STRICTATIME, attr::ATIME_FIELD),
    ("nostrictatime", attr::RELATIME, attr::ATIME_FIELD),
    ("defaults", 0, 0),
];

/// Options of the file system itself that fsconfig(2) takes as flags.
const SUPERBLOCK_FLAGS: [&str; 6] = ["sync", "dirsync", "lazytime", "mand", "iversion", "silent"];

/// Their opposites, and options of mount(8) that ask for what is the default.
const NO_EFFECT: [&str; 8] =
    ["async", "nolazytime", "nomand", "noiversion", "loud", "nofail", "auto", "_netdev"];

/// What the specification and runc add.
const EXTENSIONS: [(&str, Extension); 6] = [
    ("bind", Extension::Bind { recursive: false }),
    ("rbind", Extension::Bind { recursive: true }),
    ("tmpcopyup", Extension::CopyUp),
    ("idmap", Extension::IdMap { recursive: false }),
    ("ridmap", Extension::IdMap { recursive: true }),
    ("remount", Extension::Refused("a container starts with new mounts")),
];

#[derive(Clone, Copy)]
enum Extension {
    Bind { recursive: bool },
    CopyUp,
    IdMap { recursive: bool },
    Refused(&'static str),
}

/// Every option that is not left to the file system, sorted.
pub fn mount_options() -> Vec<String> {
    let changing = |(name, set, clear): &(&str, u64, u64)| (set | clear != 0).then(|| format!("r{name}"));
    let extension = |(name, what): &(&str, Extension)| {
        (!matches!(what, Extension::Refused(_))).then(|| (*name).to_owned())
    };
    let mut names: Vec<String> = ATTRIBUTES.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    names.extend(ATTRIBUTES.iter().filter_map(changing));
    names.extend(EXTENSIONS.iter().filter_map(extension));
    names.extend(PROPAGATIONS.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]));
    names.extend(SUPERBLOCK_FLAGS.iter().chain(&NO_EFFECT).map(|name| (*name).to_owned()));
    names.sort_unstable();
    names
}

/// Options of one mount, sorted.
#[derive(Default)]
struct Options {
    attributes: Attributes,
    recursive: Attributes,
    propagation: Option<Propagation>,
    bind: Option<bool>,
    copy_up: bool,
    id_map: Option<bool>,
    parameters: Vec<(String, String)>,
}

impl Options {
    fn extend(&mut self, name: &str, extension: Extension) -> Result<()> {
        match extension {
            Extension::Bind { recursive } => self.bind = Some(recursive || self.bind.unwrap_or(false)),
            Extension::CopyUp => self.copy_up = true,
            Extension::IdMap { recursive } => self.id_map = Some(recursive),
            Extension::Refused(why) => {
                return Err(Error::new(format!("option {name} is not supported: {why}")));
            }
        }
        Ok(())
    }
}

fn parse_options(mount: &Mount) -> Result<Options> {
    let mut options = Options::default();
    for option in &mount.options {
        let apply = |attributes: &mut Attributes, set: u64, clear: u64| {
            attributes.set = (attributes.set & !clear) | set;
            attributes.clear = (attributes.clear & !set) | clear;
        };
        let find = |name: &str| ATTRIBUTES.iter().find(|(known, _, _)| *known == name);
        if let Some((_, set, clear)) = find(option) {
            apply(&mut options.attributes, *set, *clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(find) {
            apply(&mut options.recursive, *set, *clear);
        } else if let Some(change) = parse_propagation(option) {
            options.propagation = Some(change);
        } else if let Some((name, extension)) = EXTENSIONS.iter().find(|(known, _)| known == option) {
            options.extend(name, *extension)?;
        } else if SUPERBLOCK_FLAGS.contains(&option.as_str()) {
            options.parameters.push((option.clone(), String::new()));
        } else if !NO_EFFECT.contains(&option.as_str()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            options.parameters.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(options)
}

/// Whether the runtime opens the sources of bind mounts: init has left the host's privileges when a user
/// namespace is new, and could not reach a path below a folder that only the host's root may enter.
fn opens_sources_early(namespaces: &Namespaces, host: &Host) -> bool {
    host.user == 0 && !namespaces.is_shared(namespace::USER)
}

/// The sources of bind mounts that the runtime opens, in the order of the mounts that refer to them.
pub(super) fn prepared_sources(
    request: &Request<'_>,
    linux: &oci::Linux,
    namespaces: &Namespaces,
    host: &Host,
) -> Result<Vec<Action>> {
    let mut sources = Vec::new();
    for (index, mount) in request.spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}] {}", mount.destination.display());
        let options = in_field(parse_options(mount), &field)?;
        let Some(recursive) = bind_kind(mount, &options) else {
            if wants_id_mapping(mount, &options) {
                return Err(Error::new(format!("{field}: id mappings are only possible on bind mounts")));
            }
            continue;
        };
        let source = mount.source.as_deref();
        let source = source.ok_or_else(|| Error::new(format!("{field}: a bind mount needs a source")))?;
        if is_prepared(mount, &options, namespaces, host) {
            let id_mapping = if wants_id_mapping(mount, &options) {
                Some(in_field(id_mapping(mount, linux, options.id_map), &field)?)
            } else {
                None
            };
            sources.push(Action::OpenSource {
                path: below_bundle(request.bundle, source),
                recursive,
                id_mapping,
            });
        }
    }
    Ok(sources)
}

/// `None` for what is no bind mount, else whether the mounts below come along.
fn bind_kind(mount: &Mount, options: &Options) -> Option<bool> {
    options.bind.or((mount.kind == "bind").then_some(false))
}

fn wants_id_mapping(mount: &Mount, options: &Options) -> bool {
    options.id_map.is_some() || !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty()
}

fn is_prepared(mount: &Mount, options: &Options, namespaces: &Namespaces, host: &Host) -> bool {
    opens_sources_early(namespaces, host) || wants_id_mapping(mount, options)
}

/// Everything that concerns the root file system.
pub(super) fn root(
    steps: &mut Steps,
    request: &Request<'_>,
    linux: &oci::Linux,
    namespaces: &Namespaces,
    group: &CgroupState,
    host: &Host,
) -> Result<()> {
    let spec = request.spec;
    let root = spec.root.clone().unwrap_or_default();
    let path = below_bundle(request.bundle, &root.path);
    if !namespaces.is_new(namespace::MOUNT) {
        join_cgroup(steps, namespaces);
        steps.init(Action::OpenRoot { path });
        hooks(steps, spec);
        steps.init(Action::ChangeRoot);
        return Ok(());
    }
    let wanted = match linux.rootfs_propagation.as_str() {
        "" => None,
        text => Some(parse_propagation(text).ok_or_else(|| {
            Error::new(format!(
                "linux.rootfsPropagation {text:?} is none of shared, slave, private, unbindable"
            ))
        })?),
    };
    // The host's mounts may come in, but none of the container's may go out unless it is asked for.
    let slave = Propagation { kind: moat_linux::mount::propagation::SLAVE, recursive: true };
    // What is unbindable could not be bound as the root: it becomes so at the end.
    let first = wanted.filter(|change| change.kind != moat_linux::mount::propagation::UNBINDABLE);
    steps.init(Action::RootPropagation(first.unwrap_or(slave)));
    let private_parent = wanted.is_some_and(|change| change.kind == moat_linux::mount::propagation::SHARED);
    steps.init(Action::BindRoot { path, private_parent });
    mounts(steps, request, linux, namespaces, group, host)?;
    let host_dev = spec.mounts.iter().any(|mount| {
        mount.destination == Path::new("/dev")
            && (mount.kind == "bind"
                || mount.options.iter().any(|option| option == "bind" || option == "rbind"))
    });
    devices(steps, linux, namespaces, host, host_dev)?;
    if let Some(process) = spec.process.as_ref().filter(|process| process.terminal) {
        steps.init(Action::Terminal(Terminal {
            size: process.console_size,
            console: !host_dev,
            owner: process.user.uid,
        }));
    }
    linux.readonly_paths.iter().for_each(|path| steps.init(Action::ReadOnly(path.into())));
    linux.masked_paths.iter().for_each(|path| steps.init(Action::Mask(path.into())));
    freeze_filled(steps, spec);
    hooks(steps, spec);
    steps.init(if request.no_pivot { Action::MoveRoot } else { Action::PivotRoot });
    if let Some(change) = wanted {
        steps.init(Action::FinalPropagation(change));
    }
    if root.readonly {
        steps.init(Action::RootReadOnly);
    }
    Ok(())
}

fn hooks(steps: &mut Steps, spec: &oci::Spec) {
    let Some(hooks) = &spec.hooks else { return };
    if !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty()) {
        steps.init(Action::AwaitHooks);
    }
    if !hooks.create_container.is_empty() {
        steps.init(Action::Hooks { kind: "createContainer", hooks: hooks.create_container.clone() });
    }
}

/// File systems that are filled with mount points or nodes become read-only only afterwards.
fn is_filled_later(mount: &Mount) -> bool {
    mount.kind == "tmpfs"
}

fn freeze_filled(steps: &mut Steps, spec: &oci::Spec) {
    let read_only = |mount: &&Mount| {
        let last = mount.options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rw"));
        is_filled_later(mount) && last.is_some_and(|option| option == "ro")
    };
    spec.mounts
        .iter()
        .filter(read_only)
        .for_each(|mount| steps.init(Action::Freeze(mount.destination.clone())));
}

fn mounts(
    steps: &mut Steps,
    request: &Request<'_>,
    linux: &oci::Linux,
    namespaces: &Namespaces,
    group: &CgroupState,
    host: &Host,
) -> Result<()> {
    let mut prepared = 0;
    let mut joined = false;
    for (index, mount) in request.spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}] {}", mount.destination.display());
        let options = in_field(parse_options(mount), &field)?;
        let bind = bind_kind(mount, &options);
        let early = is_prepared(mount, &options, namespaces, host);
        let mut step = MountStep {
            destination: mount.destination.clone(),
            source: MountSource::New {
                kind: mount.kind.clone(),
                source: mount.source.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
                parameters: options.parameters,
                copy_up: options.copy_up,
            },
            attributes: options.attributes,
            recursive: options.recursive,
            propagation: options.propagation,
        };
        if let Some(recursive) = bind {
            let source = mount.source.as_deref().unwrap_or(Path::new(""));
            step.source = MountSource::Bind {
                path: below_bundle(request.bundle, source),
                recursive,
                prepared: early.then_some(prepared),
            };
            prepared += usize::from(early);
        } else if mount.kind.is_empty() {
            return Err(Error::new(format!("{field}: the mount has no type")));
        } else if mount.kind == "cgroup" {
            step.source = cgroup_source(step.attributes, group, host, namespaces);
        }
        if !joined && mount.kind.starts_with("cgroup") {
            // As late as possible: the runtime makes the groups meanwhile.
            join_cgroup(steps, namespaces);
            joined = true;
        }
        if is_filled_later(mount) {
            step.attributes.set &= !attr::RDONLY;
        }
        if !linux.mount_label.is_empty() && host.selinux {
            label(&mut step, &linux.mount_label);
        }
        steps.init(Action::Mount(step));
    }
    if !joined {
        join_cgroup(steps, namespaces);
    }
    Ok(())
}

fn id_mapping(mount: &Mount, linux: &oci::Linux, option: Option<bool>) -> Result<MountIdMapping> {
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(Error::new("an idmapped mount needs both uidMappings and gidMappings"));
    }
    let (uids, gids) = if mount.uid_mappings.is_empty() {
        (linux.uid_mappings.clone(), linux.gid_mappings.clone())
    } else {
        (mount.uid_mappings.clone(), mount.gid_mappings.clone())
    };
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::new("option idmap needs uidMappings and gidMappings of the mount or of linux"));
    }
    Ok(MountIdMapping { uids, gids, recursive: option == Some(true) })
}

/// SELinux gives a label to what a file system shows by its `context` parameter.
fn label(step: &mut MountStep, label: &str) {
    if let MountSource::New { kind, parameters, .. } = &mut step.source
        && !matches!(kind.as_str(), "proc" | "sysfs" | "cgroup2")
    {
        parameters.push(("context".to_owned(), label.to_owned()));
    }
}

/// What a mount of type `cgroup` shows: the unified hierarchy, or each v1 hierarchy in a folder. The
/// container's own directories are bound; a new cgroup namespace makes them look like the root.
fn cgroup_source(
    attributes: Attributes,
    group: &CgroupState,
    host: &Host,
    namespaces: &Namespaces,
) -> MountSource {
    match &host.cgroups {
        Layout::Legacy { hierarchies, .. } => legacy_source(attributes, hierarchies, group),
        _ => match &group.unified {
            // Without a cgroup namespace a new mount would show the whole host's tree.
            Some(own) if !namespaces.is_new(namespace::CGROUP) => {
                MountSource::Bind { path: own.directory.clone(), recursive: false, prepared: None }
            }
            _ => MountSource::New {
                kind: "cgroup2".to_owned(),
                source: "cgroup".to_owned(),
                parameters: Vec::new(),
                copy_up: false,
            },
        },
    }
}

/// Each hierarchy under the name of its mount point (`cpu,cpuacct`), and a link for each controller of a
/// joined one.
fn legacy_source(attributes: Attributes, hierarchies: &[Hierarchy], group: &CgroupState) -> MountSource {
    let mut shown = Vec::new();
    let mut links = Vec::new();
    for own in &group.legacy {
        let hierarchy = hierarchies.iter().find(|hierarchy| own.directory.starts_with(&hierarchy.mount));
        let Some(hierarchy) = hierarchy else { continue };
        let Some(name) = hierarchy.mount.file_name().and_then(|name| name.to_str()) else { continue };
        shown.push((name.to_owned(), own.directory.clone()));
        let joined = hierarchy.controllers.iter().filter(|controller| controller.as_str() != name);
        links.extend(joined.map(|controller| (controller.clone(), name.to_owned())));
    }
    let read_only = attributes.set & attr::RDONLY != 0;
    MountSource::CgroupsV1 { hierarchies: shown, links, read_only }
}

/// The devices that every container has (specification, "Default Devices").
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
];

/// Links that every container has (specification, "Dev symbolic links"), and the multiplexer of devpts.
const DEFAULT_LINKS: [(&str, &str); 6] = [
    ("/proc/kcore", "/dev/core"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

fn devices(
    steps: &mut Steps,
    linux: &oci::Linux,
    namespaces: &Namespaces,
    host: &Host,
    host_dev: bool,
) -> Result<()> {
    // mknod(2) of a device needs the initial user namespace.
    let bind = host.rootless() || !namespaces.is_shared(namespace::USER);
    let mut nodes = Vec::new();
    if !host_dev {
        for (path, major, minor) in DEFAULT_DEVICES {
            nodes.push(Node {
                path: path.into(),
                kind: 'c',
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
                bind,
            });
        }
        for device in &linux.devices {
            let node = device_node(device, bind)?;
            nodes.retain(|known| known.path != node.path);
            nodes.push(node);
        }
    }
    nodes.into_iter().for_each(|node| steps.init(Action::Node(node)));
    if !host_dev {
        for (target, path) in DEFAULT_LINKS {
            steps.init(Action::Link { target: target.into(), path: path.into() });
        }
    }
    Ok(())
}

fn device_node(device: &oci::Device, bind: bool) -> Result<Node> {
    let path: PathBuf = device.path.clone();
    let shown = path.display().to_string();
    if !path.is_absolute() {
        return Err(Error::new(format!("linux.devices {shown:?} is not an absolute path")));
    }
    let kind = match device.kind.as_str() {
        "c" | "u" => 'c',
        "b" => 'b',
        "p" => 'p',
        other => {
            return Err(Error::new(format!("linux.devices {shown}: type {other:?} is none of c, b, u, p")));
        }
    };
    let number = |value: i64, what: &str| {
        let value = if kind == 'p' { 0 } else { value };
        u32::try_from(value)
            .map_err(|_| Error::new(format!("linux.devices {shown}: {what} {value} is not a number")))
    };
    Ok(Node {
        kind,
        major: number(device.major, "major")?,
        minor: number(device.minor, "minor")?,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
        bind: bind && kind != 'p',
        path,
    })
}
