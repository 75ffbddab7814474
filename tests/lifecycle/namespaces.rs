//! Namespaces: joined by path, shared with the host, new ones with ids and clocks of their own.

use std::os::unix::fs::{MetadataExt, chown};

use moat_tests::{Bundle, Runtime};
use serde_json::{Value, json};

use crate::{namespace, sleeping};

/// Where the ids of the tests' user namespaces begin on the host.
const FIRST: u32 = 1_200_000;

/// A namespace of another container's in place of a new one.
fn join(bundle: &mut Bundle, kind: &str, pid: i32, file: &str) {
    bundle.retain_namespaces(|own| own != kind);
    bundle.push("/linux/namespaces", json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
}

fn mapping() -> Value {
    json!([{ "containerID": 0, "hostID": FIRST, "size": 65536 }])
}

/// A new user namespace, and a root file system that belongs to its root.
fn give_user_namespace(bundle: &mut Bundle) {
    bundle.set("/linux/uidMappings", mapping()).set("/linux/gidMappings", mapping());
    bundle.push("/linux/namespaces", json!({ "type": "user" }));
    bundle.set("/root/readonly", json!(false));
    for folder in ["", "tmp", "etc"] {
        chown(bundle.rootfs().join(folder), Some(FIRST), Some(FIRST)).unwrap();
    }
}

#[test]
fn those_of_another_container_are_joined() {
    let runtime = Runtime::new();
    let mut first = Bundle::new(&["sleep", "100001"]);
    first.set("/hostname", json!("first"));
    let first = runtime.start(&first);
    let mut second = sleeping();
    second.remove("/hostname");
    for (kind, file) in [("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts")] {
        join(&mut second, kind, first.pid(), file);
    }
    let second = runtime.start(&second);
    for file in ["net", "pid", "ipc", "uts"] {
        assert_eq!(namespace(second.pid(), file), namespace(first.pid(), file), "{file}");
    }
    for file in ["mnt", "cgroup"] {
        assert_ne!(namespace(second.pid(), file), namespace(first.pid(), file), "{file}");
    }
    assert_eq!(second.exec(&["hostname"]).success(), "first\n");
    let seen = second.shell("tr '\\0' ' ' < /proc/1/cmdline");
    assert_eq!(seen.success(), "sleep 100001 ");
    // What is deleted is the second alone.
    second.delete();
    assert_eq!(first.status(), "running");
    first.exec(&["true"]).success();
}

#[test]
fn each_kind_is_joined_alone() {
    let runtime = Runtime::new();
    let first = runtime.start(&sleeping());
    for (kind, file) in
        [("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")]
    {
        let mut bundle = sleeping();
        if kind == "uts" {
            bundle.remove("/hostname");
        }
        join(&mut bundle, kind, first.pid(), file);
        let second = runtime.start(&bundle);
        for other in ["net", "pid", "ipc", "uts", "cgroup"] {
            let same = namespace(second.pid(), other) == namespace(first.pid(), other);
            assert_eq!(same, other == file, "{kind}: {other}");
        }
        second.exec(&["true"]).success();
        second.delete();
    }
}

#[test]
fn the_end_of_the_owner_ends_who_joined_its_processes() {
    let runtime = Runtime::new();
    let first = runtime.start(&sleeping());
    let mut bundle = sleeping();
    join(&mut bundle, "pid", first.pid(), "pid");
    let second = runtime.start(&bundle);
    first.kill("KILL").success();
    second.wait();
    second.delete();
}

#[test]
fn what_is_left_out_is_shared_with_the_host() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.remove("/hostname").retain_namespaces(|kind| kind == "mount");
    let container = runtime.start(&bundle);
    let own = std::process::id().cast_signed();
    for file in ["net", "ipc", "uts", "cgroup", "pid", "user"] {
        assert_eq!(namespace(container.pid(), file), namespace(own, file), "{file}");
    }
    assert_ne!(namespace(container.pid(), "mnt"), namespace(own, "mnt"));
    // Its processes have the numbers of the host, so that nothing ends them but the runtime.
    assert_eq!(container.shell("readlink /proc/self/ns/pid").success().trim(), namespace(own, "pid"));
    container.exec_with(&["--detach"], &["sleep", "100002"]).success();
    container.delete();
}

#[test]
fn a_user_namespace_has_ids_of_its_own() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    give_user_namespace(&mut bundle);
    let all = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
    bundle.set("/process/capabilities", json!({ "bounding": all, "effective": all, "permitted": all }));
    let container = runtime.start(&bundle);
    assert_ne!(namespace(container.pid(), "user"), namespace(std::process::id().cast_signed(), "user"));
    let map = container.shell("cat /proc/self/uid_map");
    let words: Vec<&str> = map.success().split_whitespace().collect();
    assert_eq!(words, ["0", &FIRST.to_string(), "65536"]);
    assert_eq!(container.exec(&["id", "-u"]).success(), "0\n");
    container.shell("echo > /tmp/root; echo > /tmp/other; chown 7:8 /tmp/other").success();
    assert_eq!(container.exec(&["stat", "-c", "%u:%g", "/tmp/root", "/tmp/other"]).success(), "0:0\n7:8\n");
    let owner = |name: &str| {
        let found = std::fs::metadata(bundle.rootfs().join("tmp").join(name)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!((owner("root"), owner("other")), ((FIRST, FIRST), (FIRST + 7, FIRST + 8)));
    assert_eq!(container.exec_with(&["--user", "7:8"], &["id", "-u"]).success(), "7\n");
    // The process is the mapped user's for the host too.
    let status = std::fs::metadata(format!("/proc/{}", container.pid())).unwrap();
    assert_eq!(status.uid(), FIRST);
    assert!(container.shell("hostname other").code != 0);
}

/// Nobody may make nodes there: they are the host's, bound.
#[test]
fn a_user_namespace_gets_the_devices_of_the_host() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    give_user_namespace(&mut bundle);
    let container = runtime.start(&bundle);
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let bound = container.shell(&format!("grep -c ' /dev/{device} ' /proc/self/mountinfo"));
        assert_eq!(bound.success(), "1\n", "{device}");
    }
    container.shell("echo > /dev/null; head -c 8 /dev/urandom > /dev/null").success();
    container.delete();
}

#[test]
fn a_user_namespace_is_joined_with_what_belongs_to_it() {
    let runtime = Runtime::new();
    let mut first = sleeping();
    give_user_namespace(&mut first);
    let first = runtime.start(&first);
    let mut second = sleeping();
    give_user_namespace(&mut second);
    second.remove("/linux/uidMappings").remove("/linux/gidMappings");
    for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        join(&mut second, kind, first.pid(), file);
    }
    let second = runtime.start(&second);
    for file in ["user", "net", "ipc"] {
        assert_eq!(namespace(second.pid(), file), namespace(first.pid(), file), "{file}");
    }
    for file in ["pid", "mnt", "uts"] {
        assert_ne!(namespace(second.pid(), file), namespace(first.pid(), file), "{file}");
    }
    assert_eq!(second.shell("id -u; stat -c %u /tmp; echo > /dev/null").success(), "0\n0\n");
    second.delete();
}

fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_time_namespace_shifts_the_clocks() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.push("/linux/namespaces", json!({ "type": "time" }));
    let offset = json!({ "secs": 5_000_000, "nanosecs": 500_000_000 });
    bundle.set("/linux/timeOffsets", json!({ "boottime": offset, "monotonic": { "secs": 77 } }));
    let container = runtime.start(&bundle);
    let host = || uptime(&std::fs::read_to_string("/proc/uptime").unwrap());
    let (before, inside, after) = (host(), container.exec(&["cat", "/proc/uptime"]), host());
    let shifted = uptime(inside.success()) - 5_000_000.5;
    // The file has hundredths.
    assert!(before - 0.02 <= shifted && shifted <= after + 0.02, "{before} {shifted} {after}");
    let offsets = std::fs::read_to_string(format!("/proc/{}/timens_offsets", container.pid())).unwrap();
    let words: Vec<&str> = offsets.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "77", "0", "boottime", "5000000", "500000000"]);
    assert_ne!(namespace(container.pid(), "time"), namespace(std::process::id().cast_signed(), "time"));
    // Another one joins it.
    let mut second = sleeping();
    join(&mut second, "time", container.pid(), "time");
    let second = runtime.start(&second);
    assert!(uptime(second.exec(&["cat", "/proc/uptime"]).success()) > 5_000_000.0);
}
