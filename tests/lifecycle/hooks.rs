//! Hooks: order, place, what they are told, and what their failure means.

use std::path::Path;

use moat_tests::{Bundle, Runtime};
use serde_json::{Value, json};

use crate::{namespace, sleeping};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// One line a hook: kind, arguments, an inherited variable, mount namespace, state.
const NOTE: &str = "#!/bin/sh\n{ printf '%s|%s|%s|%s|' \"$KIND\" \"$1,$2\" \"${HOME-none}\" \
    \"$(readlink /proc/self/ns/mnt)\"; cat; echo; } >> \"$LOG\"\n";

/// A bundle each of whose hooks notes itself in one file of the root file system.
fn noting(mut bundle: Bundle) -> Bundle {
    bundle.script("hook", NOTE);
    bundle.set("/root/readonly", json!(false));
    bundle.set("/annotations", json!({ "org.moat.test": "told" }));
    for kind in KINDS {
        // That hook alone is a program of the container's.
        let root = if kind == "startContainer" { "".into() } else { bundle.rootfs().display().to_string() };
        let path = std::env::var("PATH").unwrap();
        let hook = json!({
            "path": format!("{root}/hook"),
            "args": ["hook", "one", "two words"],
            "env": [format!("KIND={kind}"), format!("LOG={root}/log"), format!("PATH=/bin:{path}")],
        });
        bundle.push(&format!("/hooks/{kind}"), hook);
    }
    bundle
}

struct Note {
    kind: String,
    arguments: String,
    inherited: String,
    mounts: String,
    state: Value,
}

fn notes(log: &Path) -> Vec<Note> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let note = |line: &str| {
        let parts: Vec<&str> = line.splitn(5, '|').collect();
        let [kind, arguments, inherited, mounts, state] = parts[..] else { panic!("{line}") };
        Note {
            kind: kind.to_owned(),
            arguments: arguments.to_owned(),
            inherited: inherited.to_owned(),
            mounts: mounts.to_owned(),
            state: serde_json::from_str(state).unwrap_or_else(|error| panic!("{error}: {state}")),
        }
    };
    text.lines().map(note).collect()
}

fn kinds(log: &Path) -> Vec<String> {
    notes(log).into_iter().map(|note| note.kind).collect()
}

#[test]
fn every_kind_runs_in_its_turn() {
    let runtime = Runtime::new();
    let bundle = noting(sleeping());
    let log = bundle.rootfs().join("log");
    let container = runtime.create(&bundle);
    let pid = container.pid();
    assert_eq!(kinds(&log), KINDS[..3]);
    container.start().success();
    assert_eq!(kinds(&log), KINDS[..5]);
    let inside = namespace(pid, "mnt");
    container.kill("KILL").success();
    container.wait();
    assert_eq!(kinds(&log), KINDS[..5]);
    runtime.call(&["delete", container.id()]).success();
    let all = notes(&log);
    assert_eq!(kinds(&log), KINDS);
    let own = namespace(std::process::id().cast_signed(), "mnt");
    for (note, (status, place, pid)) in all.iter().zip([
        ("creating", &own, pid),
        ("creating", &own, pid),
        ("creating", &inside, 1),
        ("created", &inside, 1),
        ("running", &own, pid),
        ("stopped", &own, 0),
    ]) {
        let kind = &note.kind;
        assert_eq!((note.arguments.as_str(), note.inherited.as_str()), ("one,two words", "none"), "{kind}");
        assert_eq!(&note.mounts, place, "{kind}");
        let state = &note.state;
        assert_eq!((&state["status"], &state["id"]), (&json!(status), &json!(container.id())), "{kind}");
        assert_eq!(state["bundle"], json!(bundle.path()), "{kind}");
        assert_eq!(state["annotations"]["org.moat.test"], "told", "{kind}");
        // What is stopped has no process.
        assert_eq!(state["pid"].as_i64().unwrap_or(0), i64::from(pid), "{kind}");
    }
}

#[test]
fn run_runs_them_too() {
    let runtime = Runtime::new();
    let bundle = noting(Bundle::shell("grep -c start /log"));
    let output = runtime.run(&bundle);
    // The program starts after startContainer, and poststart may come before or after its look.
    assert!(["2\n", "3\n"].contains(&output.success()), "{output:?}");
    assert_eq!(kinds(&bundle.rootfs().join("log")), KINDS);
}

#[test]
fn a_failing_hook_before_the_start_leaves_nothing() {
    let runtime = Runtime::new();
    for kind in &KINDS[..3] {
        let mut bundle = noting(Bundle::shell("echo ran > /ran"));
        bundle.push(&format!("/hooks/{kind}"), json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] }));
        let id = runtime.id();
        let output = runtime.build("create", &bundle, &[], &id).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("moat-runtime: hooks.{kind}[1] /bin/sh: exit code 3\n"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(runtime.leftovers(&id), Vec::<String>::new(), "{kind}");
        assert!(!bundle.rootfs().join("ran").exists());
        // Those of the same kind that stand before it ran; those of later kinds did not.
        let seen = kinds(&bundle.rootfs().join("log"));
        assert!(seen.contains(&(*kind).to_owned()), "{seen:?}");
        assert!(!seen.contains(&"startContainer".to_owned()), "{seen:?}");
    }
}

#[test]
fn a_failing_hook_in_the_container_stops_the_start() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("echo ran > /ran");
    bundle.set("/root/readonly", json!(false));
    bundle.push("/hooks/startContainer", json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 4"] }));
    let container = runtime.create(&bundle);
    let output = container.start();
    assert!(output.failure().contains("hooks.startContainer[0] /bin/sh: exit code 4"), "{output:?}");
    container.wait();
    assert!(!bundle.rootfs().join("ran").exists());
    container.delete();
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    let nap = format!("{}.25", 100_000 + std::process::id());
    let hook = json!({ "path": "/bin/sleep", "args": ["sleep", nap], "timeout": 1 });
    bundle.push("/hooks/createRuntime", hook);
    let id = runtime.id();
    let output = runtime.build("create", &bundle, &[], &id).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "moat-runtime: hooks.createRuntime[0] /bin/sleep: killed after its timeout of 1 s\n");
    assert_eq!(runtime.leftovers(&id), Vec::<String>::new());
    let sleeps = moat_tests::leftovers(&runtime.state_root(), &nap);
    assert_eq!(sleeps, Vec::<String>::new());
}

#[test]
fn a_failure_after_the_start_is_a_warning() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    let failing = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 5"] });
    for kind in ["poststart", "poststop"] {
        let marker = bundle.path().join(kind);
        bundle.push(&format!("/hooks/{kind}"), failing.clone());
        let touch =
            json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("echo > {}", marker.display())] });
        bundle.push(&format!("/hooks/{kind}"), touch);
    }
    let container = runtime.create(&bundle);
    let output = container.start();
    output.success();
    assert!(output.stderr.contains("hooks.poststart[0] /bin/sh: exit code 5"), "{output:?}");
    assert_eq!(container.status(), "running");
    // The next of the same kind runs all the same.
    assert!(bundle.path().join("poststart").exists());
    container.kill("KILL").success();
    container.wait();
    let output = runtime.call(&["delete", container.id()]);
    output.success();
    assert!(output.stderr.contains("hooks.poststop[0] /bin/sh: exit code 5"), "{output:?}");
    assert!(bundle.path().join("poststop").exists());
    assert_eq!(runtime.leftovers(container.id()), Vec::<String>::new());
}
