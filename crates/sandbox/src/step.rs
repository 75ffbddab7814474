//! The steps that build a container: values that can be printed, applied and timed.

use std::fmt;
use std::path::PathBuf;

use moat_linux::capability;
use moat_linux::mount::Attributes;
use moat_linux::process::namespace;
use moat_linux::sched;
use moat_model::oci::{ConsoleSize, Hook, IdMapping};

use crate::cgroup;
use crate::seccomp::Filter;

/// Who performs a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The runtime, on the host.
    Runtime,
    /// The container's first process, before it becomes the user's program.
    Init,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Who performs it.
    pub place: Place,
    /// What is done.
    pub action: Action,
}

/// A namespace to join by its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    /// One CLONE_NEW* bit.
    pub namespace: u64,
    /// The namespace's file.
    pub path: PathBuf,
}

/// A mount below the container's root.
#[derive(Clone, Debug, PartialEq)]
pub struct MountStep {
    /// Where: absolute inside the container.
    pub destination: PathBuf,
    /// What.
    pub source: MountSource,
    /// Attributes of the mount itself.
    pub attributes: Attributes,
    /// Attributes of the mount and of all below it.
    pub recursive: Attributes,
    /// Propagation with the mounts below it.
    pub propagation: Option<Propagation>,
}

/// A change of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE.
    pub kind: u64,
    /// With all mounts below.
    pub recursive: bool,
}

/// The id mapping of an idmapped mount.
#[derive(Clone, Debug, PartialEq)]
pub struct MountIdMapping {
    /// User ids; the container's user namespace is used when both are empty.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
    /// Whether the mounts below get it too.
    pub recursive: bool,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq)]
pub enum MountSource {
    /// A host path.
    Bind {
        /// Absolute host path.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// Opened by the runtime (index among the sources), because init can not reach it.
        prepared: Option<usize>,
    },
    /// A new instance of a file system.
    New {
        /// Type of file system.
        kind: String,
        /// The `source` parameter.
        source: String,
        /// Parameters, value empty for a flag.
        parameters: Vec<(String, String)>,
        /// Whether the directory below is copied into it (tmpfs).
        copy_up: bool,
    },
    /// cgroup v1: a tmpfs with one bind mount for each hierarchy.
    CgroupsV1 {
        /// Name in the tmpfs, the container's directory on the host.
        hierarchies: Vec<(String, PathBuf)>,
        /// Link name, target.
        links: Vec<(String, String)>,
        /// Whether the hierarchies are read-only.
        read_only: bool,
    },
}

/// A device node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Path inside the container.
    pub path: PathBuf,
    /// `c`, `b` or `p`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The host's node is bound instead of making one, as a user namespace must.
    pub bind: bool,
}

/// Capability sets that a step leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Effective.
    pub effective: capability::Set,
    /// Permitted.
    pub permitted: capability::Set,
    /// Inheritable: what the ambient set needs, else empty.
    pub inheritable: capability::Set,
    /// Bounding.
    pub bounding: capability::Set,
    /// Ambient.
    pub ambient: capability::Set,
}

/// The terminal of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its size.
    pub size: Option<ConsoleSize>,
    /// Whether it is also bound to /dev/console.
    pub console: bool,
    /// Owner of the slave.
    pub owner: u32,
}

/// What lets a container that is built run its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartSignal {
    /// `start` writes to the exec FIFO.
    Fifo,
    /// The runtime that built it says so.
    Runtime,
}

/// What a step does. Each is one system call or one small group.
#[derive(Clone, Debug)]
pub enum Action {
    /// One operation on a control group.
    Cgroup(cgroup::Operation),
    /// Copies the tree of a bind mount's source while host privileges are at hand.
    OpenSource {
        /// Host path.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// Id mapping.
        id_mapping: Option<MountIdMapping>,
    },
    /// clone3(2), after joining namespaces where the order demands a process in between.
    Clone {
        /// CLONE_NEW* bits.
        namespaces: u64,
        /// Namespaces that a process in between joins first.
        joins: Vec<Join>,
    },
    /// Writes uid_map and gid_map.
    MapIds {
        /// User ids.
        uids: Vec<IdMapping>,
        /// Group ids.
        gids: Vec<IdMapping>,
        /// By newuidmap(1) and newgidmap(1).
        helpers: bool,
        /// Writes `deny` to setgroups first, as user_namespaces(7) demands of who lacks CAP_SETGID.
        deny_setgroups: bool,
    },
    /// prlimit(2) from outside, where the ceiling may be raised.
    Limit {
        /// RLIMIT_* number.
        resource: u32,
        /// Name.
        name: String,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// /proc/PID/oom_score_adj.
    OomScoreAdjust {
        /// -1000 to 1000.
        value: i32,
        /// A refusal is told as a warning (rootless).
        best_effort: bool,
    },
    /// Moves a network device into the container.
    MoveNetDevice {
        /// Name on the host.
        name: String,
        /// Name inside.
        inside: String,
        /// The network namespace that is joined; the process's own when it is new.
        namespace: Option<PathBuf>,
    },
    /// Runs hooks.
    Hooks {
        /// The kind's name in the configuration.
        kind: &'static str,
        /// What to run.
        hooks: Vec<Hook>,
    },
    /// Gives init the ways into the cgroups, once those are complete.
    OpenCgroup,
    /// Init joins the cgroups by itself.
    JoinCgroup,
    /// unshare(2).
    Unshare {
        /// CLONE_NEW* bits.
        namespaces: u64,
    },
    /// setns(2).
    JoinNamespace(Join),
    /// setns(2) into the namespaces of a running container.
    JoinContainer {
        /// CLONE_NEW* bits.
        namespaces: u64,
    },
    /// Writes the clock offsets of the new time namespace.
    TimeOffsets(Vec<(String, i64, u32)>),
    /// Takes the identity of root in the new user namespace.
    BecomeRoot {
        /// Whether setgroups(2) is allowed there.
        drop_groups: bool,
        /// Waits until the runtime has written the maps.
        wait_for_map: bool,
    },
    /// PR_SET_DUMPABLE off: nobody in the container may look into a process of the runtime's.
    Harden,
    /// Brings `lo` up.
    LoopbackUp,
    /// sethostname(2).
    HostName(String),
    /// setdomainname(2).
    DomainName(String),
    /// Writes a kernel parameter through the host's /proc, in the container's namespaces.
    Sysctl {
        /// Name with dots.
        name: String,
        /// Value.
        value: String,
    },
    /// Changes the propagation of the whole mount namespace, so that nothing goes to the host.
    RootPropagation(Propagation),
    /// Binds the root file system onto itself and opens it.
    BindRoot {
        /// Host path.
        path: PathBuf,
        /// The mount around it is made private first: pivot_root(2) refuses a shared one.
        private_parent: bool,
    },
    /// Opens the root file system where there is no mount namespace of its own.
    OpenRoot {
        /// Host path.
        path: PathBuf,
    },
    /// A mount.
    Mount(MountStep),
    /// Makes a mount below the root read-only after it was filled.
    Freeze(PathBuf),
    /// A device node.
    Node(Node),
    /// A symbolic link.
    Link {
        /// What it says.
        target: PathBuf,
        /// Where it is, inside the container.
        path: PathBuf,
    },
    /// Hides a path.
    Mask(PathBuf),
    /// Makes a path read-only.
    ReadOnly(PathBuf),
    /// A new pseudo-terminal; the master goes to the runtime or to the console socket.
    Terminal(Terminal),
    /// Tells the runtime that the namespaces are there, and waits for its hooks.
    AwaitHooks,
    /// pivot_root(2) into the root file system.
    PivotRoot,
    /// MS_MOVE and chroot(2): `--no-pivot`.
    MoveRoot,
    /// chroot(2), without a mount namespace of its own.
    ChangeRoot,
    /// Propagation of the container's root mount.
    FinalPropagation(Propagation),
    /// Makes the root read-only.
    RootReadOnly,
    /// A session keyring.
    Keyring(String),
    /// sched_setattr(2).
    Scheduler(sched::Attributes),
    /// ioprio_set(2).
    IoPriority {
        /// IOPRIO_CLASS_*.
        class: u32,
        /// 0 to 7.
        priority: u32,
    },
    /// set_mempolicy(2).
    MemoryPolicy {
        /// MPOL_* with flags.
        mode: i32,
        /// Nodes.
        nodes: Vec<u32>,
    },
    /// sched_setaffinity(2).
    Affinity(Vec<u32>),
    /// personality(2).
    Personality(u64),
    /// The label that execve(2) gives.
    Label {
        /// `apparmor` or `selinux`.
        module: &'static str,
        /// What is written.
        text: String,
    },
    /// PR_SET_NO_NEW_PRIVS.
    NoNewPrivileges,
    /// Drops capabilities from the bounding set.
    Bounding {
        /// What stays.
        keep: capability::Set,
        /// What the runtime has beyond that.
        drop: capability::Set,
    },
    /// umask(2), setgroups(2), setresgid(2), setresuid(2).
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Supplementary groups; none where setgroups is denied.
        groups: Option<Vec<u32>>,
        /// File mode creation mask.
        umask: Option<u32>,
    },
    /// chdir(2), and a check that the directory is below the root.
    WorkingDirectory(PathBuf),
    /// capset(2).
    Capabilities(Sets),
    /// Looks the program up in PATH.
    FindProgram(String),
    /// Tells the runtime that all is built, and waits.
    AwaitStart(StartSignal),
    /// Installs the system call filter.
    Seccomp(Box<Filter>),
    /// Stays as PID 1 that reaps zombies and forwards signals; the program runs in a child.
    StayAsInit,
    /// execve(2).
    Execute(Vec<String>),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(operation) => write!(f, "{operation}"),
            Self::OpenSource { path, .. } => write!(f, "open mount source {}", path.display()),
            Self::Clone { namespaces, joins } => {
                write!(f, "clone process, new namespaces {}", namespace::names(*namespaces))?;
                joins.iter().try_for_each(|join| {
                    write!(f, ", joined {} {}", namespace::names(join.namespace), join.path.display())
                })
            }
            Self::MapIds { uids, gids, .. } => {
                write!(f, "map user ids {} and group ids {}", ranges(uids), ranges(gids))
            }
            Self::Limit { name, soft, hard, .. } => write!(f, "limit {name} to {soft}:{hard}"),
            Self::OomScoreAdjust { value, .. } => write!(f, "set oom_score_adj to {value}"),
            Self::MoveNetDevice { name, inside, .. } => {
                write!(f, "move network device {name} in as {inside}")
            }
            Self::Hooks { kind, hooks } => write!(f, "run {} {kind} hook(s)", hooks.len()),
            Self::OpenCgroup => f.write_str("open the cgroup to init"),
            Self::JoinCgroup => f.write_str("join the cgroup"),
            Self::Unshare { namespaces } => write!(f, "unshare {}", namespace::names(*namespaces)),
            Self::JoinNamespace(join) => {
                write!(f, "join {} {}", namespace::names(join.namespace), join.path.display())
            }
            Self::JoinContainer { namespaces } => write!(f, "join {}", namespace::names(*namespaces)),
            Self::TimeOffsets(offsets) => write!(f, "set {} clock offset(s)", offsets.len()),
            Self::BecomeRoot { .. } => f.write_str("become root of the user namespace"),
            Self::Harden => f.write_str("become non-dumpable"),
            Self::LoopbackUp => f.write_str("bring lo up"),
            Self::HostName(name) => write!(f, "set host name {name}"),
            Self::DomainName(name) => write!(f, "set domain name {name}"),
            Self::Sysctl { name, value } => write!(f, "set sysctl {name} = {value}"),
            Self::RootPropagation(change) | Self::FinalPropagation(change) => {
                write!(f, "make / {}", propagation_name(*change))
            }
            Self::BindRoot { path, .. } => write!(f, "bind root {}", path.display()),
            Self::OpenRoot { path } => write!(f, "open root {}", path.display()),
            Self::Mount(mount) => write!(f, "{mount}"),
            Self::Freeze(path) => write!(f, "make mount {} read-only", path.display()),
            Self::Node(node) => write!(
                f,
                "{} device {} {} {}:{}",
                if node.bind { "bind" } else { "make" },
                node.path.display(),
                node.kind,
                node.major,
                node.minor
            ),
            Self::Link { target, path } => write!(f, "link {} -> {}", path.display(), target.display()),
            Self::Mask(path) => write!(f, "mask {}", path.display()),
            Self::ReadOnly(path) => write!(f, "make {} read-only", path.display()),
            Self::Terminal(_) => f.write_str("open terminal"),
            Self::AwaitHooks => f.write_str("wait for the runtime's hooks"),
            Self::PivotRoot => f.write_str("pivot root"),
            Self::MoveRoot => f.write_str("move root mount to / and chroot"),
            Self::ChangeRoot => f.write_str("chroot"),
            Self::RootReadOnly => f.write_str("make root read-only"),
            Self::Keyring(name) => write!(f, "join session keyring {name}"),
            Self::Scheduler(attributes) => write!(f, "set scheduler policy {}", attributes.policy),
            Self::IoPriority { class, priority } => write!(f, "set I/O priority {class}:{priority}"),
            Self::MemoryPolicy { mode, nodes } => write!(f, "set memory policy {mode:#x} nodes {nodes:?}"),
            Self::Affinity(cpus) => write!(f, "run on CPUs {cpus:?}"),
            Self::Personality(persona) => write!(f, "set personality {persona:#x}"),
            Self::Label { module, text } => write!(f, "set {module} label {text}"),
            Self::NoNewPrivileges => f.write_str("set no_new_privs"),
            Self::Bounding { keep, .. } => write!(f, "limit capabilities to {}", keep.names().len()),
            Self::User { uid, gid, .. } => write!(f, "become user {uid}:{gid}"),
            Self::WorkingDirectory(path) => write!(f, "change directory to {}", path.display()),
            Self::Capabilities(sets) => {
                write!(f, "set capabilities, {} effective", sets.effective.names().len())
            }
            Self::FindProgram(name) => write!(f, "find program {name}"),
            Self::AwaitStart(_) => f.write_str("wait for start"),
            Self::Seccomp(filter) => {
                write!(f, "install seccomp filter, {} instructions", filter.program.len())
            }
            Self::StayAsInit => f.write_str("stay as init, run the program in a child"),
            Self::Execute(args) => write!(f, "execute {}", args.join(" ")),
        }
    }
}

impl fmt::Display for MountStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.destination.display();
        match &self.source {
            MountSource::Bind { path, .. } => write!(f, "bind {} on {to}", path.display())?,
            MountSource::New { kind, .. } => write!(f, "mount {kind} on {to}")?,
            MountSource::CgroupsV1 { hierarchies, .. } => {
                write!(f, "mount {} cgroup hierarchies on {to}", hierarchies.len())?;
            }
        }
        let bits = self.attributes.set | self.recursive.set;
        if bits != 0 {
            write!(f, " ({})", moat_linux::mount::attributes_text(bits).to_lowercase().replace('|', ","))?;
        }
        Ok(())
    }
}

fn ranges(mappings: &[IdMapping]) -> String {
    let one = |map: &IdMapping| format!("{}:{}:{}", map.container_id, map.host_id, map.size);
    mappings.iter().map(one).collect::<Vec<_>>().join(",")
}

/// A propagation as mount(8) names it: `rslave`.
pub fn propagation_name(change: Propagation) -> String {
    use moat_linux::mount::propagation as kinds;
    let name = match change.kind {
        kinds::SHARED => "shared",
        kinds::SLAVE => "slave",
        kinds::UNBINDABLE => "unbindable",
        _ => "private",
    };
    if change.recursive { format!("r{name}") } else { name.to_owned() }
}
