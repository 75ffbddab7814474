//! What a configuration must be before it is planned: the door behind which its values can be trusted.

use std::collections::BTreeMap;

use moat_linux::process::namespace;
use moat_model::oci::{self, NamespaceKind, Spec};

use super::{Namespaces, namespace_bit};
use crate::host::Host;
use crate::{Error, Result};

/// The largest configuration that is read.
const MAX_BYTES: usize = 16 << 20;

/// Parses `config.json`.
///
/// Errors: a sentence with line and column of what is not JSON or not of the specification's types.
pub fn parse_config(text: &[u8], name: &str) -> Result<Spec> {
    if text.len() > MAX_BYTES {
        return Err(Error::new(format!("{name} has {} bytes, more than {MAX_BYTES}", text.len())));
    }
    serde_json::from_slice(text).map_err(|error| Error::new(format!("{name}: {error}")))
}

/// Checks what does not depend on the host.
pub(super) fn check(spec: &Spec) -> Result<()> {
    check_version(&spec.oci_version)?;
    match &spec.root {
        None => return Err(Error::new("root is missing in the configuration")),
        Some(root) if root.path.as_os_str().is_empty() => {
            return Err(Error::new("root.path is empty in the configuration"));
        }
        Some(_) => {}
    }
    if let Some(process) = &spec.process {
        check_process(process)?;
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        if mount.destination.as_os_str().is_empty() {
            return Err(Error::new(format!("mounts[{index}].destination is empty")));
        }
    }
    if let Some(hooks) = &spec.hooks {
        check_hooks(hooks)?;
    }
    match &spec.linux {
        Some(linux) => check_linux(linux),
        None => Err(Error::new("linux is missing in the configuration: only Linux containers can be run")),
    }
}

fn check_version(version: &str) -> Result<()> {
    if version.is_empty() {
        return Err(Error::new("ociVersion is missing in the configuration"));
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_slice() {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(major), Some(_), Some(_)] => Err(Error::new(format!(
            "ociVersion {version}: major version {major} of the runtime specification is not supported"
        ))
        .hint(format!("this runtime follows version {}", oci::VERSION))),
        _ => Err(Error::new(format!("ociVersion {version:?} is not a version such as {}", oci::VERSION))),
    }
}

/// Checks the `process` section, of a container or of `exec`.
pub(super) fn check_process(process: &oci::Process) -> Result<()> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Error::new("process.args is empty: there is no program to run"));
    }
    if process.cwd.as_os_str().is_empty() {
        return Err(Error::new("process.cwd is empty, it must be an absolute path"));
    }
    if !process.cwd.is_absolute() {
        return Err(Error::new(format!("process.cwd {} is not an absolute path", process.cwd.display())));
    }
    let user = &process.user;
    let ids = [("uid", user.uid), ("gid", user.gid)].into_iter();
    let groups = user.additional_gids.iter().map(|gid| ("additionalGids", *gid));
    if let Some((field, id)) = ids.chain(groups).find(|(_, id)| *id == u32::MAX) {
        // To the kernel it means "leave it as it is", which is root.
        return Err(Error::new(format!("process.user.{field} {id} is no id")));
    }
    let texts = process.args.iter().chain(&process.env);
    if let Some(bad) = texts.into_iter().find(|text| text.contains('\0')) {
        return Err(Error::new(format!("process.args or process.env holds a NUL byte: {bad:?}")));
    }
    // execve(2) would take it, but what reads it back (getenv, ps) would not.
    if let Some(bad) = process.env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
        return Err(Error::new(format!("process.env {bad:?} is not of the form NAME=value")));
    }
    Ok(())
}

fn check_hooks(hooks: &oci::Hooks) -> Result<()> {
    for (kind, list) in hooks.kinds() {
        for (index, hook) in list.iter().enumerate() {
            if !hook.path.is_absolute() {
                let path = hook.path.display();
                return Err(Error::new(format!(
                    "hooks.{kind}[{index}].path {path:?} is not an absolute path"
                )));
            }
            if hook.timeout_s.is_some_and(|seconds| seconds <= 0) {
                return Err(Error::new(format!("hooks.{kind}[{index}].timeout must be more than 0")));
            }
        }
    }
    Ok(())
}

fn check_linux(linux: &oci::Linux) -> Result<()> {
    if linux.intel_rdt.is_some() {
        return Err(Error::new("linux.intelRdt is not supported yet"));
    }
    for (field, maps) in [("uidMappings", &linux.uid_mappings), ("gidMappings", &linux.gid_mappings)] {
        for map in maps {
            let fits = |first: u32| first.checked_add(map.size).is_some();
            if map.size == 0 || !fits(map.container_id) || !fits(map.host_id) {
                return Err(Error::new(format!(
                    "linux.{field} {}:{}:{} is not a range of ids",
                    map.container_id, map.host_id, map.size
                )));
            }
        }
    }
    for path in linux.masked_paths.iter().chain(&linux.readonly_paths) {
        if !path.starts_with('/') {
            return Err(Error::new(format!("masked or read-only path {path:?} is not absolute")));
        }
    }
    check_net_devices(&linux.net_devices)
}

fn check_net_devices(devices: &BTreeMap<String, oci::NetDevice>) -> Result<()> {
    let mut taken: Vec<&str> = Vec::new();
    for (name, device) in devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        // A `%d` stands for the first number that is free.
        let numbered = inside.strip_suffix("%d").filter(|stem| !stem.contains('%'));
        for (text, fine) in
            [(name, !name.contains('%')), (inside, numbered.is_some() || !inside.contains('%'))]
        {
            if !fine || !is_device_name(text) {
                return Err(Error::new(format!("linux.netDevices {name}: {text:?} names no network device"))
                    .hint("a name has 1 to 15 bytes without blanks, slashes and colons"));
            }
        }
        if numbered.is_none() && taken.contains(&inside.as_str()) {
            return Err(Error::new(format!(
                "linux.netDevices {name}: another device is named {inside}, too"
            )));
        }
        taken.push(inside);
    }
    Ok(())
}

/// As the kernel's dev_valid_name has it.
fn is_device_name(name: &str) -> bool {
    let legal = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
    (1..16).contains(&name.len()) && name != "." && name != ".." && name.chars().all(legal)
}

/// Checks what depends on the namespaces that are asked for.
pub(super) fn check_namespaces(
    spec: &Spec,
    linux: &oci::Linux,
    namespaces: &Namespaces,
    host: &Host,
) -> Result<()> {
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if namespaces.is_new(namespace::USER) {
        if linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty() {
            return Err(Error::new(
                "linux.uidMappings or linux.gidMappings is empty, a new user namespace needs both",
            ));
        }
        check_mapped(spec, linux)?;
    } else if mapped && namespaces.is_shared(namespace::USER) {
        return Err(Error::new("linux.uidMappings needs a user namespace in linux.namespaces"));
    } else if host.user != 0 && namespaces.is_shared(namespace::USER) {
        return Err(Error::new("linux.namespaces has no user namespace, and only root can do without")
            .hint("`moat-runtime spec --rootless` writes a configuration for an ordinary user"));
    }
    if !linux.time_offsets.is_empty() && !namespaces.is_new(namespace::TIME) {
        return Err(Error::new("linux.timeOffsets needs a new time namespace in linux.namespaces"));
    }
    if let Some(clock) =
        linux.time_offsets.keys().find(|clock| !matches!(clock.as_str(), "monotonic" | "boottime"))
    {
        return Err(Error::new(format!("linux.timeOffsets {clock:?} is neither monotonic nor boottime")));
    }
    if !spec.hostname.is_empty() && namespaces.is_shared(namespace::UTS) {
        return Err(Error::new("hostname needs a uts namespace in linux.namespaces"));
    }
    if !spec.domainname.is_empty() && namespaces.is_shared(namespace::UTS) {
        return Err(Error::new("domainname needs a uts namespace in linux.namespaces"));
    }
    if !linux.net_devices.is_empty() && namespaces.is_shared(namespace::NETWORK) {
        return Err(Error::new("linux.netDevices needs a network namespace in linux.namespaces"));
    }
    if !namespaces.is_new(namespace::MOUNT) {
        check_without_mounts(spec, linux)?;
    }
    linux.sysctl.keys().try_for_each(|name| check_sysctl(name, namespaces))
}

/// Without a mount namespace of its own every mount would be made in somebody else's, and stay there.
fn check_without_mounts(spec: &Spec, linux: &oci::Linux) -> Result<()> {
    let offender = if let Some(mount) = spec.mounts.first() {
        format!("mount {}", mount.destination.display())
    } else if let Some(path) = linux.masked_paths.first().or(linux.readonly_paths.first()) {
        format!("masked or read-only path {path}")
    } else if spec.root.as_ref().is_some_and(|root| root.readonly) {
        "root.readonly".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(format!("{offender} needs a new mount namespace in linux.namespaces")))
}

fn check_mapped(spec: &Spec, linux: &oci::Linux) -> Result<()> {
    let inside = |maps: &[oci::IdMapping], id: u32| {
        maps.iter().any(|map| (map.container_id..map.container_id.saturating_add(map.size)).contains(&id))
    };
    let Some(process) = &spec.process else { return Ok(()) };
    if !inside(&linux.uid_mappings, process.user.uid) {
        return Err(Error::new(format!(
            "process.user.uid {} is not mapped in linux.uidMappings",
            process.user.uid
        )));
    }
    for gid in std::iter::once(&process.user.gid).chain(&process.user.additional_gids) {
        if !inside(&linux.gid_mappings, *gid) {
            return Err(Error::new(format!("process.user group {gid} is not mapped in linux.gidMappings")));
        }
    }
    Ok(())
}

/// A kernel parameter is allowed only where it belongs to a namespace that is not the host's.
fn check_sysctl(name: &str, namespaces: &Namespaces) -> Result<()> {
    let dotted = name.replace('/', ".");
    if dotted.split('.').any(str::is_empty) || dotted.contains('\0') {
        return Err(Error::new(format!("linux.sysctl {name:?} is not the name of a kernel parameter")));
    }
    if dotted == "kernel.hostname" {
        return Err(Error::new("linux.sysctl kernel.hostname is set by hostname"));
    }
    let Some(kind) = NamespaceKind::of_sysctl(&dotted) else {
        return Err(Error::new(format!(
            "linux.sysctl {name} is not in a namespace: it would change the host"
        )));
    };
    if namespaces.is_shared(namespace_bit(kind)) {
        let kind = format!("{kind:?}").to_lowercase();
        return Err(Error::new(format!("linux.sysctl {name} needs a {kind} namespace in linux.namespaces")));
    }
    Ok(())
}
