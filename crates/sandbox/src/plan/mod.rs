//! From an OCI configuration to the steps that build it. Nothing here touches the system.
//!
//! The order of the steps, and why:
//!
//! 1. The v2 group is made first: the process is cloned into it. v1 groups are made while init is at work,
//!    and init joins them by itself; either way the program never runs outside its limits.
//! 2. The process is cloned into its new namespaces. Where a user or PID namespace is joined, or a
//!    namespace of the host's is joined beside a new user namespace, a process in between joins first:
//!    the right to join is lost with the step into the user namespace.
//! 3. Network, UTS and IPC namespaces are unshared by init: making a network namespace is the slowest of
//!    the steps, and the runtime makes cgroups meanwhile. The cgroup namespace is unshared after joining
//!    the cgroup, because its root is the cgroup of that moment.
//! 4. What goes through /proc (sysctls, labels, clock offsets) is written before the root changes,
//!    through the host's /proc: a container can not put anything in its way.
//! 5. Mounts, nodes, masks, then pivot_root.
//! 6. Credentials last, and last of all the system call filter.

mod check;
mod mounts;
mod process;

use std::path::{Path, PathBuf};

use moat_linux::mount::propagation as kinds;
use moat_linux::process::namespace;
use moat_model::id::ContainerId;
use moat_model::oci::{self, IdMapping, NamespaceKind, Spec};

use crate::cgroup::{self, CgroupState};
use crate::host::Host;
use crate::step::{Action, Join, Place, Propagation, Step};
use crate::{Context, Error, Result};

pub use check::parse_config;
pub use mounts::mount_options;
pub use process::{ExecRequest, MEMORY_POLICY_FLAGS, MEMORY_POLICY_MODES, plan_exec};

/// What is asked for beside the configuration.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The container's name.
    pub id: &'a ContainerId,
    /// Absolute path of the bundle.
    pub bundle: &'a Path,
    /// The configuration.
    pub spec: &'a Spec,
    /// MS_MOVE instead of pivot_root(2).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// PID 1 is Moat's own init.
    pub init: bool,
    /// Whether the program waits for `start`.
    pub wait_for_start: bool,
}

/// The steps in the order in which they are performed, and what is known before the first.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// The control group that the steps make.
    pub cgroup: CgroupState,
    /// Whether a new user namespace is made.
    pub new_user_namespace: bool,
    /// What the user should know though it stops nothing.
    pub warnings: Vec<String>,
}

/// Collects steps.
#[derive(Default)]
struct Steps {
    list: Vec<Step>,
    warnings: Vec<String>,
}

impl Steps {
    fn runtime(&mut self, action: Action) {
        self.list.push(Step { place: Place::Runtime, action });
    }

    fn init(&mut self, action: Action) {
        self.list.push(Step { place: Place::Init, action });
    }
}

/// The namespaces of a container, sorted out.
struct Namespaces {
    /// CLONE_NEW* bits to make.
    new: u64,
    /// Namespaces to join by path.
    joins: Vec<Join>,
    /// Whether the joins happen in a process between the runtime and init.
    staged: bool,
}

impl Namespaces {
    fn is_new(&self, bit: u64) -> bool {
        self.new & bit != 0
    }

    /// What init unshares early. A network namespace that devices are moved into has to be there before.
    fn by_init(&self, linux: &oci::Linux) -> u64 {
        let moved = if linux.net_devices.is_empty() { 0 } else { namespace::NETWORK };
        self.new & (BY_INIT & !moved | namespace::CGROUP)
    }

    /// Whether the kind is neither new nor joined.
    fn is_shared(&self, bit: u64) -> bool {
        !self.is_new(bit) && !self.joins.iter().any(|join| join.namespace == bit)
    }
}

/// Plans a container.
///
/// Errors: a sentence that names the field of the configuration that can not be had.
pub fn plan(request: &Request<'_>, host: &Host) -> Result<Plan> {
    let spec = request.spec;
    check::check(spec)?;
    let none = oci::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    let process =
        spec.process.as_ref().ok_or_else(|| Error::new("process is missing in the configuration"))?;
    let namespaces = sort_namespaces(linux)?;
    check::check_namespaces(spec, linux, &namespaces, host)?;
    let mut steps = Steps::default();

    let (group, operations) = cgroup::plan(
        &host.cgroups,
        &linux.cgroups_path,
        request.id.as_str(),
        linux.resources.as_ref().map(with_default_devices).as_ref(),
        host.rootless(),
    )?;
    let unified = host.cgroups.unified().map(|unified| unified.mount.as_path());
    let first =
        |operation: &cgroup::Operation| unified.is_some_and(|mount| operation.path().starts_with(mount));
    let (first, meanwhile): (Vec<_>, Vec<_>) = operations.into_iter().partition(first);
    first.into_iter().for_each(|operation| steps.runtime(Action::Cgroup(operation)));
    let sources = mounts::prepared_sources(request, linux, &namespaces, host)?;
    sources.into_iter().for_each(|source| steps.runtime(source));
    clone_steps(&mut steps, linux, &namespaces, host);
    meanwhile.into_iter().for_each(|operation| steps.runtime(Action::Cgroup(operation)));
    // Before init goes on to another user, whose limits only CAP_SYS_RESOURCE could set.
    host_steps(&mut steps, linux, process, &namespaces, host)?;
    steps.runtime(Action::OpenCgroup);
    if let Some(hooks) = &spec.hooks {
        let both = [("prestart", &hooks.prestart), ("createRuntime", &hooks.create_runtime)];
        for (kind, hooks) in both.into_iter().filter(|(_, hooks)| !hooks.is_empty()) {
            steps.runtime(Action::Hooks { kind, hooks: hooks.clone() });
        }
    }

    if !namespaces.is_shared(namespace::USER) {
        let drop_groups = groups_allowed(linux, host);
        steps.init(Action::BecomeRoot { drop_groups, wait_for_map: namespaces.is_new(namespace::USER) });
    }
    enter_steps(&mut steps, spec, linux, &namespaces);
    process::early(&mut steps, request, process, host)?;
    mounts::root(&mut steps, request, linux, &namespaces, &group, host)?;
    process::late(&mut steps, request, process, linux, host)?;
    Ok(Plan {
        steps: steps.list,
        cgroup: group,
        new_user_namespace: namespaces.is_new(namespace::USER),
        warnings: steps.warnings,
    })
}

/// The bit of a kind of namespace.
pub(crate) fn namespace_bit(kind: NamespaceKind) -> u64 {
    match kind {
        NamespaceKind::User => namespace::USER,
        NamespaceKind::Pid => namespace::PID,
        NamespaceKind::Mount => namespace::MOUNT,
        NamespaceKind::Uts => namespace::UTS,
        NamespaceKind::Ipc => namespace::IPC,
        NamespaceKind::Network => namespace::NETWORK,
        NamespaceKind::Cgroup => namespace::CGROUP,
        NamespaceKind::Time => namespace::TIME,
    }
}

fn sort_namespaces(linux: &oci::Linux) -> Result<Namespaces> {
    let mut new = 0;
    let mut joins: Vec<Join> = Vec::new();
    for wanted in &linux.namespaces {
        let bit = namespace_bit(wanted.kind);
        if new & bit != 0 || joins.iter().any(|join| join.namespace == bit) {
            return Err(Error::new(format!("linux.namespaces names {:?} twice", wanted.kind).to_lowercase()));
        }
        match wanted.path.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            None => new |= bit,
            Some(path) => joins.push(Join { namespace: bit, path: path.to_owned() }),
        }
    }
    let early = |join: &Join| matches!(join.namespace, namespace::USER | namespace::PID);
    let staged = joins.iter().any(early) || (new & namespace::USER != 0 && !joins.is_empty());
    Ok(Namespaces { new, joins, staged })
}

/// Namespaces that init unshares as soon as it runs, because they take long or have to be set up first: the
/// clocks of a time namespace can only be set while nobody is in it.
const BY_INIT: u64 = namespace::NETWORK | namespace::UTS | namespace::IPC | namespace::TIME;

fn clone_steps(steps: &mut Steps, linux: &oci::Linux, namespaces: &Namespaces, host: &Host) {
    let joins = if namespaces.staged { namespaces.joins.clone() } else { Vec::new() };
    steps.runtime(Action::Clone { namespaces: namespaces.new & !namespaces.by_init(linux), joins });
    if namespaces.is_new(namespace::USER) {
        let single =
            |maps: &[IdMapping], own: u32| matches!(maps, [map] if map.size == 1 && map.host_id == own);
        let plain = single(&linux.uid_mappings, host.user) && single(&linux.gid_mappings, host.group);
        let unprivileged = host.user != 0;
        steps.runtime(Action::MapIds {
            uids: linux.uid_mappings.clone(),
            gids: linux.gid_mappings.clone(),
            helpers: unprivileged && !plain,
            deny_setgroups: unprivileged && plain,
        });
    }
}

/// Whether setgroups(2) works inside: not where the group map was written without privilege, be it now or earlier.
fn groups_allowed(linux: &oci::Linux, host: &Host) -> bool {
    let one = |maps: &[IdMapping]| matches!(maps, [map] if map.size == 1);
    !host.groups_denied && (host.user == 0 || !(one(&linux.uid_mappings) && one(&linux.gid_mappings)))
}

/// What the runtime does to the process from outside, while init is at work.
fn host_steps(
    steps: &mut Steps,
    linux: &oci::Linux,
    process: &oci::Process,
    namespaces: &Namespaces,
    host: &Host,
) -> Result<()> {
    process::limits(steps, process)?;
    if let Some(value) = process.oom_score_adj {
        if !(-1000..=1000).contains(&value) {
            return Err(Error::new(format!("process.oomScoreAdj {value} is not within -1000 to 1000")));
        }
        steps.runtime(Action::OomScoreAdjust { value, best_effort: host.rootless() });
    }
    let joined = namespaces.joins.iter().find(|join| join.namespace == namespace::NETWORK);
    for (name, device) in &linux.net_devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        steps.runtime(Action::MoveNetDevice {
            name: name.clone(),
            inside: inside.clone(),
            namespace: joined.map(|join| join.path.clone()),
        });
    }
    Ok(())
}

fn enter_steps(steps: &mut Steps, spec: &Spec, linux: &oci::Linux, namespaces: &Namespaces) {
    if !namespaces.staged {
        namespaces.joins.iter().cloned().for_each(|join| steps.init(Action::JoinNamespace(join)));
    }
    let own = namespaces.by_init(linux) & !namespace::CGROUP;
    if own != 0 {
        steps.init(Action::Unshare { namespaces: own });
    }
    if !linux.time_offsets.is_empty() {
        let offset =
            |(clock, offset): (&String, &oci::TimeOffset)| (clock.clone(), offset.secs, offset.nanosecs);
        steps.init(Action::TimeOffsets(linux.time_offsets.iter().map(offset).collect()));
    }
    if namespaces.is_new(namespace::USER) {
        steps.init(Action::Harden);
    }
    if namespaces.is_new(namespace::NETWORK) {
        steps.init(Action::LoopbackUp);
    }
    if !spec.hostname.is_empty() {
        steps.init(Action::HostName(spec.hostname.clone()));
    }
    if !spec.domainname.is_empty() {
        steps.init(Action::DomainName(spec.domainname.clone()));
    }
    for (name, value) in &linux.sysctl {
        steps.init(Action::Sysctl { name: name.clone(), value: value.clone() });
    }
}

/// Joins the cgroup, and the namespace that makes it look like the root of the hierarchy.
fn join_cgroup(steps: &mut Steps, namespaces: &Namespaces) {
    steps.init(Action::JoinCgroup);
    if namespaces.is_new(namespace::CGROUP) {
        steps.init(Action::Unshare { namespaces: namespace::CGROUP });
    }
}

/// The device rules that every container has, before those of the configuration, as runc has them: nodes
/// can be made but not opened, and what every program expects can be opened.
pub(crate) fn with_default_devices(resources: &oci::Resources) -> oci::Resources {
    let mut resources = resources.clone();
    if resources.devices.is_empty() {
        return resources;
    }
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| oci::DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    resources.devices.extend([
        rule("c", None, None, "m"), // a node that nobody may open harms nothing, and tar makes them
        rule("b", None, None, "m"), // as above
        rule("c", Some(1), Some(3), "rwm"), // null
        rule("c", Some(1), Some(8), "rwm"), // random
        rule("c", Some(1), Some(7), "rwm"), // full
        rule("c", Some(5), Some(0), "rwm"), // tty: the process's own terminal
        rule("c", Some(1), Some(5), "rwm"), // zero
        rule("c", Some(1), Some(9), "rwm"), // urandom
        rule("c", Some(136), None, "rwm"), // pseudo-terminals of the container's own devpts
        rule("c", Some(5), Some(2), "rwm"), // ptmx of that devpts
    ]);
    resources
}

/// Kinds of mount propagation; with an `r` before the name for the mounts below as well.
const PROPAGATIONS: [(&str, u64); 4] = [
    ("shared", kinds::SHARED),
    ("slave", kinds::SLAVE),
    ("private", kinds::PRIVATE),
    ("unbindable", kinds::UNBINDABLE),
];

/// Parses `shared`, `rslave` and so on.
fn parse_propagation(text: &str) -> Option<Propagation> {
    let (recursive, name) = match text.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (_, kind) = PROPAGATIONS.iter().find(|(known, _)| *known == name)?;
    Some(Propagation { kind: *kind, recursive })
}

/// A path of the configuration made absolute by the bundle.
fn below_bundle(bundle: &Path, path: &Path) -> PathBuf {
    bundle.join(path)
}

/// Parses a list such as `0-3,7`.
fn parse_list(text: &str, field: &str) -> Result<Vec<u32>> {
    const MOST: u32 = 8192;
    let bad = || Error::new(format!("{field} {text:?} is not a list of numbers and ranges such as 0-3,7"));
    let number = |part: &str| part.parse::<u32>().ok().filter(|number| *number < MOST).ok_or_else(bad);
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('-') {
            None => found.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(bad());
                }
                found.extend(first..=last);
            }
        }
    }
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

/// Names a field in front of an error about its value.
fn in_field<T>(result: Result<T>, field: &str) -> Result<T> {
    result.context(|| field.to_owned())
}
