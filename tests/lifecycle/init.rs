//! The end of processes: Moat's own init, signals, exit codes.

use std::process::{Child, Command, Stdio};

use moat_tests::{Bundle, Runtime, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::sleeping;

/// `run` of a script whose last act before it waits is to make /ready.
fn running(runtime: &Runtime, bundle: &mut Bundle, flags: &[&str]) -> (Child, String) {
    bundle.set("/root/readonly", json!(false));
    let id = runtime.id();
    let mut command: Command = runtime.build("run", bundle, flags, &id);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ready = bundle.rootfs().join("ready");
    wait_until(|| ready.exists());
    (child, id)
}

const WAITS: &str = "> /ready; while :; do sleep 0.02; done";

#[test]
fn init_is_the_first_process() {
    let runtime = Runtime::new();
    let bundle = Bundle::shell(
        "[ $$ != 1 ] && tr '\\0' ' ' < /proc/1/cmdline | grep -c '/bin/sh'; cut -d ' ' -f 4 /proc/$$/stat; exit 6",
    );
    let output = runtime.run_with(&bundle, &["--init"]);
    assert_eq!((output.code, output.stdout.as_str()), (6, "0\n1\n"), "{output:?}");
}

#[test]
fn init_reaps_orphans() {
    let runtime = Runtime::new();
    let script = "pid=$(sh -c 'sleep 0.05 > /dev/null & echo $!'); cut -d ' ' -f 4 /proc/$pid/stat; \
        while [ -e /proc/$pid ]; do sleep 0.01; done; echo reaped";
    let output = runtime.run_with(&Bundle::shell(script), &["--init"]);
    assert_eq!(output.success(), "1\nreaped\n");
}

#[test]
fn init_forwards_signals() {
    let runtime = Runtime::new();
    // Without an init the kernel would keep the signal from a first process that does not handle it.
    for (script, code) in [(WAITS.to_owned(), 143), (format!("trap 'exit 9' TERM; {WAITS}"), 9)] {
        let mut bundle = Bundle::shell(&script);
        let (mut child, id) = running(&runtime, &mut bundle, &["--init"]);
        runtime.call(&["kill", &id, "TERM"]).success();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(runtime.leftovers(&id), Vec::<String>::new());
    }
}

#[test]
fn run_forwards_signals() {
    let runtime = Runtime::new();
    for (name, signal, code) in
        [("TERM", Signal::TERM, 7), ("HUP", Signal::HUP, 8), ("USR1", Signal::USR1, 9)]
    {
        let mut bundle = Bundle::shell(&format!("trap 'exit {code}' {name}; {WAITS}"));
        let (mut child, id) = running(&runtime, &mut bundle, &[]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
        assert_eq!(runtime.leftovers(&id), Vec::<String>::new());
    }
}

#[test]
fn a_program_that_is_killed_gives_its_signal() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(WAITS);
    let (mut child, id) = running(&runtime, &mut bundle, &[]);
    runtime.call(&["kill", &id, "KILL"]).success();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    let container = runtime.start(&sleeping());
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("USR2", 140)] {
        assert_eq!(container.shell(&format!("kill -{signal} $$")).code, code, "{signal}");
    }
    let output = runtime.run_with(&Bundle::shell("kill -USR1 $$"), &["--init"]);
    assert_eq!((output.code, output.signal), (138, None), "{output:?}");
}

#[test]
fn a_paused_container_is_deleted_by_force() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::shell("sleep 100006 & wait"));
    runtime.call(&["pause", container.id()]).success();
    runtime.call(&["delete", container.id()]).failure();
    assert_eq!(container.status(), "paused");
    container.delete();
}
