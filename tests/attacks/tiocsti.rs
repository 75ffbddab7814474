//! CVE-2017-5226: a container pushes input into the terminal of whoever started it, which then runs it.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use moat_tests::{Bundle, Pty, Runtime, wait_for, wait_until};
use serde_json::json;

const PUSHED: &str = "echo pushed by the container\n";

fn bundle() -> Bundle {
    let bundle = Bundle::new(&["/attacker", "push", PUSHED]);
    bundle.program(crate::ATTACKER, "attacker");
    bundle
}

/// Runs a command in a session of its own whose controlling terminal is `slave`: what a shell in a terminal
/// does. Gives what the command wrote to standard output.
fn in_session(command: &Command, slave: &File) -> String {
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut session = Command::new("setsid");
    session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
    session.stdin(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap());
    assert!(session.stdout(told.reopen().unwrap()).status().unwrap().success());
    std::fs::read_to_string(told.path()).unwrap()
}

/// What the terminal holds as input that nobody has read.
fn waiting_input(slave: &File) -> u64 {
    rustix::io::ioctl_fionread(slave).unwrap()
}

#[test]
fn run_without_a_terminal() {
    let runtime = Runtime::new();
    let pty = Pty::new();
    // Held open, or the terminal would end with the session.
    let slave = pty.open();
    refused(&in_session(&runtime.build("run", &bundle(), &[], &runtime.id()), &slave));
    assert_eq!(waiting_input(&slave), 0);
}

#[track_caller]
fn refused(told: &str) {
    assert!(told.contains("/dev/tty: No such device or address"), "{told}");
    assert!(told.contains("terminal: 0\n"), "{told}");
    let pushes: Vec<&str> = told.lines().filter(|line| line.starts_with("push ")).collect();
    assert_eq!(pushes.len(), 3, "{told}");
    assert!(pushes.iter().all(|line| !line.ends_with("pushed")), "{told}");
    // The session's leader is in the container: 0 would be one outside.
    let session = told.lines().find_map(|line| line.strip_prefix("session: ")).unwrap();
    assert_ne!(session, "0", "{told}");
}

#[test]
fn exec_without_a_terminal() {
    let runtime = Runtime::new();
    let target = Bundle::new(&["sleep", "1000000"]);
    target.program(crate::ATTACKER, "attacker");
    let container = runtime.start(&target);
    let pty = Pty::new();
    let slave = pty.open();
    refused(&in_session(&container.exec_command(&[], &["/attacker", "push", PUSHED]), &slave));
    assert_eq!(waiting_input(&slave), 0);
}

/// With a terminal of its own the container may push into that one, which is its own.
#[test]
fn run_with_a_terminal() {
    let runtime = Runtime::new();
    let pty = Pty::new();
    let slave = pty.open();
    let mut bundle = bundle();
    bundle.set("/process/terminal", json!(true));
    let told = in_session(&runtime.build("run", &bundle, &[], &runtime.id()), &slave);
    assert!(told.contains("/dev/tty: open"), "{told}");
    let session = told.lines().find_map(|line| line.strip_prefix("session: ")).unwrap_or_default();
    assert_eq!(session.trim(), "1", "{told}");
    assert_eq!(waiting_input(&slave), 0);
}

/// Nothing ties a created container to the terminal of whoever called `create`.
#[test]
fn create_and_start_without_a_terminal() {
    let runtime = Runtime::new();
    let pty = Pty::new();
    let slave = pty.open();
    let id = runtime.id();
    let told = runtime.folder().join("told");
    let bundle = bundle();
    let create = runtime.build("create", &bundle, &[], &id);
    // The session's leader lives on, as a shell does: the terminal is taken.
    let mut session = Command::new("setsid");
    session.args(["--ctty", "--wait", "sh", "-c", "\"$@\" > $0; read line", told.to_str().unwrap()]);
    session.arg(create.get_program()).args(create.get_args());
    session.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap());
    let mut shell = session.stderr(slave.try_clone().unwrap()).spawn().unwrap();
    wait_until(|| runtime.call(&["state", &id]).stdout.contains("\"status\": \"created\""));
    runtime.call(&["start", &id]).success();
    let text = wait_for(|| std::fs::read_to_string(&told).ok().filter(|text| text.contains("push 2")));
    (&pty.master).write_all(b"the end\n").unwrap();
    shell.wait().unwrap();
    refused(&text);
    assert_eq!(waiting_input(&slave), 0);
}
