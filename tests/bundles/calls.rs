//! Calls that can not be answered.

use std::process::Command;

use moat_tests::{Bundle, Runtime};
use serde_json::json;

use super::Sentences;

#[test]
fn names() {
    let mut said = Sentences::new();
    let bundle = Bundle::new(&["/bin/true"]);
    let long = "x".repeat(256);
    for id in ["", ".", "..", "a/b", "../a", "a b", "ä", &long] {
        let mut command = said.runtime.command(&["run", "--bundle"]);
        command.arg(bundle.path()).arg("--").arg(id);
        said.failing(&format!("run {id:?}"), &command, &[(&long, "LONG")]);
    }
    for verb in
        ["start", "state", "kill", "delete", "exec", "ps", "pause", "resume", "update", "events", "stats"]
    {
        let mut command = said.runtime.command(&[verb, "nosuch"]);
        if verb == "exec" {
            command.arg("true");
        }
        said.failing(verb, &command, &[]);
    }
    said.runtime.call(&["delete", "--force", "nosuch"]).success();
    said.hold("names");
}

#[test]
fn a_container_in_another_state() {
    let mut said = Sentences::new();
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let container = runtime.create(&bundle);
    let id = container.id();
    let names = [(id, "ID")];
    said.failing("create again", &runtime.build("create", &bundle, &[], id), &names);
    assert_eq!(container.status(), "created");
    said.failing("kill with no signal", &runtime.command(&["kill", id, "SIGFUN"]), &names);
    said.failing("kill with signal 65", &runtime.command(&["kill", id, "65"]), &names);
    container.start().success();
    said.failing("start again", &runtime.command(&["start", id]), &names);
    said.failing("delete while it runs", &runtime.command(&["delete", id]), &names);
    said.failing("exec of nothing", &runtime.command(&["exec", id]), &names);
    let exec = |flags: &[&str], args: &[&str]| container.exec_command(flags, args);
    said.failing("exec of what is missing", &exec(&[], &["nosuch"]), &names);
    said.failing("exec of what is not executable", &exec(&[], &["/etc/passwd"]), &names);
    said.failing("exec of an unknown user", &exec(&["--user", "nosuch"], &["true"]), &names);
    said.failing("exec of user -1", &exec(&["--user=-1"], &["true"]), &names);
    said.failing("exec of user 2^32", &exec(&["--user", "4294967296"], &["true"]), &names);
    said.failing("exec in no folder", &exec(&["--cwd", "/nowhere"], &["true"]), &names);
    said.failing("exec in a relative folder", &exec(&["--cwd", "tmp"], &["true"]), &names);
    said.failing("exec with half a variable", &exec(&["--env", "A"], &["true"]), &names);
    said.failing("exec with an unknown capability", &exec(&["--cap", "CAP_FLY"], &["true"]), &names);
    said.failing(
        "exec from no file",
        &runtime.command(&["exec", "--process", "/nowhere/p.json", id]),
        &names,
    );
    said.failing("exec in no cgroup", &exec(&["--cgroup", "../up"], &["true"]), &names);
    container.kill("KILL").success();
    container.wait();
    said.failing("start after its end", &runtime.command(&["start", id]), &names);
    said.failing("kill after its end", &runtime.command(&["kill", id]), &names);
    said.failing("exec after its end", &exec(&[], &["true"]), &names);
    said.failing("pause after its end", &runtime.command(&["pause", id]), &names);
    container.delete();
    said.hold("states");
}

#[test]
fn flags() {
    let mut said = Sentences::new();
    let bundle = Bundle::new(&["/bin/true"]);
    let folder = said.runtime.folder().to_owned();
    let at = |name: &str| folder.join(name).display().to_string();
    said.run("a pid file nowhere", &bundle, &["--pid-file", "/nowhere/pid"]);
    let closed = said.runtime.run_with(&bundle, &["--preserve-fds", "500"]);
    assert!(closed.failure().ends_with(" is not open\n"), "{closed:?}");
    said.run("a console without terminal", &bundle, &["--console-socket", "/nowhere/console"]);
    said.run("a pidfd socket nowhere", &bundle, &["--pidfd-socket", "/nowhere/pidfd"]);
    said.run("no step", &bundle, &["--stop-after", "sometimes"]);
    let mut terminal = Bundle::new(&["/bin/true"]);
    terminal.set("/process/terminal", json!(true));
    said.run("a terminal and nobody", &terminal, &["--detach"]);
    said.run("a console nowhere", &terminal, &["--console-socket", "/nowhere/console"]);
    std::fs::write(folder.join("plain"), "").unwrap();
    said.run("a console that is no socket", &terminal, &["--console-socket", &at("plain")]);
    drop(std::os::unix::net::UnixListener::bind(folder.join("closed")).unwrap());
    said.run("a console that was closed", &terminal, &["--console-socket", &at("closed")]);
    terminal.remove_mount("/dev/pts");
    said.run("a terminal without devpts", &terminal, &[]);
    let mut command = Command::new(said.runtime.program());
    command.args(["--systemd-cgroup", "list"]);
    said.failing("systemd", &command, &[]);
    said.failing("checkpoint", &said.runtime.command(&["checkpoint", "a"]), &[]);
    said.failing("restore", &said.runtime.command(&["restore", "a"]), &[]);
    said.hold("flags");
}
