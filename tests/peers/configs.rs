//! The OCI configuration that Moat makes of flags and an image, beside those that Docker and Podman make of the same.
//!
//! Every line in which two of them differ is explained below, or it is a mistake.

use std::collections::BTreeSet;

use moat_tests::Moat;
use serde_json::Value;

use super::docker::Docker;
use super::podman::Podman;

/// What each of them is asked for, beside `--network none` where nothing of a network is said.
const FLAGS: [(&str, &[&str]); 14] = [
    ("nothing", &[]),
    ("a read-only root", &["--read-only", "--tmpfs", "/run:size=64k", "--tmpfs", "/scratch"]),
    (
        "limits",
        &[
            "--memory",
            "64m",
            "--memory-swap",
            "128m",
            "--memory-reservation",
            "32m",
            "--cpus",
            "0.5",
            "--cpu-shares",
            "512",
            "--cpuset-cpus",
            "0",
            "--pids-limit",
            "50",
            "--oom-score-adj",
            "100",
        ],
    ),
    ("a user", &["--user", "web:26", "--group-add", "tape", "-w", "/tmp", "-e", "A=1", "-e", "B="]),
    ("a user's own groups", &["--user", "web"]),
    ("capabilities", &["--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "chown"]),
    ("no filter", &["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges"]),
    ("a device", &["--device", "/dev/null:/dev/xnull:rw", "--device-cgroup-rule", "c 10:200 rwm"]),
    ("resources", &["--ulimit", "nofile=512:1024", "--ulimit", "nproc=64", "--shm-size", "16m"]),
    ("parameters", &["--sysctl", "kernel.shm_rmid_forced=1", "--sysctl", "net.core.somaxconn=64"]),
    ("a name", &["--hostname", "elsewhere", "--label", "org.example.kind=other"]),
    ("the host's namespaces", &["--pid", "host", "--ipc", "host", "--uts", "host", "--network", "host"]),
    ("a terminal", &["--interactive", "--tty"]),
    ("mounts", &["-v", "/data", "--mount", "type=tmpfs,target=/t,tmpfs-size=1m", "-v", "FOLDER:/b:ro"]),
];

/// A line that one side has and the other has not; what follows these words is the same difference.
struct Difference {
    /// `moat`, or `other` for what Docker or Podman has.
    of: &'static str,
    begins: &'static str,
    #[expect(dead_code, reason = "it is written for the reader of this file")]
    why: &'static str,
}

const fn differs(of: &'static str, begins: &'static str, why: &'static str) -> Difference {
    Difference { of, begins, why }
}

/// Between Moat and both others.
const BOTH: &[Difference] = &[
    differs("moat", "linux.cgroupsPath", "each has a place of its own"),
    differs("other", "linux.cgroupsPath", "each has a place of its own"),
    differs("moat", "root.path", "each has a place of its own"),
    differs("other", "root.path", "each has a place of its own"),
    differs("moat", "ociVersion", "Moat's is the newest version of the specification"),
    differs("other", "ociVersion", "Moat's is the newest version of the specification"),
    differs("other", "rule deny c 10:229", "/dev/fuse is no default device of Moat's runtime either"),
    differs(
        "other",
        "rule",
        "Moat's sandbox adds the devices that each container has, as every runtime must",
    ),
    differs("moat", "rule deny a", "the same rule, which the others write without a type"),
    differs(
        "moat",
        "namespace cgroup",
        "its own groups only, on either version; the others do so on version 2",
    ),
    differs("moat", "env HOME=", "the others leave it to the runtime, which can look only once it is inside"),
    differs("moat", "linux.maskedPaths /proc/interrupts", "newer Docker masks it: when keys are pressed"),
    differs(
        "moat",
        "linux.maskedPaths /sys/devices/virtual/powercap",
        "newer Docker masks it: a side channel",
    ),
    differs("moat", "seccomp default errno", "the same number, EPERM, which the others imply"),
    differs(
        "moat",
        "seccomp allow socket",
        "a list of families; the others allow every one, and so vsock and the kernel's ciphers",
    ),
    differs(
        "other",
        "seccomp allow socket",
        "a list of families; the others allow every one, and so vsock and the kernel's ciphers",
    ),
    differs("other", "seccomp allow io_uring_", "has had too many holes; newer Docker forbids it as well"),
    differs("moat", "seccomp allow", "calls that are newer than these versions of the others"),
    differs("moat", "mount /b bind", "read-only with all below it, as newer Docker has it"),
    differs(
        "other",
        "mount /b bind",
        "not what is mounted below it; and Docker keeps its own folders propagated",
    ),
    differs(
        "moat",
        "mount /t tmpfs",
        "a size in bytes; nothing is propagated from a namespace of its own anyway",
    ),
    differs(
        "other",
        "mount /t tmpfs",
        "a size in bytes; nothing is propagated from a namespace of its own anyway",
    ),
    differs("moat", "mount /run tmpfs", "as above"),
    differs("other", "mount /run tmpfs", "as above"),
    differs("moat", "mount /scratch tmpfs", "as above"),
    differs("other", "mount /scratch tmpfs", "as above"),
    differs("moat", "mount /data bind", "the options that are implied"),
    differs("other", "mount /data bind", "the options that are implied"),
];

/// Between Moat and Docker.
const DOCKER: &[Difference] = &[
    differs("other", "linux.resources.blockIO.weight 0", "Docker writes down what was not asked for"),
    differs("other", "linux.resources.cpu.shares 0", "Docker writes down what was not asked for"),
    differs(
        "other",
        "process.oomScoreAdj 0",
        "dockerd may have another than its caller; Moat has its caller's",
    ),
    differs("moat", "mount /etc/", "read-only with all below it, which is nothing"),
    differs("other", "mount /etc/", "read-only with all below it, which is nothing"),
    differs("other", "hooks.prestart", "dockerd makes networks by a hook, Moat before the sandbox"),
    differs("moat", "mount /dev/shm bind", "the flags that a /dev/shm has, as Podman sets them"),
    differs("other", "mount /dev/shm bind", "the flags that a /dev/shm has, as Podman sets them"),
    differs("other", "namespace network", "Docker joins its own by path, Moat makes none"),
];

/// Between Moat and Podman.
const PODMAN: &[Difference] = &[
    differs("moat", "linux.maskedPaths /proc/asound", "Podman lets it be read"),
    differs("other", "linux.maskedPaths /sys/dev/block", "numbers of disks, which Docker shows"),
    differs("other", "linux.maskedPaths /sys/fs/selinux", "Docker shows it, for what asks whether it is on"),
    differs("moat", "seccomp errno clone3", "as Docker has it: the C library falls back to clone"),
    differs("moat", "process.user.additionalGids 0", "as newer Docker has it: root's own group"),
    differs("other", "annotations", "Podman's notes for itself"),
    differs("other", "process.user.umask", "0022, which is the runtime's default"),
    differs("other", "env container=", "Podman tells that it is Podman; Docker does not"),
    differs("other", "env TERM=", "Podman sets it without a terminal as well"),
    differs(
        "moat",
        "linux.sysctl.net.ipv4.ip_unprivileged_port_start",
        "as Docker has it: ports below 1024 are the workload's",
    ),
    differs("moat", "linux.sysctl.net.ipv4.ping_group_range", "as Docker has it: ping without a capability"),
    differs("other", "linux.resources.pids.limit", "Podman's default of 2048; Docker has none"),
    differs("other", "rlimit", "the defaults in the configuration of this test"),
    differs("other", "linux.readonlyPaths /proc/asound", "masked, so that nothing of it is seen"),
    differs("moat", "mount /dev tmpfs", "no noexec, as Docker has it"),
    differs("other", "mount /dev tmpfs", "no noexec, as Docker has it"),
    differs("moat", "mount /dev/shm", "made inside; Podman's comes from outside"),
    differs("other", "mount /dev/shm", "made inside; Podman's comes from outside"),
    differs("moat", "mount /sys/fs/cgroup", "as Docker has it"),
    differs("other", "mount /sys/fs/cgroup", "as Docker has it"),
    differs("moat", "mount /etc/", "the same files, from another folder"),
    differs("other", "mount /etc/", "the same files, from another folder"),
    differs("other", "mount /run/.containerenv", "Podman tells that it is Podman"),
    differs("other", "mount /tmp tmpfs", "Podman makes some folders of a read-only root writable"),
    differs("other", "mount /var/tmp tmpfs", "Podman makes some folders of a read-only root writable"),
    differs("other", "seccomp", "Podman's profile is its own; Moat's is Docker's"),
];

/// One line for each thing that a configuration says.
fn lines(config: &Value, id: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    walk("", config, &mut lines);
    lines.into_iter().map(|line| line.replace(id, "ID").replace(&id[..12], "ID")).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn sorted(value: &Value) -> String {
    let words: BTreeSet<String> = value.as_array().into_iter().flatten().map(text).collect();
    words.into_iter().collect::<Vec<_>>().join(" ")
}

fn walk(key: &str, value: &Value, lines: &mut BTreeSet<String>) {
    let list = || value.as_array().into_iter().flatten();
    match key {
        "mounts" => lines.extend(list().map(|mount| {
            format!(
                "mount {} {} {}",
                text(&mount["destination"]),
                text(&mount["type"]),
                sorted(&mount["options"])
            )
        })),
        "process.env" => lines.extend(list().map(|entry| format!("env {}", text(entry)))),
        "linux.namespaces" => lines.extend(list().map(|one| {
            let how = if one["path"].is_string() { "joined" } else { "new" };
            format!("namespace {} {how}", text(&one["type"]))
        })),
        "linux.devices" => lines.extend(list().map(|one| {
            // Podman adds the kind of the file to its mode.
            let mode = one["fileMode"].as_u64().unwrap() & 0o7777;
            format!(
                "device {} {} {}:{} {mode:o}",
                text(&one["path"]),
                text(&one["type"]),
                one["major"],
                one["minor"]
            )
        })),
        "linux.resources.devices" => lines.extend(list().map(rule)),
        "process.rlimits" => lines.extend(
            list().map(|one| format!("rlimit {} {}:{}", text(&one["type"]), one["soft"], one["hard"])),
        ),
        "linux.seccomp" => filter(value, lines),
        "linux.maskedPaths" | "linux.readonlyPaths" => {
            lines.extend(list().map(|path| format!("{key} {}", text(path))));
        }
        _ => match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                let dot = if key.is_empty() { "" } else { "." };
                walk(&format!("{key}{dot}{name}"), value, lines);
            }),
            // Their order says something, and nothing else is a list.
            Value::Array(items) if key == "process.args" => {
                lines.insert(format!("{key} {}", items.iter().map(text).collect::<Vec<_>>().join(" ")));
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(_) => drop(lines.insert(format!("{key} {}", sorted(value)))),
            Value::Null | Value::Bool(false) => {}
            Value::String(text) if text.is_empty() => {}
            other => drop(lines.insert(format!("{key} {}", text(other)))),
        },
    }
}

fn rule(rule: &Value) -> String {
    let allow = if rule["allow"] == true { "allow" } else { "deny" };
    let number = |name: &str| rule[name].as_i64().map_or("*".to_owned(), |number| number.to_string());
    let kind = rule["type"].as_str().unwrap_or("-");
    format!("rule {allow} {kind} {}:{} {}", number("major"), number("minor"), text(&rule["access"]))
}

fn filter(filter: &Value, lines: &mut BTreeSet<String>) {
    lines.insert(format!("seccomp default {}", text(&filter["defaultAction"])));
    if let Some(number) = filter["defaultErrnoRet"].as_u64() {
        lines.insert(format!("seccomp default errno {number}"));
    }
    lines.insert(format!("seccomp architectures {}", sorted(&filter["architectures"])));
    for rule in filter["syscalls"].as_array().into_iter().flatten() {
        let action = text(&rule["action"]).trim_start_matches("SCMP_ACT_").to_lowercase();
        let mut conditions = String::new();
        for arg in rule["args"].as_array().into_iter().flatten() {
            let second = arg["valueTwo"].as_u64().unwrap_or(0);
            conditions += &format!(" {} {} {} {second}", arg["index"], text(&arg["op"]), arg["value"]);
        }
        let number = rule["errnoRet"].as_u64().map(|number| format!(" {number}")).unwrap_or_default();
        for name in rule["names"].as_array().unwrap() {
            lines.insert(format!("seccomp {action} {}{number}{conditions}", text(name)));
        }
    }
}

/// Notes which of `known` explains each difference, and what none of them does.
fn compare(
    what: &str,
    moat: &BTreeSet<String>,
    other: &BTreeSet<String>,
    known: &[&Difference],
    used: &mut BTreeSet<usize>,
) -> Vec<String> {
    let of_moat = moat.difference(other).map(|line| ("moat", line));
    let mut unknown = Vec::new();
    for (of, line) in of_moat.chain(other.difference(moat).map(|line| ("other", line))) {
        match known.iter().position(|known| known.of == of && line.starts_with(known.begins)) {
            Some(index) => drop(used.insert(index)),
            None => unknown.push(format!("{what}: only {of}: {line}")),
        }
    }
    unknown
}

/// The flags of one line, with a network where they name none, and a folder that exists.
fn flags(given: &[&str], folder: &str) -> Vec<String> {
    let mut flags: Vec<String> = given.iter().map(|flag| flag.replace("FOLDER", folder)).collect();
    if !given.contains(&"--network") {
        flags.extend(["--network".to_owned(), "none".to_owned()]);
    }
    flags
}

fn moats(moat: &Moat, given: &[String]) -> BTreeSet<String> {
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let line = [&["run", "-d", "--name", "one"], &given[..], &["busybox", "sleep", "1000"]].concat();
    let id = moat.call(&line).success().trim().to_owned();
    let state = std::fs::read(moat.root().join("run/runtime").join(&id).join("state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    moat.call(&["rm", "--force", "--volumes", "one"]).success();
    lines(&state["config"], &id)
}

/// Compares with a peer; `make` gives its configuration for flags, and its identifier.
fn compare_all(own: &[Difference], make: impl Fn(&Moat, &[String]) -> (Value, String)) {
    let moat = Moat::new();
    let folder = tempfile::tempdir().unwrap();
    let known: Vec<&Difference> = BOTH.iter().chain(own).collect();
    let (mut used, mut unknown) = (BTreeSet::new(), Vec::new());
    for (what, given) in FLAGS {
        let given = flags(given, folder.path().to_str().unwrap());
        let (config, id) = make(&moat, &given);
        unknown.extend(compare(what, &moats(&moat, &given), &lines(&config, &id), &known, &mut used));
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    let stale = (BOTH.len()..known.len()).filter(|index| !used.contains(index));
    let stale: Vec<_> = stale.map(|index| (known[index].of, known[index].begins)).collect();
    assert!(stale.is_empty(), "explained, and not there: {stale:?}");
}

#[test]
fn beside_docker() {
    let docker = Docker::new();
    let imported = std::cell::Cell::new(false);
    compare_all(DOCKER, |moat, given| {
        if !imported.replace(true) {
            docker.import(&moat.path("busybox"));
        }
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let line = [&["run", "-d", "--name", "one"], &given[..], &["box", "sleep", "1000"]].concat();
        let id = docker.call(&line).success().trim().to_owned();
        let config = serde_json::from_slice(&std::fs::read(docker.config(&id)).unwrap()).unwrap();
        docker.call(&["rm", "--force", "--volumes", "one"]).success();
        (config, id)
    });
}

#[test]
fn beside_podman() {
    let podman = Podman::of(&Moat::new().path("busybox"));
    compare_all(PODMAN, |_, given| {
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let parent = format!("--cgroup-parent=/{}", podman.place.mark);
        let line = [&["create", "--name", "one", &parent], &given[..], &["box", "sleep", "1000"]].concat();
        let id = podman.call(&line).success().trim().to_owned();
        podman.call(&["init", "one"]).success();
        let path = format!("root/vfs-containers/{id}/userdata/config.json");
        let config = serde_json::from_slice(&std::fs::read(podman.place.path(&path)).unwrap()).unwrap();
        podman.call(&["rm", "--force", "--volumes", "one"]).success();
        (config, id)
    });
}
