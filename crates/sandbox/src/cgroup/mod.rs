//! Control groups: the group of one container, in every hierarchy that the host has.
//!
//! cgroup v2 is the design. Hosts that still have v1 hierarchies (alone, or beside a cgroup2 mount, as
//! systemd's hybrid layout) are served through the same values: a [`Layout`] says which controller lives
//! where, [`plan`] turns the configuration into operations on files, and each controller's limits go to
//! wherever it lives.
//!
//! # Joining
//!
//! Writing a process id to cgroup.procs takes the kernel's global thread-group semaphore for writing. When it was
//! quiet for some 50 ms this waits for an RCU grace period: measured on Linux 6.18, 5 to 15 ms for the first
//! write, 10 µs for each further one. Two ways have no such wait, and both are offered ([`CgroupState::open_unified`], [`Tasks`]):
//! - on v2 a child starts inside (CLONE_INTO_CGROUP);
//! - on v1 a single-threaded process writes "0" into `tasks`: moving only itself, the kernel skips the
//!   semaphore. Measured after 100 ms of quiet, nine hierarchies: 0.12 to 0.28 ms in all, against 5 to 15 ms for
//!   cgroup.procs and 7 to 9 ms for a process id written to `tasks`.

mod control;
mod devices;
mod file;
mod filter;
mod layout;
mod oom;
mod operation;
mod stats;
mod stats_v1;
mod stats_v2;
mod v1;
mod v2;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_model::oci;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

pub use devices::{Kind, Rule};
pub use layout::{Hierarchy, Layout, Unified, detect};
pub use oom::{Oom, OomWatch, Victim};
pub use operation::{Missing, Operation, Write};
pub use stats::*;

use crate::{Context, Error, Result};
use layout::Place;

/// The group of a container, as its state file keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CgroupState {
    /// Its directories in the v1 hierarchies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub legacy: Vec<Group>,
    /// Its directory in the cgroup2 mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unified: Option<Group>,
}

/// The group in one hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Group {
    /// Its directory.
    pub directory: PathBuf,
    /// Its path as the kernel's log names it, from the root of the hierarchy.
    pub path: String,
    /// The controllers of the hierarchy.
    pub controllers: Vec<String>,
}

/// The parts of `linux.resources`, by controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Cpu,
    Cpuset,
    Memory,
    Pids,
    Io,
    Hugetlb,
    Rdma,
    NetClass,
    NetPriority,
}

impl Section {
    const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Io,
        Self::Hugetlb,
        Self::Rdma,
        Self::NetClass,
        Self::NetPriority,
    ];

    /// The name of the controller, on v1 and on v2.
    fn controller(self) -> (&'static str, &'static str) {
        match self {
            Self::Cpu => ("cpu", "cpu"),
            Self::Cpuset => ("cpuset", "cpuset"),
            Self::Memory => ("memory", "memory"),
            Self::Pids => ("pids", "pids"),
            Self::Io => ("blkio", "io"),
            Self::Hugetlb => ("hugetlb", "hugetlb"),
            Self::Rdma => ("rdma", "rdma"),
            Self::NetClass => ("net_cls", "net_cls"),
            Self::NetPriority => ("net_prio", "net_prio"),
        }
    }
}

/// Plans the group of a container: what is to be saved, and the operations that make it.
///
/// `path` is `linux.cgroupsPath` and comes from outside; `id` is its default. `best_effort` is for a runtime that
/// is not root: hierarchies in which it may make no group (see [`Layout::probe`]) are left out unless a limit
/// needs them, and devices are not filtered, since such a runtime can make no device node. A state without
/// directories is worth a warning.
pub fn plan(
    layout: &Layout,
    path: &str,
    id: &str,
    resources: Option<&oci::Resources>,
    best_effort: bool,
) -> Result<(CgroupState, Vec<Operation>)> {
    let place = Place::parse(path, id, best_effort)?;
    let state = CgroupState::planned(layout, &place, best_effort);
    let none = oci::Resources::default();
    let resources = resources.unwrap_or(&none);
    let (limits, required) = state.limits(resources, &v2::Present::default())?;
    let mut operations = Vec::new();
    if let (Some(group), Some(unified)) = (&state.unified, layout.unified()) {
        // The controllers of a hybrid layout's cgroup2 are enabled only where a limit needs one: nobody else does.
        let alone = state.legacy.is_empty();
        let wanted = if alone { &unified.controllers } else { &required };
        make_unified(&unified.mount, &group.directory, (wanted, &required), &mut operations);
    }
    for group in &state.legacy {
        operations.push(Operation::MakeDirectory {
            directory: group.directory.clone(),
            own: true,
            inherit_cpuset: group.has("cpuset"),
        });
    }
    if !best_effort {
        operations.extend(state.device_operation(&resources.devices)?);
    }
    operations.extend(limits);
    Ok((state, operations))
}

/// On v2 each group on the way must let its children have the controllers before the next one is of use.
fn make_unified(
    mount: &Path,
    leaf: &Path,
    (wanted, required): (&[String], &[String]),
    operations: &mut Vec<Operation>,
) {
    let mut way: Vec<&Path> = leaf.ancestors().take_while(|path| *path != mount).collect();
    way.reverse();
    let mut parent = mount;
    for directory in way {
        if !wanted.is_empty() {
            operations.push(Operation::EnableControllers {
                directory: parent.to_owned(),
                controllers: wanted.to_vec(),
                required: required.to_vec(),
            });
        } else if directory != leaf {
            // Making the leaf makes those above it.
            continue;
        }
        operations.push(Operation::MakeDirectory {
            directory: directory.to_owned(),
            own: directory == leaf,
            inherit_cpuset: false,
        });
        parent = directory;
    }
}

impl Group {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Where a controller lives.
enum Home<'state> {
    V1(&'state Group),
    V2(&'state Group),
}

impl CgroupState {
    fn planned(layout: &Layout, place: &Place, best_effort: bool) -> Self {
        let group = |mount: &Path, root: &str, own: &str, alone: bool, controllers: &[String]| {
            let path = place.within(own, alone);
            let directory = layout::directory(mount, &path);
            let path = format!("{}{path}", root.trim_end_matches('/'));
            Group { directory, path, controllers: controllers.to_vec() }
        };
        let usable = |writable: bool| writable || !best_effort;
        let alone = matches!(layout, Layout::Unified(_));
        let unified = layout.unified().filter(|one| usable(one.writable));
        let legacy = layout.hierarchies().iter().filter(|one| usable(one.writable));
        Self {
            legacy: legacy
                .map(|one| group(&one.mount, &one.root, &one.own, false, &one.controllers))
                .collect(),
            unified: unified.map(|one| group(&one.mount, &one.root, &one.own, alone, &one.controllers)),
        }
    }

    /// Whether there is no directory: the layout has none, or a rootless runtime may make none.
    pub fn is_empty(&self) -> bool {
        self.legacy.is_empty() && self.unified.is_none()
    }

    fn legacy_with(&self, controller: &str) -> Option<&Group> {
        self.legacy.iter().find(|group| group.has(controller))
    }

    fn home(&self, (v1, v2): (&str, &str)) -> Option<Home<'_>> {
        match self.legacy_with(v1) {
            Some(group) => Some(Home::V1(group)),
            None => self.unified.as_ref().filter(|group| group.has(v2)).map(Home::V2),
        }
    }

    /// The operations for all limits, and the v2 controllers that they need.
    fn limits(
        &self,
        resources: &oci::Resources,
        present: &v2::Present,
    ) -> Result<(Vec<Operation>, Vec<String>)> {
        let mut operations = Vec::new();
        let mut required = Vec::new();
        for section in Section::ALL {
            let names = section.controller();
            let (group, limits) = match self.home(names) {
                Some(Home::V1(group)) => (group, v1::limits(section, resources)?),
                Some(Home::V2(group)) => {
                    let limits = v2::limits(section, resources, present)?;
                    if !limits.is_empty() {
                        required.push(names.1.to_owned());
                    }
                    (group, limits)
                }
                None => {
                    // v1 has an answer to every key, so that the first one can be named.
                    let limits = v1::limits(section, resources)?;
                    match limits.iter().find_map(Operation::key) {
                        Some(key) => return Err(self.homeless(key, names)),
                        None => continue,
                    }
                }
            };
            operations.extend(limits.into_iter().map(|limit| limit.below(&group.directory)));
        }
        for (name, value) in &resources.unified {
            let (controller, writes) = v2::unified(name, value)?;
            let key = format!("linux.resources.unified[{name}]");
            let group = match (&self.unified, &controller) {
                (None, _) => return Err(Error::new(format!("{key} needs cgroup v2, which is not there"))),
                (Some(group), Some(name)) if !group.has(name) => {
                    return Err(Error::new(format!(
                        "{key} needs the controller {name}, which cgroup v2 does not have here"
                    )));
                }
                (Some(group), _) => group,
            };
            required
                .extend(controller.filter(|name| !required.contains(name)).into_iter().collect::<Vec<_>>());
            operations.extend(writes.into_iter().map(|write| write.below(&group.directory)));
        }
        Ok((operations, required))
    }

    fn homeless(&self, key: &str, names: (&str, &str)) -> Error {
        let name = if self.legacy.is_empty() { names.1 } else { names.0 };
        let sentence = Error::new(format!("{key} needs the cgroup controller {name}, which is not there"));
        match self.is_empty() {
            true => sentence.hint("no cgroup is mounted, or this user may make no group"),
            false => sentence,
        }
    }

    fn device_operation(&self, rules: &[oci::DeviceRule]) -> Result<Option<Operation>> {
        if rules.is_empty() {
            return Ok(None);
        }
        let rules = devices::checked(rules)?;
        match (self.legacy_with("devices"), &self.unified) {
            (Some(group), _) => {
                let rules = devices::flatten(&rules)?;
                Ok(Some(Operation::DeviceRules { directory: group.directory.clone(), rules }))
            }
            (None, Some(group)) => {
                Ok(Some(Operation::DeviceFilter { directory: group.directory.clone(), rules }))
            }
            (None, None) => Err(Error::new(
                "linux.resources.devices needs a cgroup, and no cgroup file system is mounted",
            )),
        }
    }

    /// Plans a change of limits: what `resources` does not name stays as it is.
    ///
    /// Reads present values where a new one depends on them. On v1 a change of device rules has an instant in
    /// which all are denied; v2 replaces the filter at once.
    pub fn plan_update(&self, resources: &oci::Resources) -> Result<Vec<Operation>> {
        let (limits, required) = self.limits(resources, &self.present(resources)?)?;
        let mut operations = Vec::new();
        let parent = self.unified.as_ref().and_then(|group| group.directory.parent());
        if let (Some(parent), false) = (parent, required.is_empty()) {
            operations.push(Operation::EnableControllers {
                directory: parent.to_owned(),
                controllers: required.clone(),
                required,
            });
        }
        operations.extend(self.device_operation(&resources.devices)?);
        operations.extend(limits);
        Ok(operations)
    }

    fn present(&self, resources: &oci::Resources) -> Result<v2::Present> {
        let mut present = v2::Present::default();
        let wants_swap = resources.memory.as_ref().is_some_and(|memory| memory.limit_bytes.is_none());
        if let (Some(Home::V2(group)), true) = (self.home(("memory", "memory")), wants_swap) {
            let limit = file::read_optional(&group.file("memory.max"))?;
            present.memory_bytes = limit.and_then(|limit| limit.parse().ok());
        }
        let wants_period = resources.cpu.as_ref().is_some_and(|cpu| cpu.quota_us.is_none());
        if let (Some(Home::V2(group)), true) = (self.home(("cpu", "cpu")), wants_period) {
            let limit = file::read_optional(&group.file("cpu.max"))?;
            present.quota = limit.and_then(|limit| limit.split(' ').next().map(str::to_owned));
        }
        Ok(present)
    }

    /// Opens the v2 group, for CLONE_INTO_CGROUP.
    pub fn open_unified(&self) -> Result<Option<OwnedFd>> {
        let open = |group: &Group| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            moat_linux::fs::open(&group.directory, flags).context(|| what(group))
        };
        self.unified.as_ref().map(open).transpose()
    }

    /// Opens the ways into the v1 groups.
    pub fn open_legacy(&self) -> Result<Tasks> {
        let open = |group: &Group| {
            moat_linux::fs::open(&group.file("tasks"), OFlags::WRONLY).context(|| what(group))
        };
        Ok(Tasks(self.legacy.iter().map(open).collect::<Result<_>>()?))
    }

    /// The group below this one in every hierarchy, as `exec --cgroup` names it.
    pub fn below(&self, path: &str) -> Result<Self> {
        let place = Place::parse(&format!("/{path}"), "", false)?;
        let path = place.within("/", false);
        let below = |group: &Group| Group {
            directory: layout::directory(&group.directory, &path),
            path: format!("{}{path}", group.path),
            controllers: group.controllers.clone(),
        };
        Ok(Self {
            legacy: self.legacy.iter().map(below).collect(),
            unified: self.unified.as_ref().map(below),
        })
    }
}

impl CgroupState {
    /// As this state, but on v2 the group below it that a process of the container is in.
    ///
    /// An init that gives controllers to groups of its own leaves the container's group without processes, and the
    /// kernel lets none in (EBUSY). `exec` then goes where the container's first process is.
    pub fn around(&self, pid: i32) -> Result<Self> {
        if self.unified.is_none() {
            return Ok(self.clone());
        }
        let text =
            file::read(Path::new(&format!("/proc/{pid}/cgroup"))).context(|| format!("process {pid}"))?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let Some(group) = &self.unified else { return Ok(self.clone()) };
        match own.strip_prefix(group.path.as_str()) {
            Some(rest) if rest.starts_with('/') => {
                Ok(Self { legacy: self.legacy.clone(), unified: self.below(rest)?.unified })
            }
            _ => Ok(self.clone()),
        }
    }
}

fn what(group: &Group) -> String {
    format!("cgroup {}", group.directory.display())
}

/// The files `tasks` of v1 groups: ways in that need no wait, see the module's header.
///
/// A cgroup namespace takes its root from the groups that its maker is in, so it is unshared after joining.
#[derive(Debug, Default)]
pub struct Tasks(pub Vec<OwnedFd>);

impl Tasks {
    /// Moves this process, which must have a single thread, into the groups.
    ///
    /// The kernel asks whether whoever opened the files may move it, so this works in a user namespace too.
    pub fn join(&self) -> Result<()> {
        for fd in &self.0 {
            if let Err(errno) = rustix::io::write(fd, b"0") {
                let name = moat_linux::fd_name(fd.as_fd());
                return Err(moat_linux::Error::new("write", format!("{name}, \"0\""), errno).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
