//! What is no configuration, or one that can not be had.

use moat_tests::Bundle;
use serde_json::{Value, json};

use super::Sentences;

fn write(bundle: &Bundle, text: &str) {
    std::fs::write(bundle.path().join("config.json"), text).unwrap();
}

#[test]
fn json() {
    let mut said = Sentences::new();
    said.spoilt("no config.json", |bundle| {
        std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    });
    said.spoilt("a folder", |bundle| {
        std::fs::remove_file(bundle.path().join("config.json")).unwrap();
        std::fs::create_dir(bundle.path().join("config.json")).unwrap();
    });
    said.spoilt("empty", |bundle| write(bundle, ""));
    said.spoilt("cut off", |bundle| write(bundle, "{\n  \"ociVersion\": \"1.2.0\",\n  \"process\": {"));
    said.spoilt("no JSON", |bundle| write(bundle, "{\n  \"ociVersion\": 1.2.0\n}"));
    said.spoilt("more after it", |bundle| write(bundle, "{\"ociVersion\": \"1.2.0\"}\n}"));
    said.spoilt("no object", |bundle| write(bundle, "[]"));
    said.spoilt("not UTF-8", |bundle| {
        std::fs::write(bundle.path().join("config.json"), b"{\"ociVersion\": \"\xff\"}").unwrap();
    });
    said.hold("json");
}

#[test]
fn types() {
    let mut said = Sentences::new();
    let cases: [(&str, Value); 9] = [
        ("/process/args", json!("sh")),
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!(4_294_967_296_u64)),
        ("/process/user/uid", json!("root")),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": -1, "hard": 1 }])),
        ("/process/terminal", json!("yes")),
        ("/linux/namespaces", json!([{ "type": "planet" }])),
        ("/linux/resources/memory/limit", json!("100M")),
        ("/mounts", json!([{ "type": "tmpfs" }])),
    ];
    for (pointer, value) in cases {
        said.spoilt(&format!("{pointer} {value}"), |bundle| {
            let pretty = serde_json::to_string_pretty(bundle.set(pointer, value).config()).unwrap();
            write(bundle, &pretty);
        });
    }
    said.hold("types");
}

#[test]
fn missing() {
    let mut said = Sentences::new();
    let pointers =
        ["/ociVersion", "/root", "/root/path", "/process", "/process/args", "/process/cwd", "/linux"];
    for pointer in pointers {
        said.spoilt(&format!("without {pointer}"), |bundle| {
            bundle.remove(pointer);
        });
    }
    said.hold("missing");
}

#[test]
fn values() {
    let mut said = Sentences::new();
    let mapping = json!([{ "containerID": 0, "hostID": 4_294_967_000_u32, "size": 65536 }]);
    let cases: Vec<(&str, Value)> = vec![
        ("/ociVersion", json!("2.0.0")),
        ("/ociVersion", json!("one")),
        ("/root/path", json!("")),
        ("/process/args", json!([])),
        ("/process/args", json!(["a\0b"])),
        ("/process/env", json!(["PATH"])),
        ("/process/cwd", json!("tmp")),
        ("/process/oomScoreAdj", json!(1001)),
        ("/process/capabilities/bounding", json!(["CAP_FLY"])),
        ("/process/capabilities/permitted", json!([])),
        ("/process/rlimits", json!([{ "type": "RLIMIT_FUN", "soft": 1, "hard": 1 }])),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }])),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CORE", "soft": 1, "hard": 1 }, { "type": "RLIMIT_CORE", "soft": 1, "hard": 1 }]),
        ),
        ("/process/scheduler", json!({ "policy": "SCHED_LUCK" })),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_VIP", "priority": 1 })),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 9 })),
        ("/linux/uidMappings", mapping),
        ("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 0, "size": 1 }])),
        ("/linux/timeOffsets", json!({ "monotonic": { "secs": 1 } })),
        ("/linux/sysctl", json!({ "kernel.panic": "1" })),
        ("/linux/sysctl", json!({ "kernel.hostname": "a" })),
        ("/linux/sysctl", json!({ "net.ipv4.no_such_parameter": "1" })),
        ("/linux/sysctl", json!({ "net.ipv4.ip_forward": "maybe" })),
        ("/linux/sysctl", json!({ "net..ipv4": "1" })),
        ("/linux/sysctl", json!({ "net/../kernel/panic": "1" })),
        ("/linux/cgroupsPath", json!("/../../etc")),
        ("/linux/cgroupsPath", json!("a/../../b")),
        ("/linux/rootfsPropagation", json!("wild")),
        ("/linux/maskedPaths", json!(["proc/kcore"])),
        ("/linux/readonlyPaths", json!(["proc/sys"])),
        ("/linux/personality", json!({ "domain": "BSD" })),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_NEAR", "nodes": "0" })),
        ("/linux/intelRdt", json!({})),
        ("/linux/devices", json!([{ "path": "null", "type": "c", "major": 1, "minor": 3 }])),
        ("/linux/devices", json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }])),
        ("/linux/devices", json!([{ "path": "/dev/x", "type": "c", "major": -1, "minor": 3 }])),
        ("/linux/resources/devices", json!([{ "allow": true, "type": "q", "access": "r" }])),
        ("/linux/resources/devices", json!([{ "allow": true, "access": "x" }])),
    ];
    for (pointer, value) in cases {
        said.spoilt(&format!("{pointer} {value}"), |bundle| {
            bundle.set(pointer, value);
        });
    }
    said.hold("values");
}

#[test]
fn seccomp() {
    let mut said = Sentences::new();
    let cases = [
        ("no default action", json!({})),
        ("unknown default action", json!({ "defaultAction": "SCMP_ACT_SMILE" })),
        (
            "unknown architecture",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"] }),
        ),
        ("unknown flag", json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_FUN"] })),
        (
            "unknown action",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_SMILE" }] }),
        ),
        (
            "unknown operator",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_LIKE" }] },
            ] }),
        ),
        (
            "argument out of range",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }] },
            ] }),
        ),
        (
            "nobody to notify",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] }),
        ),
        (
            "an agent that is not there",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere/agent",
                "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] }),
        ),
        (
            "notification of what tells it",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere/agent",
                "syscalls": [{ "names": ["write"], "action": "SCMP_ACT_NOTIFY" }] }),
        ),
    ];
    for (name, value) in cases {
        said.spoilt(name, |bundle| {
            bundle.set("/linux/seccomp", value);
        });
    }
    said.hold("seccomp");
}
