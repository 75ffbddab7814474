//! The life of containers on the real kernel: what a configuration asks for is looked at from inside the
//! container or from the host. `MOAT_RUNTIME=runc` holds the expectations against another runtime.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails, and says where"
)]

mod hooks;
mod init;
mod mounts;
mod namespaces;
mod process;
mod terminal;

use std::process::Command;

use moat_tests::{Bundle, Output};

/// A bundle whose program only waits to be killed.
fn sleeping() -> Bundle {
    Bundle::new(&["sleep", "100000"])
}

/// A namespace of a process: `net:[4026531840]`.
#[track_caller]
fn namespace(pid: i32, kind: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

/// Runs a command out of a line of shell that has prepared something for it. The line ends in `exec "$@"`.
fn prepared(prepare: &str, command: &Command, around: &[&str]) -> Output {
    let mut all = around.iter().copied().chain(["sh", "-c", prepare, "sh"]);
    let mut outer = Command::new(all.next().unwrap());
    outer.args(all).arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
    let output = outer.output().unwrap();
    Output {
        code: output.status.code().unwrap(),
        signal: None,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// As [`prepared`], in a mount namespace of its own: nothing that the line mounts reaches the machine.
fn in_private_mounts(prepare: &str, command: &Command) -> Output {
    prepared(prepare, command, &["unshare", "--mount", "--propagation", "private"])
}
