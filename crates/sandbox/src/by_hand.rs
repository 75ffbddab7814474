//! What does the same as a step, typed by hand: `--explain` prints it beside each step.

use moat_linux::process::namespace;

use crate::step::{Action, MountSource, MountStep, propagation_name};

impl Action {
    /// A shell command that does the same; `$PID` is the container's first process, `$ROOT` its root.
    /// Empty where no command exists.
    pub fn by_hand(&self) -> String {
        match self {
            Self::Cgroup(operation) => operation.by_hand(),
            Self::Clone { namespaces, joins } => {
                let enter: String = joins
                    .iter()
                    .map(|join| format!("nsenter {}={} ", flag(join.namespace), join.path.display()))
                    .collect();
                format!("{enter}unshare --fork {} sh", flags(*namespaces))
            }
            Self::MapIds { uids, gids, .. } => {
                let map = |tool: &str, maps: &[moat_model::oci::IdMapping]| {
                    let ids: Vec<String> = maps
                        .iter()
                        .map(|map| format!("{} {} {}", map.container_id, map.host_id, map.size))
                        .collect();
                    format!("{tool} $PID {}", ids.join(" "))
                };
                format!("{}; {}", map("newuidmap", uids), map("newgidmap", gids))
            }
            Self::Limit { name, soft, hard, .. } => {
                let option = name.trim_start_matches("RLIMIT_").to_lowercase();
                format!("prlimit --pid $PID --{option}={soft}:{hard}")
            }
            Self::OomScoreAdjust { value, .. } => format!("echo {value} > /proc/$PID/oom_score_adj"),
            Self::MoveNetDevice { name, inside, namespace } => {
                let namespace =
                    namespace.as_ref().map_or("$PID".to_owned(), |path| path.display().to_string());
                format!("ip link set {name} netns {namespace} name {inside}")
            }
            Self::JoinCgroup => "echo $$ > CGROUP/cgroup.procs".to_owned(),
            Self::Unshare { namespaces } => format!("unshare {} sh", flags(*namespaces)),
            Self::JoinNamespace(join) => {
                format!("nsenter {}={} sh", flag(join.namespace), join.path.display())
            }
            Self::JoinContainer { namespaces } => format!("nsenter --target $PID {} sh", flags(*namespaces)),
            Self::TimeOffsets(offsets) => offsets
                .iter()
                .map(|(clock, secs, nanos)| {
                    format!("echo {clock} {secs} {nanos} > /proc/self/timens_offsets")
                })
                .collect::<Vec<_>>()
                .join("; "),
            Self::BecomeRoot { .. } => "setpriv --reuid 0 --regid 0 --clear-groups sh".to_owned(),
            Self::LoopbackUp => "ip link set lo up".to_owned(),
            Self::HostName(name) => format!("hostname {name}"),
            Self::DomainName(name) => format!("domainname {name}"),
            Self::Sysctl { name, value } => format!("sysctl -w {name}={value}"),
            Self::RootPropagation(change) | Self::FinalPropagation(change) => {
                format!("mount --make-{} /", propagation_name(*change))
            }
            Self::BindRoot { path, .. } => format!("mount --rbind {0} {0}; ROOT={0}", path.display()),
            Self::Mount(mount) => by_hand_mount(mount),
            Self::Freeze(path) => format!("mount -o remount,bind,ro $ROOT{}", path.display()),
            Self::Node(node) if node.bind => {
                format!("touch $ROOT{0}; mount --bind {0} $ROOT{0}", node.path.display())
            }
            Self::Node(node) => format!(
                "mknod -m {:04o} $ROOT{} {} {} {}",
                node.mode,
                node.path.display(),
                node.kind,
                node.major,
                node.minor
            ),
            Self::Link { target, path } => format!("ln -s {} $ROOT{}", target.display(), path.display()),
            Self::Mask(path) => format!("mount --bind /dev/null $ROOT{}", path.display()),
            Self::ReadOnly(path) => format!("mount --bind -o ro $ROOT{0} $ROOT{0}", path.display()),
            Self::PivotRoot => "cd $ROOT; pivot_root . .; umount -l .".to_owned(),
            Self::MoveRoot => "cd $ROOT; mount --move . /; chroot .".to_owned(),
            Self::ChangeRoot => "chroot $ROOT".to_owned(),
            Self::RootReadOnly => "mount -o remount,bind,ro /".to_owned(),
            Self::Keyring(name) => format!("keyctl session {name}"),
            Self::IoPriority { class, priority } => format!("ionice -c {class} -n {priority} -p $PID"),
            Self::Scheduler(attributes) => format!("chrt --pid $PID # policy {}", attributes.policy),
            Self::Affinity(cpus) => format!("taskset -pc {} $PID", list(cpus)),
            Self::Personality(persona) => format!("setarch # personality {persona:#x}"),
            Self::MemoryPolicy { nodes, .. } => format!("numactl --membind {}", list(nodes)),
            Self::Label { module, text } => format!("echo {text} > /proc/self/attr/{module}/exec"),
            Self::NoNewPrivileges => "setpriv --no-new-privs sh".to_owned(),
            Self::Bounding { keep, .. } => format!("setpriv --bounding-set -all,{} sh", names(*keep)),
            Self::Capabilities(sets) => {
                format!("setpriv --inh-caps -all --ambient-caps {} sh", names(sets.ambient))
            }
            Self::User { uid, gid, .. } => format!("setpriv --reuid {uid} --regid {gid} sh"),
            Self::WorkingDirectory(path) => format!("cd {}", path.display()),
            Self::FindProgram(name) => format!("command -v {name}"),
            Self::Execute(args) => format!("exec {}", args.join(" ")),
            Self::OpenSource { .. }
            | Self::Hooks { .. }
            | Self::OpenCgroup
            | Self::OpenRoot { .. }
            | Self::Terminal(_)
            | Self::AwaitHooks
            | Self::AwaitStart(_)
            | Self::Harden
            | Self::Seccomp(_)
            | Self::StayAsInit => String::new(),
        }
    }
}

fn by_hand_mount(mount: &MountStep) -> String {
    let bits = mount.attributes.set | mount.recursive.set;
    let mut options =
        moat_linux::mount::attributes_text(bits).to_lowercase().replace("rdonly", "ro").replace('|', ",");
    let to = mount.destination.display();
    match &mount.source {
        MountSource::Bind { path, recursive, .. } => {
            let how = if *recursive { "--rbind" } else { "--bind" };
            let change = if bits == 0 { String::new() } else { format!(" -o {options}") };
            format!("mount {how}{change} {} $ROOT{to}", path.display())
        }
        MountSource::New { kind, source, parameters, .. } => {
            if bits == 0 {
                options.clear();
            }
            for (key, value) in parameters {
                if !options.is_empty() {
                    options.push(',');
                }
                options.push_str(key);
                if !value.is_empty() {
                    options.push('=');
                    options.push_str(value);
                }
            }
            let options = if options.is_empty() { String::new() } else { format!(" -o {options}") };
            format!("mount -t {kind}{options} {source} $ROOT{to}")
        }
        MountSource::CgroupsV1 { hierarchies, .. } => {
            let one = |(name, path): &(String, std::path::PathBuf)| {
                format!("; mount --bind {} $ROOT{to}/{name}", path.display())
            };
            format!("mount -t tmpfs tmpfs $ROOT{to}{}", hierarchies.iter().map(one).collect::<String>())
        }
    }
}

/// The option of unshare(1) and nsenter(1) for one namespace.
fn flag(bit: u64) -> &'static str {
    match bit {
        namespace::USER => "--user",
        namespace::PID => "--pid",
        namespace::MOUNT => "--mount",
        namespace::UTS => "--uts",
        namespace::IPC => "--ipc",
        namespace::NETWORK => "--net",
        namespace::CGROUP => "--cgroup",
        _ => "--time",
    }
}

fn flags(bits: u64) -> String {
    (0..64).map(|shift| 1_u64 << shift).filter(|bit| bits & bit != 0).map(flag).collect::<Vec<_>>().join(" ")
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn names(set: moat_linux::capability::Set) -> String {
    set.names()
        .iter()
        .map(|name| name.trim_start_matches("CAP_").to_lowercase())
        .collect::<Vec<_>>()
        .join(",+")
}
