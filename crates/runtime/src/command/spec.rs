//! `spec`: a configuration to start from, the one that runc writes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use moat_model::oci::{
    self, Capabilities, DeviceRule, IdMapping, Linux, Mount, Namespace, NamespaceKind, Process, Resources,
    Rlimit, Root, Spec, User,
};
use moat_sandbox::cgroup::Layout;
use moat_sandbox::{Context, Error, Result};
use serde::Serialize;

use super::Session;
use crate::cli::SpecArgs;

pub(crate) fn spec(session: &Session<'_>, args: &SpecArgs) -> Result<u8> {
    let host = session.host()?;
    let unified = matches!(host.cgroups, Layout::Unified(_));
    let mut spec = example(unified);
    if args.rootless {
        make_rootless(&mut spec, host.user, host.group);
    }
    write(&args.bundle.as_deref().unwrap_or(Path::new("")).join("config.json"), &spec)?;
    Ok(0)
}

/// A file that exists is somebody's work.
fn write(path: &Path, spec: &Spec) -> Result<()> {
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    spec.serialize(&mut serializer).map_err(|error| Error::new(error.to_string()))?;
    text.push(b'\n');
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(Error::new(format!("file {} exists: remove it first", path.display())))
        }
        opened => opened.and_then(|mut file| file.write_all(&text)).context(|| path.display().to_string()),
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn example(unified: bool) -> Spec {
    Spec {
        oci_version: oci::VERSION.to_owned(),
        process: Some(process()),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: "runc".to_owned(),
        mounts: mounts(),
        linux: Some(linux(unified)),
        ..Spec::default()
    }
}

fn process() -> Process {
    let capabilities = strings(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    Process {
        terminal: true,
        user: User::default(),
        args: strings(&["sh"]),
        env: strings(&["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"]),
        cwd: "/".into(),
        capabilities: Some(Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities.clone(),
            ambient: capabilities,
            inheritable: Vec::new(),
        }),
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
        no_new_privileges: true,
        ..Process::default()
    }
}

fn mounts() -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: Some(source.into()),
        options: strings(options),
        ..Mount::default()
    };
    let strict = ["nosuid", "noexec", "nodev"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &[&strict[..], &["mode=1777", "size=65536k"]].concat()),
        mount("/dev/mqueue", "mqueue", "mqueue", &strict),
        mount("/sys", "sysfs", "sysfs", &[&strict[..], &["ro"]].concat()),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[&strict[..], &["relatime", "ro"]].concat()),
    ]
}

fn linux(unified: bool) -> Linux {
    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let mut kinds = vec![Pid, Network, Ipc, Uts, Mount];
    // Beside v1 hierarchies a cgroup namespace hides less than it seems, and runc leaves it out.
    kinds.extend(unified.then_some(Cgroup));
    let nothing = DeviceRule { allow: false, access: "rwm".to_owned(), ..DeviceRule::default() };
    Linux {
        resources: Some(Resources { devices: vec![nothing], ..Resources::default() }),
        namespaces: kinds.into_iter().map(|kind| Namespace { kind, path: None }).collect(),
        masked_paths: strings(&[
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi",
        ]),
        readonly_paths: strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
        ..Linux::default()
    }
}

/// What an ordinary user can have: a user namespace with the own ids, the host's network, and no mounts
/// that need more.
fn make_rootless(spec: &mut Spec, user: u32, group: u32) {
    let Some(linux) = &mut spec.linux else { return };
    linux.namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
    linux.uid_mappings = vec![IdMapping { container_id: 0, host_id: user, size: 1 }];
    linux.gid_mappings = vec![IdMapping { container_id: 0, host_id: group, size: 1 }];
    linux.resources = None;
    for mount in &mut spec.mounts {
        // Only the own ids are mapped.
        mount.options.retain(|option| !option.starts_with("gid=") && !option.starts_with("uid="));
        if mount.destination == Path::new("/sys") {
            // A new sysfs needs a network namespace of one's own.
            mount.kind = "none".to_owned();
            mount.source = Some("/sys".into());
            mount.options = strings(&["rbind", "nosuid", "noexec", "nodev", "ro"]);
        }
    }
}
