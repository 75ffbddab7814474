//! CVE-2022-24769, CVE-2022-29162: inheritable capabilities, by which a program with file capabilities gets
//! more than its bounding set was meant to allow.

use std::process::Command;

use moat_tests::{Bundle, Container, Runtime};
use serde_json::json;

const LOOK: &str = "grep -h CapInh /proc/self/status /proc/1/status";

/// The configuration asks for all five sets but the ambient one.
fn greedy(script: &str) -> Bundle {
    let mut bundle = Bundle::shell(script);
    for set in ["bounding", "effective", "permitted", "inheritable"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_NET_RAW", "CAP_CHOWN", "CAP_KILL"]));
    }
    bundle
}

#[track_caller]
fn nothing(told: &str) {
    assert_eq!(told, "CapInh:\t0000000000000000\nCapInh:\t0000000000000000\n");
}

#[test]
fn nothing_is_inheritable_in_run() {
    nothing(Runtime::new().run(&greedy(LOOK)).success());
}

#[test]
fn nothing_is_inheritable_for_another_user() {
    let mut bundle = greedy(LOOK);
    bundle.set("/process/user/uid", json!(1000));
    nothing(Runtime::new().run(&bundle).success());
}

fn exec(container: &Container<'_>, flags: &[&str]) {
    nothing(container.exec_with(flags, &["/bin/sh", "-c", LOOK]).success());
}

#[test]
fn nothing_is_inheritable_in_exec() {
    let runtime = Runtime::new();
    let container = runtime.start(&greedy("sleep 1000000"));
    exec(&container, &[]);
    exec(&container, &["--user", "1000:1000"]);
    let mut process = greedy(LOOK).config()["process"].clone();
    process["args"] = json!(["/bin/sh", "-c", LOOK]);
    let file = runtime.folder().join("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    nothing(container.exec_with(&["--process", file.to_str().unwrap()], &[]).success());
}

/// What the runtime's caller has does not come along either.
#[test]
fn nothing_of_the_callers_is_inheritable() {
    let runtime = Runtime::new();
    let inner = runtime.build("run", &greedy(LOOK), &[], &runtime.id());
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps", "+net_raw,+chown", "--"]).arg(inner.get_program()).args(inner.get_args());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    nothing(&String::from_utf8_lossy(&output.stdout));
}
