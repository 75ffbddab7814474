//! The commands beside the life of a container: pause, resume, ps, list, update, events, stats, spec,
//! features; held against runc 1.1.5 where it has an answer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Write;
use std::process::Stdio;

use moat_tests::{Bundle, Runtime, wait_until};
use serde_json::{Value, json};

fn sleeping() -> Bundle {
    Bundle::new(&["sleep", "1000"])
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_paused_container_stands_still() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::shell("while :; do :; done"));
    let id = container.id();
    runtime.call(&["pause", id]).success();
    assert_eq!(container.status(), "paused");
    let used = || {
        parsed(runtime.call(&["stats", "--format", "json", id]).success())["cpu"]["usage"]["total"].clone()
    };
    let before = used();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(used(), before);
    assert!(runtime.call(&["pause", id]).failure().contains("container not running (it is paused)"));
    assert!(container.exec(&["true"]).failure().contains("paused"));
    runtime.call(&["resume", id]).success();
    assert_eq!(container.status(), "running");
    wait_until(|| used() != before);
    assert!(runtime.call(&["resume", id]).failure().contains("container not paused (it is running)"));
    // A paused container can be killed.
    runtime.call(&["pause", id]).success();
    container.kill("KILL").success();
    container.wait();
    assert!(runtime.call(&["pause", id]).failure().contains("container not running (it is stopped)"));
}

#[test]
fn a_created_container_can_be_paused() {
    let runtime = Runtime::new();
    let container = runtime.create(&sleeping());
    runtime.call(&["pause", container.id()]).success();
    assert_eq!(container.status(), "paused");
    assert!(container.start().failure().contains("paused"));
    runtime.call(&["resume", container.id()]).success();
    assert_eq!(container.status(), "created");
    container.start().success();
}

#[test]
fn ps_shows_the_processes_of_the_container_alone() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::shell("sleep 1001 & sleep 1002 & wait"));
    let pids = || parsed(runtime.call(&["ps", "--format", "json", container.id()]).success());
    wait_until(|| pids().as_array().unwrap().len() == 3);
    assert!(pids().as_array().unwrap().contains(&json!(container.pid())));
    let table = runtime.call(&["ps", container.id()]);
    let lines: Vec<&str> = table.success().lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].contains("UID") && lines[0].contains("CMD"), "{lines:?}");
    for time in ["sleep 1001", "sleep 1002"] {
        assert_eq!(lines.iter().filter(|line| line.ends_with(time)).count(), 1, "{lines:?}");
    }
    let table = runtime.call(&["ps", container.id(), "-o", "pid,comm"]);
    assert_eq!(table.success().lines().filter(|line| line.ends_with(" sleep")).count(), 2, "{table:?}");
    let refused = runtime.call(&["ps", container.id(), "-o", "comm"]);
    assert!(refused.failure().contains("no column PID"), "{refused:?}");
    assert!(runtime.call(&["ps", container.id(), "-Q"]).failure().contains("ps -Q"));
}

#[test]
fn list_shows_all_containers() {
    let runtime = Runtime::new();
    assert_eq!(
        runtime.call(&["list"]).success(),
        "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    );
    assert_eq!(runtime.call(&["list", "--format", "json"]).success(), "[]\n");
    let mut bundle = sleeping();
    bundle.set("/annotations", json!({ "a": "b" }));
    let (first, second) = (runtime.start(&bundle), runtime.create(&sleeping()));
    let both = format!("{}\n{}\n", first.id(), second.id());
    assert_eq!(runtime.call(&["list", "-q"]).success(), both);
    assert_eq!(runtime.call(&["ls", "--quiet"]).success(), both);
    let list = parsed(runtime.call(&["list", "-f", "json"]).success());
    let expected = json!({
        "ociVersion": first.state()["ociVersion"],
        "id": first.id(),
        "pid": first.pid(),
        "status": "running",
        "bundle": bundle.path(),
        "rootfs": bundle.rootfs(),
        "created": first.state()["created"],
        "annotations": { "a": "b" },
        "owner": "root",
    });
    assert_eq!(list[0], expected);
    assert_eq!(list[1]["status"], "created");
    first.kill("KILL").success();
    first.wait();
    let table = runtime.call(&["list"]);
    let line = table.success().lines().find(|line| line.starts_with(first.id())).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[1..3], ["0", "stopped"], "{line}");
    assert_eq!(fields[5], "root");
}

#[test]
fn one_broken_container_hides_no_other() {
    let runtime = Runtime::new();
    let container = runtime.create(&sleeping());
    let broken = runtime.state_root().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let output = runtime.call(&["list"]);
    assert!(output.success().contains(container.id()), "{output:?}");
    assert!(output.stderr.contains("container broken was not created completely"), "{output:?}");
    runtime.call(&["delete", "--force", "broken"]).success();
    assert!(!broken.exists());
}

#[test]
fn update_changes_what_is_in_force_and_what_is_saved() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.set("/linux/resources/cpu", json!({ "shares": 512 })).set("/x-unknown", json!({ "kept": true }));
    let container = runtime.start(&bundle);
    let id = container.id();
    let state = runtime.state_root().join(id).join("state.json");
    let saved = || parsed(&std::fs::read_to_string(&state).unwrap())["config"].clone();
    let before = saved();
    let flags =
        ["--memory", "64MiB", "--memory-swap", "0.125g", "--pids-limit", "77", "--cpu-quota", "30000"];
    runtime.call(&[&["update"], flags.as_slice(), &["--cpu-period", "60000", id]].concat()).success();
    let stats = parsed(runtime.call(&["stats", "-f", "json", id]).success());
    assert_eq!((&stats["memory"]["usage"]["limit"], &stats["pids"]["limit"]), (&json!(64 << 20), &json!(77)));
    let mut expected = before.clone();
    expected["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "swap": 128 << 20 });
    expected["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    expected["linux"]["resources"]["cpu"] = json!({ "shares": 512, "quota": 30_000, "period": 60_000 });
    assert_eq!(saved(), expected);

    // Container managers send the whole section over standard input.
    let mut resources = expected["linux"]["resources"].clone();
    resources["pids"]["limit"] = json!(88);
    let mut command = runtime.command(&["update", "--resources", "-", id]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(resources.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(saved()["linux"]["resources"], resources);
    // The devices are still what they were.
    container.exec(&["sh", "-c", "echo x > /dev/null"]).success();
}

#[test]
fn an_update_that_is_refused_changes_nothing() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.set("/linux/resources/pids", json!({ "limit": 50 }));
    bundle.set("/linux/resources/cpu", json!({ "quota": 40_000, "period": 100_000 }));
    let container = runtime.start(&bundle);
    let id = container.id();
    let state = runtime.state_root().join(id).join("state.json");
    let before = std::fs::read(&state).unwrap();
    let stats = || parsed(runtime.call(&["stats", "-f", "json", id]).success());
    // The processor that there is not is refused after the quota was taken.
    let refused = runtime.call(&["update", "--cpu-quota", "20000", "--cpuset-cpus", "4000", id]);
    assert!(
        refused.failure().contains(&format!("update container {id}: linux.resources.cpu.cpus")),
        "{refused:?}"
    );
    assert_eq!(std::fs::read(&state).unwrap(), before);
    assert_eq!(stats()["pids"]["limit"], 50);
    for (flags, said) in [
        (["--memory", "100x"], "--memory \"100x\" is not a size such as 100M, 1.5GiB or -1"),
        (["--l3-cache-schema", "L3:0=f"], "--l3-cache-schema is not supported yet"),
        (["--mem-bw-schema", "MB:0=20"], "--mem-bw-schema is not supported yet"),
        (["--resources", "/nowhere"], "/nowhere: ENOENT"),
    ] {
        let refused = runtime.call(&["update", flags[0], flags[1], id]);
        assert!(refused.failure().contains(said), "{refused:?}");
    }
    container.kill("KILL").success();
    container.wait();
    let refused = runtime.call(&["update", "--memory", "50M", id]);
    assert!(refused.failure().contains("container not running (it is stopped)"), "{refused:?}");
}

#[test]
fn events_are_lines_until_the_container_ends() {
    let runtime = Runtime::new();
    let container = runtime.start(&sleeping());
    let id = container.id();
    let line = runtime.call(&["events", "--stats", id]);
    assert_eq!(line.success().lines().count(), 1);
    let (event, of_runc) = (parsed(&line.stdout), runc_stats());
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(id)));
    for (section, fields) in of_runc {
        for field in fields {
            assert!(
                event["data"][section][field].is_object() || event["data"][section][field].is_number(),
                "{section}.{field}: {event}"
            );
        }
    }
    let mut command = runtime.command(&["events", "--interval", "20ms", id]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    container.kill("KILL").success();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() > 1, "{text}");
    assert!(text.lines().all(|line| parsed(line)["type"] == "stats"), "{text}");
    container.wait();
    for args in [vec!["events", id], vec!["events", "--stats", id], vec!["stats", id]] {
        assert!(runtime.call(&args).failure().contains(&format!("container with id {id} is not running")));
    }
    for bad in ["0s", "5", "x"] {
        assert!(runtime.call(&["events", "--interval", bad, id]).failure().contains("--interval"));
    }
}

/// What runc prints of an idle container.
fn runc_stats() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("cpu", vec!["usage", "throttling"]),
        ("cpuset", vec!["cpu_exclusive", "sched_load_balance"]),
        ("memory", vec!["usage", "swap", "kernel", "kernelTCP", "raw"]),
        ("pids", vec!["current"]),
    ]
}

#[test]
fn stats_are_a_table_for_people() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.set("/linux/resources/memory", json!({ "limit": 64 << 20 }));
    let container = runtime.start(&bundle);
    let table = runtime.call(&["stats", container.id()]);
    for part in ["cpu  ", " of 64.0 MiB", "memory events   none", "tasks             1 of no limit"] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(table.success()).contains(&squeezed(part)), "{part}: {table:?}");
    }
}

#[test]
fn spec_is_that_of_runc() {
    let runtime = Runtime::new();
    for (flags, text) in [
        (vec!["spec"], include_str!("data/runc-spec.json")),
        (vec!["spec", "--rootless"], include_str!("data/runc-spec-rootless.json")),
    ] {
        let folder = runtime.folder().join(flags.len().to_string());
        std::fs::create_dir(&folder).unwrap();
        runtime.command(&flags).current_dir(&folder).status().unwrap();
        let written = std::fs::read_to_string(folder.join("config.json")).unwrap();
        assert!(written.starts_with("{\n\t\"ociVersion\": \"1.3.0\",\n"), "{written}");
        let (mut own, mut theirs) = (parsed(&written), parsed(text));
        own["ociVersion"].take();
        theirs["ociVersion"].take();
        own["linux"]["namespaces"].as_array_mut().unwrap().retain(|kind| kind["type"] != "cgroup");
        assert_eq!(own, theirs);
        let refused = runtime.call(&[flags.as_slice(), &["--bundle", folder.to_str().unwrap()]].concat());
        assert!(refused.failure().contains("config.json exists: remove it first"), "{refused:?}");
        assert_eq!(std::fs::read_to_string(folder.join("config.json")).unwrap(), written);
    }
    let refused = runtime.call(&["spec", "--bundle", "/nowhere"]);
    assert!(refused.failure().contains("/nowhere/config.json: ENOENT"), "{refused:?}");
}

/// Everything that runc lists is listed, but for what Moat leaves to file systems or refuses.
#[test]
fn features_are_those_of_runc_and_more() {
    let runtime = Runtime::new();
    let (own, theirs) =
        (parsed(runtime.call(&["features"]).success()), parsed(include_str!("data/runc-features.json")));
    let list = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    for pointer in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/archs",
    ] {
        let ours = list(own.pointer(pointer).unwrap());
        for name in list(theirs.pointer(pointer).unwrap()) {
            let refused = ["acl", "noacl", "remount"].contains(&name.as_str());
            assert_eq!(ours.contains(&name), !refused, "{pointer}: {name}");
        }
        let mut sorted = ours.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), ours.len(), "{pointer}: {ours:?}");
    }
    let cgroup = json!({ "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true });
    assert_eq!(own["linux"]["cgroup"], cgroup);
    assert_eq!(own["ociVersionMax"], "1.3.0");
    assert_eq!(own["linux"]["intelRdt"], json!({ "enabled": false }));
    assert_eq!(own["linux"]["netDevices"], json!({ "enabled": true }));
    assert_eq!(own["linux"]["mountExtensions"], json!({ "idmap": { "enabled": true } }));
    let supported = list(&own["linux"]["seccomp"]["supportedFlags"]);
    let known = list(&own["linux"]["seccomp"]["knownFlags"]);
    assert!(supported.contains(&"SECCOMP_FILTER_FLAG_LOG".to_owned()));
    assert!(supported.iter().all(|flag| known.contains(flag)), "{supported:?} {known:?}");
}

/// No option that is listed is handed to a file system that does not know it.
#[test]
fn mount_options_that_are_listed_work() {
    let runtime = Runtime::new();
    let features = parsed(runtime.call(&["features"]).success());
    for option in features["mountOptions"].as_array().unwrap() {
        let name = option.as_str().unwrap();
        // Their meaning needs more than a mount of its own: a mapping, or another mount.
        if ["idmap", "ridmap", "bind", "rbind", "_netdev"].contains(&name) {
            continue;
        }
        let mut bundle = sleeping();
        bundle.push(
            "/mounts",
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [name] }),
        );
        let output = runtime.run_with(&bundle, &["--dry-run"]);
        assert!(output.success().contains("/tmp"), "{name}: {output:?}");
    }
}
