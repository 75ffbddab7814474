//! Namespaces, id mappings, and the kernel parameters that belong to namespaces.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moat_model::oci::{IdMapping, Namespace, NamespaceKind};
use moat_model::workload::{NamespaceMode, NetworkMode, WorkloadSpec};

use super::{HostFacts, Inputs};
use crate::{Error, Result};

/// Namespaces that exist already: those of other workloads, and one that the network was set up in. A kind that is
/// missing is new or the host's, as the wish says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// For `--pid container:`.
    pub pid: Option<PathBuf>,
    /// For `--ipc container:`.
    pub ipc: Option<PathBuf>,
    /// The other workload's /dev/shm.
    pub shm: Option<PathBuf>,
    /// For `--uts container:`.
    pub uts: Option<PathBuf>,
    /// For `--network container:`, a namespace file, or the one that the engine has set up.
    pub network: Option<PathBuf>,
    /// The user namespace that owns the joined ones.
    pub user: Option<PathBuf>,
}

/// Id mappings of a new user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Of users.
    pub uids: Vec<IdMapping>,
    /// Of groups.
    pub gids: Vec<IdMapping>,
}

impl IdMaps {
    /// What `id` outside is inside; `None` where nothing maps it.
    pub fn inside(maps: &[IdMapping], id: u32) -> Option<u32> {
        maps.iter().find_map(|map| {
            let offset = id.checked_sub(map.host_id).filter(|offset| *offset < map.size)?;
            map.container_id.checked_add(offset)
        })
    }

    /// What `id` inside is outside; `None` where nothing maps it.
    pub fn outside(maps: &[IdMapping], id: u32) -> Option<u32> {
        maps.iter().find_map(|map| {
            let offset = id.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
            map.host_id.checked_add(offset)
        })
    }
}

/// The id mappings that `--userns` asks for; `None` is no user namespace of the workload's own.
///
/// `auto` is the range that was set aside for this workload: `CONTAINER 0`, the first id outside and their number.
pub fn user_namespace(wanted: Option<&str>, auto: Option<(u32, u32)>) -> Result<Option<IdMaps>> {
    match wanted {
        None | Some("" | "host") => Ok(None),
        Some("auto") => {
            let (first, size) = auto.ok_or_else(|| {
                Error::new("--userns auto: there is no range of subordinate ids to take from").hint(
                    "a line such as `moat:1000000:6553600` in both /etc/subuid and /etc/subgid gives one",
                )
            })?;
            let map = vec![IdMapping { container_id: 0, host_id: first, size }];
            Ok(Some(IdMaps { uids: map.clone(), gids: map }))
        }
        Some(text) => {
            let maps = text.split(',').map(|part| parse_map(part, "--userns")).collect::<Result<Vec<_>>>()?;
            Ok(Some(IdMaps { uids: maps.clone(), gids: maps }))
        }
    }
}

/// Parses `CONTAINER:HOST:SIZE`.
pub(crate) fn parse_map(text: &str, what: &str) -> Result<IdMapping> {
    let bad = || {
        Error::new(format!("{what} {text:?} is not of the form CONTAINER:HOST:SIZE, three numbers"))
            .hint("as in 0:100000:65536")
    };
    let numbers = text.split(':').map(strict_u32).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    let &[container_id, host_id, size] = numbers.as_slice() else { return Err(bad()) };
    let fits = |first: u32| first.checked_add(size).is_some();
    if size == 0 || !fits(container_id) || !fits(host_id) {
        return Err(Error::new(format!("{what} {text:?} is not a range of ids")));
    }
    Ok(IdMapping { container_id, host_id, size })
}

/// Digits alone: no sign, no blank, nothing that overflows.
pub(crate) fn strict_u32(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether the workload gets a UTS namespace of its own.
pub(super) fn has_own_uts(spec: &WorkloadSpec) -> bool {
    spec.uts == NamespaceMode::Private
}

/// Whether the network namespace is the workload's own, whoever has set it up.
pub(super) fn has_own_network(spec: &WorkloadSpec) -> bool {
    matches!(spec.network.mode, NetworkMode::Bridge | NetworkMode::None)
}

/// What the workload is called: as the user says, else as the host where it shares the host's network or names, else
/// the first 12 characters of its id.
pub(crate) fn host_name(id: &str, spec: &WorkloadSpec, host: &HostFacts) -> String {
    match &spec.hostname {
        Some(name) => name.clone(),
        None if spec.network.mode == NetworkMode::Host || spec.uts == NamespaceMode::Host => {
            host.host_name.clone()
        }
        None => id.chars().take(12).collect(),
    }
}

pub(super) fn namespaces(inputs: &Inputs<'_>) -> Vec<Namespace> {
    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let (spec, paths) = (inputs.spec, inputs.namespaces);
    let mut found = Vec::new();
    let mut push = |kind, path: Option<&PathBuf>| found.push(Namespace { kind, path: path.cloned() });
    // Who joins namespaces of a workload with a user namespace has rights over them only from inside that one.
    if inputs.id_maps.is_some() {
        push(User, None);
    } else if paths.user.is_some() {
        push(User, paths.user.as_ref());
    }
    push(Mount, None);
    for (kind, mode, path) in
        [(Pid, &spec.pid, &paths.pid), (Ipc, &spec.ipc, &paths.ipc), (Uts, &spec.uts, &paths.uts)]
    {
        match mode {
            NamespaceMode::Private => push(kind, None),
            NamespaceMode::Container(_) => push(kind, path.as_ref()),
            NamespaceMode::Host => {}
        }
    }
    if spec.network.mode != NetworkMode::Host {
        push(Network, paths.network.as_ref());
    }
    if spec.cgroupns == NamespaceMode::Private {
        push(Cgroup, None);
    }
    found
}

/// Kernel parameters: Docker's two for a network of the workload's own, then those that the user asked for.
pub(super) fn sysctls(inputs: &Inputs<'_>) -> Result<BTreeMap<String, String>> {
    let spec = inputs.spec;
    let mut found = BTreeMap::new();
    if has_own_network(spec) {
        // Ports below 1024 are the workload's own: they need no privilege.
        found.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        if inputs.id_maps.is_none() && inputs.host.rootful() {
            // Ping without CAP_NET_RAW. In a user namespace the last of these groups is not mapped.
            found.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    for (name, value) in &spec.sysctls {
        let name = name.replace('/', ".");
        check_sysctl(&name, spec)?;
        found.insert(name, value.clone());
    }
    Ok(found)
}

/// Only what belongs to a namespace of the workload's own can be set: anything else would change the host.
fn check_sysctl(name: &str, spec: &WorkloadSpec) -> Result<()> {
    let shared = |what: &str| {
        Err(Error::new(format!(
            "--sysctl {name} belongs to the {what} namespace, which is not the workload's own"
        )))
    };
    if name == "kernel.domainname" {
        return Err(Error::new("--sysctl kernel.domainname is set by --domainname"));
    }
    if name == "kernel.hostname" {
        return Err(Error::new("--sysctl kernel.hostname is set by --hostname"));
    }
    match NamespaceKind::of_sysctl(name) {
        Some(NamespaceKind::Ipc) if spec.ipc == NamespaceMode::Private => return Ok(()),
        Some(NamespaceKind::Ipc) => return shared("IPC"),
        Some(NamespaceKind::Network) if has_own_network(spec) => return Ok(()),
        Some(NamespaceKind::Network) => return shared("network"),
        _ => {}
    }
    Err(Error::new(format!("--sysctl {name} is in no namespace: it would change the host"))
        .hint("those that can be set begin with net., fs.mqueue., kernel.msg, kernel.sem or kernel.shm"))
}

#[cfg(test)]
mod tests {
    use super::{IdMaps, user_namespace};

    #[test]
    fn maps_are_three_numbers() {
        let maps = user_namespace(Some("0:100000:65536,65536:7:1"), None).unwrap().unwrap();
        assert_eq!(maps.uids, maps.gids);
        assert_eq!(IdMaps::outside(&maps.uids, 5), Some(100_005));
        assert_eq!(IdMaps::outside(&maps.uids, 65536), Some(7));
        assert_eq!(IdMaps::outside(&maps.uids, 65537), None);
        for bad in ["0", "0:1", "0:1:0", "0:-1:5", "0:4294967295:2", "0:1:2:3", "+0:1:2", "a:b:c", " 0:1:2"] {
            assert!(user_namespace(Some(bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_is_none_and_auto_needs_a_range() {
        assert_eq!(user_namespace(None, None).unwrap(), None);
        assert_eq!(user_namespace(Some("host"), Some((1, 2))).unwrap(), None);
        assert!(user_namespace(Some("auto"), None).unwrap_err().to_string().contains("subordinate ids"));
        let maps = user_namespace(Some("auto"), Some((200_000, 65536))).unwrap().unwrap();
        assert_eq!(IdMaps::outside(&maps.gids, 65535), Some(265_535));
    }
}
