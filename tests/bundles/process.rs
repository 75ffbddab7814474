//! Programs that can not be run, users that are not there, hooks that fail.

use moat_tests::Bundle;
use serde_json::{Value, json};

use super::Sentences;

#[test]
fn programs() {
    let mut said = Sentences::new();
    let args = |bundle: &mut Bundle, program: &str| {
        bundle.args(&[program]);
    };
    said.spoilt("not in PATH", |bundle| args(bundle, "nosuch"));
    said.spoilt("missing", |bundle| args(bundle, "/bin/nosuch"));
    said.spoilt("below a file", |bundle| args(bundle, "/etc/passwd/sh"));
    said.spoilt("not executable", |bundle| args(bundle, "/etc/passwd"));
    said.spoilt("a folder", |bundle| args(bundle, "/etc"));
    said.spoilt("a relative path", |bundle| args(bundle, "./nosuch"));
    said.spoilt("no PATH", |bundle| {
        args(bundle, "true");
        bundle.set("/process/env", json!([]));
    });
    said.spoilt("in PATH, not executable", |bundle| {
        bundle.file("bin/plain", "");
        args(bundle, "plain");
    });
    said.spoilt("no format", |bundle| {
        bundle.script("bin/bad", "\u{7f}ELF");
        args(bundle, "/bin/bad");
    });
    said.spoilt("no interpreter", |bundle| {
        bundle.script("bin/bad", "#!/bin/nosuch\n");
        args(bundle, "/bin/bad");
    });
    said.spoilt("a loop", |bundle| {
        bundle.link("loop", "bin/loop");
        args(bundle, "/bin/loop");
    });
    said.spoilt("no cwd", |bundle| {
        bundle.set("/process/cwd", json!("/nowhere"));
    });
    said.spoilt("cwd is a file", |bundle| {
        bundle.set("/process/cwd", json!("/etc/passwd"));
    });
    said.spoilt("cwd leads out", |bundle| {
        bundle.set("/process/cwd", json!("/proc/self/fd/999"));
    });
    said.hold("programs");
}

/// `start` of what was created well tells what `run` tells.
#[test]
fn start_tells_why_a_program_can_not_be_executed() {
    let mut said = Sentences::new();
    let bundle = Bundle::new(&["/bin/bad"]);
    bundle.script("bin/bad", "#!/bin/nosuch\n");
    let runtime = moat_tests::Runtime::new();
    let container = runtime.create(&bundle);
    said.failing("start", &runtime.command(&["start", container.id()]), &[(container.id(), "ID")]);
    container.wait();
    container.delete();
    said.hold("start");
}

fn new_user_namespace(bundle: &mut Bundle) -> &mut Bundle {
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
    bundle.push("/linux/namespaces", json!({ "type": "user" }));
    bundle.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping)
}

#[test]
fn users() {
    let mut said = Sentences::new();
    said.spoilt("unmapped user", |bundle| {
        new_user_namespace(bundle).set("/process/user/uid", json!(10));
    });
    said.spoilt("unmapped group", |bundle| {
        new_user_namespace(bundle).set("/process/user/gid", json!(10));
    });
    said.spoilt("unmapped additional group", |bundle| {
        new_user_namespace(bundle).set("/process/user/additionalGids", json!([1, 11]));
    });
    said.spoilt("no mappings", |bundle| {
        bundle.push("/linux/namespaces", json!({ "type": "user" }));
    });
    said.spoilt("mapped twice", |bundle| {
        let twice = json!([
            { "containerID": 0, "hostID": 100_000, "size": 10 }, { "containerID": 5, "hostID": 200_000, "size": 10 },
        ]);
        new_user_namespace(bundle).set("/linux/uidMappings", twice);
    });
    said.hold("users");
}

#[test]
fn namespaces() {
    let mut said = Sentences::new();
    let mut join = |name: &str, path: &str| {
        said.spoilt(name, |bundle| {
            bundle.retain_namespaces(|kind| kind != "network");
            bundle.push("/linux/namespaces", json!({ "type": "network", "path": path }));
        });
    };
    join("missing", "/nowhere/net");
    join("a regular file", "/etc/passwd");
    join("a folder", "/proc/self/ns");
    join("another kind", "/proc/self/ns/uts");
    let mut join_early = |kind: &str, path: &str| {
        said.spoilt(&format!("{kind} {path}"), |bundle| {
            bundle.retain_namespaces(|known| known != kind);
            bundle.push("/linux/namespaces", json!({ "type": kind, "path": path }));
        });
    };
    join_early("pid", "/etc/passwd");
    join_early("pid", "/proc/self/ns/net");
    join_early("pid", "/nowhere/pid");
    join_early("user", "/proc/self/ns/user");
    said.spoilt("twice", |bundle| {
        bundle.push("/linux/namespaces", json!({ "type": "pid" }));
    });
    said.spoilt("hostname without uts", |bundle| {
        bundle.retain_namespaces(|kind| kind != "uts");
    });
    said.spoilt("mounts without mount", |bundle| {
        bundle.retain_namespaces(|kind| kind != "mount");
    });
    said.spoilt("offsets of an unknown clock", |bundle| {
        bundle.push("/linux/namespaces", json!({ "type": "time" }));
        bundle.set("/linux/timeOffsets", json!({ "lunar": { "secs": 1 } }));
    });
    said.spoilt("sysctl of a shared network", |bundle| {
        bundle.retain_namespaces(|kind| kind != "network");
        bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }));
    });
    said.hold("namespaces");
}

#[test]
fn hooks() {
    let mut said = Sentences::new();
    let mut hook = |name: &str, kind: &str, hook: Value| {
        said.spoilt(name, |bundle| {
            bundle.set(&format!("/hooks/{kind}"), json!([hook]));
        });
    };
    hook("relative path", "prestart", json!({ "path": "true" }));
    hook("no timeout", "prestart", json!({ "path": "/bin/true", "timeout": 0 }));
    hook("missing", "createRuntime", json!({ "path": "/nowhere/hook" }));
    hook("not executable", "createRuntime", json!({ "path": "/etc/passwd" }));
    hook("failing", "createRuntime", json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 5"] }));
    hook("killed", "prestart", json!({ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"] }));
    hook(
        "too slow",
        "createRuntime",
        json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }),
    );
    hook("in the container's namespaces", "createContainer", json!({ "path": "/bin/false" }));
    hook("in the container", "startContainer", json!({ "path": "/bin/false" }));
    said.hold("hooks");
}
