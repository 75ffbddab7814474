//! The whole outcome as text: what a plain workload gets, what each wish changes, and what is refused.

use std::path::Path;

use moat_linux::capability::{NAMES, Set};
use moat_model::oci::{Device, IdMapping, Spec};
use moat_model::workload::*;
use moat_sandbox::cgroup::{Hierarchy, Layout, Unified};
use moat_sandbox::host::Host;
use serde_json::Value;

use super::devices::ReadyDevice;
use super::*;
use crate::user::Identity;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) fn facts() -> HostFacts {
    let unified = Unified {
        mount: "/sys/fs/cgroup".into(),
        root: "/".to_owned(),
        own: "/".to_owned(),
        controllers: ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).to_vec(),
        writable: true,
    };
    HostFacts {
        sandbox: Host {
            user: 0,
            group: 0,
            in_user_namespace: false,
            groups_denied: false,
            cgroups: Layout::Unified(unified),
            bounding: Set((1 << NAMES.len()) - 1),
            apparmor: false,
            selinux: false,
        },
        architecture: "SCMP_ARCH_X86_64".to_owned(),
        kernel: (6, 18),
        host_name: "stronghold".to_owned(),
        swap_limit: true,
        terminal_group: true,
        processors: 2,
    }
}

fn legacy() -> Layout {
    let memory = Hierarchy {
        mount: "/sys/fs/cgroup/memory".into(),
        root: "/".to_owned(),
        own: "/".to_owned(),
        controllers: ["cpu", "memory", "devices"].map(str::to_owned).to_vec(),
        name: None,
        writable: true,
    };
    Layout::Legacy { hierarchies: vec![memory], unified: None }
}

/// Everything that a configuration is made of, to be changed by a test.
struct Case {
    spec: WorkloadSpec,
    image: RunConfig,
    host: HostFacts,
    identity: Identity,
    mounts: Vec<ReadyMount>,
    devices: Vec<ReadyDevice>,
    blocks: BlockDevices,
    maps: Option<IdMaps>,
    paths: NamespacePaths,
}

impl Case {
    fn new() -> Self {
        Self {
            spec: WorkloadSpec { image: "debian".to_owned(), ..WorkloadSpec::default() },
            image: RunConfig { cmd: Some(vec!["bash".to_owned()]), ..RunConfig::default() },
            host: facts(),
            identity: Identity { uid: 0, gid: 0, groups: vec![0], home: "/root".to_owned() },
            mounts: Vec::new(),
            devices: Vec::new(),
            blocks: BlockDevices::new(),
            maps: None,
            paths: NamespacePaths::default(),
        }
    }

    fn config(&self) -> Result<Spec> {
        config(&Inputs {
            id: ID,
            spec: &self.spec,
            image: &self.image,
            host: &self.host,
            identity: &self.identity,
            root: Path::new("merged"),
            mounts: &self.mounts,
            devices: &self.devices,
            block_devices: &self.blocks,
            id_maps: self.maps.as_ref(),
            namespaces: &self.paths,
        })
    }

    /// As JSON, the filter cut down to its size.
    fn json(&self) -> Value {
        let mut json = serde_json::to_value(self.config().unwrap()).unwrap();
        if let Some(rules) = json.pointer_mut("/linux/seccomp/syscalls") {
            *rules = Value::from(format!("{} rules", rules.as_array().unwrap().len()));
        }
        json
    }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_plain_workload() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&Case::new().json()).unwrap());
}

/// The lines of JSON pointers that differ, so that a snapshot shows what a wish changes and nothing else.
fn changes(before: &Value, after: &Value, path: &str, text: &mut String) {
    use std::fmt::Write;
    match (before, after) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                let part =
                    |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                changes(&part(one), &part(other), &format!("{path}/{key}"), text);
            }
        }
        (one, other) if one == other => {}
        (Value::Array(one), Value::Array(other)) => {
            for gone in one.iter().filter(|item| !other.contains(item)) {
                writeln!(text, "  - {path} {gone}").unwrap();
            }
            for new in other.iter().filter(|item| !one.contains(item)) {
                writeln!(text, "  + {path} {new}").unwrap();
            }
            if one.iter().all(|item| other.contains(item)) && one.len() == other.len() {
                writeln!(text, "  ~ {path} {after}").unwrap();
            }
        }
        (_, Value::Null) => writeln!(text, "  - {path} {before}").unwrap(),
        (Value::Null, _) => writeln!(text, "  + {path} {after}").unwrap(),
        _ => writeln!(text, "  - {path} {before}\n  + {path} {after}").unwrap(),
    }
}

type Wish = (&'static str, fn(&mut Case));

#[rustfmt::skip]
const WISHES: &[Wish] = &[
    ("-t", |case| case.spec.tty = true),
    ("command", |case| case.spec.command = strings(&["ls", "-l"])),
    ("--entrypoint and command", |case| {
        case.spec.entrypoint = Some(strings(&["/bin/cat"]));
        case.spec.command = strings(&["/etc/issue"]);
    }),
    ("image with an entrypoint", |case| case.image.entrypoint = Some(strings(&["/init"]))),
    ("-e, and an image with variables", |case| {
        case.image.env = strings(&["PATH=/bin", "LANG=C", "GONE=1", "HOME=/srv"]);
        case.spec.env = strings(&["LANG=de", "GONE", "NEW=a=b"]);
    }),
    ("-w relative", |case| case.spec.workdir = Some("srv/x".to_owned())),
    ("an image's working directory", |case| case.image.working_dir = "/app".to_owned()),
    ("-u", |case| case.identity = Identity { uid: 7, gid: 8, groups: vec![8, 100], home: "/home/u".to_owned() }),
    ("--cap-add NET_ADMIN --cap-drop MKNOD", |case| {
        case.spec.cap_add = strings(&["NET_ADMIN"]);
        case.spec.cap_drop = strings(&["CAP_MKNOD"]);
    }),
    ("--privileged", |case| {
        case.spec.privileged = true;
        case.devices = vec![device("/dev/kmsg", 1, 11, "rwm")];
    }),
    ("--device", |case| case.devices = vec![device("/dev/fuse", 10, 229, "rw")]),
    ("--device-cgroup-rule", |case| case.spec.device_cgroup_rules = strings(&["c 42:* rwm"])),
    ("--security-opt no-new-privileges, seccomp=unconfined, systempaths=unconfined", |case| {
        case.spec.security.no_new_privileges = true;
        case.spec.security.seccomp = SeccompChoice::Unconfined;
        case.spec.security.unmask_paths = true;
    }),
    ("SELinux with label=type:x", |case| {
        case.host.sandbox.selinux = true;
        case.spec.security.label = strings(&["type:x_t"]);
    }),
    ("--security-opt apparmor on a host that has it", |case| {
        case.host.sandbox.apparmor = true;
        case.spec.security.apparmor = Some("strict".to_owned());
    }),
    ("--read-only", |case| case.spec.read_only = true),
    ("--userns 0:100000:65536", |case| case.maps = user_namespace(Some("0:100000:65536"), None).unwrap()),
    ("--userns of one id, --network host, --pid host, --ipc host", |case| {
        let one = IdMapping { container_id: 0, host_id: 5, size: 1 };
        case.maps = Some(IdMaps { uids: vec![one], gids: vec![one] });
        case.spec.network.mode = NetworkMode::Host;
        case.spec.pid = NamespaceMode::Host;
        case.spec.ipc = NamespaceMode::Host;
    }),
    ("--pid host", |case| case.spec.pid = NamespaceMode::Host),
    ("--ipc host", |case| case.spec.ipc = NamespaceMode::Host),
    ("--uts host", |case| case.spec.uts = NamespaceMode::Host),
    ("--network host", |case| case.spec.network.mode = NetworkMode::Host),
    ("--network none", |case| case.spec.network.mode = NetworkMode::None),
    ("--cgroupns host", |case| case.spec.cgroupns = NamespaceMode::Host),
    ("--pid, --ipc, --uts, --network container:", |case| {
        let other = || NamespaceMode::Container("web".to_owned());
        (case.spec.pid, case.spec.ipc, case.spec.uts) = (other(), other(), other());
        case.spec.network.mode = NetworkMode::Container("web".to_owned());
        let path = |kind: &str| Some(format!("/proc/7/ns/{kind}").into());
        case.paths = NamespacePaths {
            pid: path("pid"), ipc: path("ipc"), uts: path("uts"), network: path("net"), user: None,
            shm: Some("/proc/self/fd/9".into()),
        };
    }),
    ("--hostname, --domainname", |case| {
        case.spec.hostname = Some("web".to_owned());
        case.spec.domainname = Some("example.org".to_owned());
    }),
    ("--sysctl", |case| {
        case.spec.sysctls.insert("net.core.somaxconn".to_owned(), "64".to_owned());
        case.spec.sysctls.insert("kernel.shmmax".to_owned(), "4096".to_owned());
    }),
    ("--cgroup-parent", |case| case.spec.cgroup_parent = Some("/batch".to_owned())),
    ("--shm-size", |case| case.spec.shm_bytes = Some(1 << 20)),
    ("--annotation", |case| { case.spec.annotations.insert("a".to_owned(), "b".to_owned()); }),
    ("-m", |case| case.spec.limits.memory_bytes = Some(64 << 20)),
    ("-m without a count of swap", |case| {
        case.host.swap_limit = false;
        case.spec.limits.memory_bytes = Some(64 << 20);
    }),
    ("-m, --memory-swap -1, --memory-reservation", |case| {
        case.spec.limits.memory_bytes = Some(64 << 20);
        case.spec.limits.memory_swap_bytes = Some(-1);
        case.spec.limits.memory_reservation_bytes = Some(32 << 20);
    }),
    ("--oom-kill-disable, --memory-swappiness on cgroup v1", |case| {
        case.host.sandbox.cgroups = legacy();
        case.spec.limits.oom_kill_disable = true;
        case.spec.limits.memory_swappiness = Some(0);
    }),
    ("--cpus", |case| case.spec.limits.nano_cpus = Some(1_500_000_000)),
    ("--cpu-shares, --cpuset-cpus, --cpuset-mems", |case| {
        case.spec.limits.cpu_shares = Some(512);
        case.spec.limits.cpuset_cpus = Some("0-1".to_owned());
        case.spec.limits.cpuset_mems = Some("0".to_owned());
    }),
    ("--cpu-period, --cpu-quota", |case| {
        case.spec.limits.cpu_period_us = Some(50_000);
        case.spec.limits.cpu_quota_us = Some(25_000);
    }),
    ("--cpu-rt-period, --cpu-rt-runtime", |case| {
        case.host.sandbox.cgroups = legacy();
        case.spec.limits.cpu_rt_period_us = Some(1_000_000);
        case.spec.limits.cpu_rt_runtime_us = Some(95_000);
    }),
    ("--pids-limit 100", |case| case.spec.limits.pids = Some(100)),
    ("--pids-limit 0", |case| case.spec.limits.pids = Some(0)),
    ("--blkio-weight and devices", |case| {
        let limit = |value| vec![DeviceLimit { path: "/dev/vda".to_owned(), value }];
        case.blocks.insert("/dev/vda".to_owned(), (254, 0));
        case.spec.limits.blkio_weight = Some(300);
        case.spec.limits.blkio_weight_device = limit(200);
        case.spec.limits.device_read_bps = limit(1);
        case.spec.limits.device_write_bps = limit(2);
        case.spec.limits.device_read_iops = limit(3);
        case.spec.limits.device_write_iops = limit(4);
    }),
    ("--ulimit, --oom-score-adj", |case| {
        case.spec.limits.ulimits = vec![UlimitSpec { name: "nofile".to_owned(), soft: 5, hard: u64::MAX }];
        case.spec.limits.oom_score_adj = Some(500);
    }),
    ("mounts", |case| case.mounts = vec![
        bind("/a/b/c", "/srv/c", false), bind("/a", "/srv/a", true),
        ReadyMount { target: "/run".to_owned(), source: Source::Tmpfs(strings(&["noexec"])), read_only: true, idmap: None },
    ]),
    ("a shared mount", |case| {
        let source = Source::Bind { source: "/srv".into(), recursive: false, propagation: "rshared".to_owned() };
        case.mounts = vec![ReadyMount { target: "/a".to_owned(), source, read_only: true, idmap: None }];
    }),
    ("a mount over /dev", |case| case.mounts = vec![bind("/dev/", "/srv/dev", false)]),
    ("a mount over /dev/shm", |case| case.mounts = vec![bind("/dev/shm", "/srv", false)]),
    ("an idmapped mount in a user namespace", |case| {
        case.maps = user_namespace(Some("0:1000:10"), None).unwrap();
        let mut mount = bind("/data", "/srv", false);
        mount.idmap = Some(IdMaps::default());
        case.mounts = vec![mount];
    }),
    ("an engine in a user namespace", |case| case.host.sandbox.in_user_namespace = true),
];

fn device(path: &str, major: i64, minor: i64, access: &str) -> ReadyDevice {
    let node = Device {
        path: path.into(),
        kind: "c".to_owned(),
        major,
        minor,
        file_mode: Some(0o600),
        uid: Some(0),
        gid: Some(0),
    };
    ReadyDevice { node, access: access.to_owned() }
}

fn bind(target: &str, source: &str, read_only: bool) -> ReadyMount {
    let source = Source::Bind { source: source.into(), recursive: true, propagation: "rprivate".to_owned() };
    ReadyMount { target: target.to_owned(), source, read_only, idmap: None }
}

#[test]
fn what_each_wish_changes() {
    let plain = Case::new().json();
    let mut text = String::new();
    for (name, wish) in WISHES {
        let mut case = Case::new();
        wish(&mut case);
        let before = text.len();
        changes(&plain, &case.json(), "", &mut text);
        assert!(
            text.len() > before || name.contains("without") || *name == "--network none",
            "{name} changes nothing"
        );
        text.insert_str(before, &format!("{name}\n"));
    }
    insta::assert_snapshot!(text);
}

#[rustfmt::skip]
const REFUSED: &[Wish] = &[
    ("no command", |case| case.image.cmd = None),
    ("an entrypoint takes the image's command away", |case| case.spec.entrypoint = Some(strings(&[""]))),
    ("--init --pid host", |case| { case.spec.init = true; case.spec.pid = NamespaceMode::Host; }),
    ("--hostname --uts host", |case| {
        case.spec.hostname = Some("a".to_owned());
        case.spec.uts = NamespaceMode::Host;
    }),
    ("--cgroupns container", |case| case.spec.cgroupns = NamespaceMode::Container("x".to_owned())),
    ("--shm-size --ipc host", |case| { case.spec.shm_bytes = Some(1); case.spec.ipc = NamespaceMode::Host; }),
    ("--cgroup-parent", |case| case.spec.cgroup_parent = Some("/a/../b".to_owned())),
    ("-e", |case| case.spec.env = strings(&["=x"])),
    ("--oom-score-adj", |case| case.spec.limits.oom_score_adj = Some(1001)),
    ("--memory", |case| case.spec.limits.memory_bytes = Some(1 << 20)),
    ("--memory-swap", |case| case.spec.limits.memory_swap_bytes = Some(1 << 20)),
    ("--memory-swap below", |case| {
        case.spec.limits.memory_bytes = Some(8 << 20);
        case.spec.limits.memory_swap_bytes = Some(7 << 20);
    }),
    ("--memory-swap that can not be", |case| {
        case.host.swap_limit = false;
        case.spec.limits.memory_swap_bytes = Some(-1);
    }),
    ("--memory-reservation", |case| {
        case.spec.limits.memory_bytes = Some(8 << 20);
        case.spec.limits.memory_reservation_bytes = Some(9 << 20);
    }),
    ("--memory-swappiness", |case| case.spec.limits.memory_swappiness = Some(10)),
    ("--oom-kill-disable", |case| case.spec.limits.oom_kill_disable = true),
    ("--cpus too many", |case| case.spec.limits.nano_cpus = Some(3_000_000_000)),
    ("--cpus too few", |case| case.spec.limits.nano_cpus = Some(1_000_000)),
    ("--cpus with a quota", |case| {
        case.spec.limits.nano_cpus = Some(1_000_000_000);
        case.spec.limits.cpu_quota_us = Some(1000);
    }),
    ("--cpu-period", |case| case.spec.limits.cpu_period_us = Some(10)),
    ("--cpu-quota", |case| case.spec.limits.cpu_quota_us = Some(10)),
    ("--cpu-rt-runtime", |case| case.spec.limits.cpu_rt_runtime_us = Some(1000)),
    ("--cpuset-cpus", |case| case.spec.limits.cpuset_cpus = Some("1-0".to_owned())),
    ("--cpuset-mems", |case| case.spec.limits.cpuset_mems = Some("a".to_owned())),
    ("--blkio-weight", |case| case.spec.limits.blkio_weight = Some(5)),
    ("--device-read-bps", |case| {
        case.spec.limits.device_read_bps = vec![DeviceLimit { path: "/dev/null".to_owned(), value: 1 }];
    }),
    ("--ulimit", |case| {
        case.spec.limits.ulimits = vec![UlimitSpec { name: "files".to_owned(), soft: 1, hard: 1 }];
    }),
    ("--ulimit upside down", |case| {
        case.spec.limits.ulimits = vec![UlimitSpec { name: "core".to_owned(), soft: 2, hard: 1 }];
    }),
    ("--sysctl of the host", |case| { case.spec.sysctls.insert("vm.swappiness".to_owned(), "1".to_owned()); }),
    ("--sysctl of the name", |case| { case.spec.sysctls.insert("kernel/hostname".to_owned(), "x".to_owned()); }),
    ("--sysctl of a shared network", |case| {
        case.spec.network.mode = NetworkMode::Host;
        case.spec.sysctls.insert("net.core.somaxconn".to_owned(), "1".to_owned());
    }),
    ("--sysctl of a shared IPC", |case| {
        case.spec.ipc = NamespaceMode::Host;
        case.spec.sysctls.insert("fs.mqueue.msg_max".to_owned(), "1".to_owned());
    }),
    ("--device-cgroup-rule", |case| case.spec.device_cgroup_rules = strings(&["c 1 r"])),
    ("--security-opt apparmor", |case| case.spec.security.apparmor = Some("p".to_owned())),
    ("--security-opt label", |case| case.spec.security.label = strings(&["type:x"])),
    ("--security-opt label, unknown", |case| case.spec.security.label = strings(&["color:red"])),
    ("--security-opt seccomp", |case| {
        case.spec.security.seccomp = SeccompChoice::Profile("{\"defaultAction\": 5}".to_owned());
    }),
    ("--security-opt seccomp, action", |case| {
        case.spec.security.seccomp = SeccompChoice::Profile("{\"defaultAction\": \"SCMP_ACT_DANCE\"}".to_owned());
    }),
    ("-v to /", |case| case.mounts = vec![bind("/", "/srv", false)]),
    ("-v to a relative path", |case| case.mounts = vec![bind("a", "/srv", false)]),
    ("-v with ..", |case| case.mounts = vec![bind("/a/../b", "/srv", false)]),
    ("-v twice", |case| case.mounts = vec![bind("/a", "/srv", false), bind("/a/", "/srv", false)]),
    ("idmap without a user namespace", |case| {
        let mut mount = bind("/data", "/srv", false);
        mount.idmap = Some(IdMaps::default());
        case.mounts = vec![mount];
    }),
];

#[test]
fn what_is_refused() {
    let mut text = String::new();
    for (name, wish) in REFUSED {
        let mut case = Case::new();
        wish(&mut case);
        let error = case.config().expect_err(name);
        text.push_str(&format!("{name}\n  {error}\n"));
        if let Some(hint) = error.hint_text() {
            text.push_str(&format!("  hint: {hint}\n"));
        }
    }
    insta::assert_snapshot!(text);
}

/// CVE-2025-24965: what an image says about itself must not reach the configuration, but for what its own program
/// starts with.
#[test]
fn labels_of_an_image_set_nothing() {
    let plain = Case::new().config().unwrap();
    let mut case = Case::new();
    for key in [
        "run.oci.keep_original_groups",
        "run.oci.hooks.stdout",
        "io.katacontainers.config.hypervisor.path",
        "org.criu.config",
        "module.wasm.image/variant",
        "io.podman.annotations.privileged",
        "maintainer",
    ] {
        case.image.labels.insert(key.to_owned(), "/tmp/evil".to_owned());
    }
    case.image.exposed_ports.insert("1/tcp".to_owned());
    case.image.on_build = Some(strings(&["RUN evil"]));
    assert_eq!(case.config().unwrap(), plain);
}

/// Every configuration that is made is one that the sandbox takes.
#[test]
fn the_sandbox_takes_them() {
    let id = moat_model::id::ContainerId::new(ID).unwrap();
    for (name, wish) in WISHES {
        let mut case = Case::new();
        wish(&mut case);
        let spec = case.config().unwrap();
        let request = moat_sandbox::plan::Request {
            id: &id,
            bundle: Path::new("/bundle"),
            spec: &spec,
            no_pivot: false,
            no_new_keyring: false,
            init: case.spec.init,
            wait_for_start: false,
        };
        if let Err(error) = moat_sandbox::plan::plan(&request, &case.host.sandbox) {
            panic!("{name}: {error}");
        }
    }
}

mod exec {
    use super::*;

    fn exec(wish: ExecWish, image_env: &[&str], identity: Option<&Identity>) -> oci::Process {
        let mut case = Case::new();
        case.image.env = strings(image_env);
        let first = case.config().unwrap().process.unwrap();
        let wish = ExecWish { command: strings(&["id"]), ..wish };
        exec_process(&wish, &first, (&case.spec, &case.image), &case.host, identity).unwrap()
    }

    #[test]
    fn as_the_workload_unless_told() {
        let process = exec(ExecWish::default(), &[], None);
        assert!(process.env.contains(&"HOME=/root".to_owned()));
        assert!(!process.terminal);
        assert_eq!(process.user.uid, 0);
    }

    #[test]
    fn another_user_is_at_home_elsewhere() {
        let other = || Identity { uid: 5, gid: 5, groups: vec![5], home: "/home/five".to_owned() };
        let wish = ExecWish { tty: true, env: strings(&["A=1", "HOSTNAME"]), ..ExecWish::default() };
        let process = exec(wish, &[], Some(&other()));
        assert_eq!(process.user.uid, 5);
        for wanted in ["HOME=/home/five", "TERM=xterm", "A=1"] {
            assert!(process.env.contains(&wanted.to_owned()), "{wanted}: {:?}", process.env);
        }
        assert!(!process.env.iter().any(|entry| entry.starts_with("HOSTNAME")));
        let process = exec(ExecWish::default(), &["HOME=/image"], Some(&other()));
        assert!(process.env.contains(&"HOME=/image".to_owned()));
    }

    #[test]
    fn privileged_gets_all() {
        let wish = ExecWish { privileged: true, workdir: Some("/tmp".to_owned()), ..ExecWish::default() };
        let process = exec(wish, &[], None);
        assert_eq!(process.capabilities.unwrap().effective.len(), NAMES.len());
        assert_eq!(process.cwd, Path::new("/tmp"));
    }
}
