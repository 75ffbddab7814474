//! CVE-2024-21626: a descriptor of the host's in the container, or a working directory behind one.
//!
//! The runtime's caller leaks descriptors of the host's root folder, low and high, as careless shells do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use moat_tests::{Bundle, Runtime};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use serde_json::json;

const SECRET: &str = "a secret of the host";

/// Descriptors of the host's root that every program this test starts inherits, one of them as the last
/// that [`working_directories`] tries.
fn leak() -> Vec<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root = rustix::fs::open("/", flags, Mode::empty()).unwrap();
    let high = rustix::io::fcntl_dupfd_cloexec(&root, 63).unwrap();
    for fd in [root.as_fd(), high.as_fd()] {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
    }
    vec![root, high]
}

fn canary() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("canary"), SECRET).unwrap();
    folder
}

fn text(mut command: Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The listing has the descriptor of the listed folder, which is its own.
const LIST: &[&str] = &["/bin/ls", "/proc/self/fd"];

#[track_caller]
fn only_the_standard_ones(listing: &str) {
    assert_eq!(listing.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn run_leaks_no_descriptor() {
    let _leaked = leak();
    let runtime = Runtime::new();
    only_the_standard_ones(runtime.run(&Bundle::new(LIST)).success());
}

#[test]
fn create_leaks_no_descriptor() {
    let _leaked = leak();
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(LIST));
    container.wait();
    only_the_standard_ones(&container.stdout());
}

#[test]
fn exec_leaks_no_descriptor() {
    let _leaked = leak();
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000000"]));
    only_the_standard_ones(container.exec(LIST).success());
    let with_terminal = container.exec_with(&["--tty"], LIST);
    only_the_standard_ones(with_terminal.success());
}

#[test]
fn init_leaks_no_descriptor() {
    let _leaked = leak();
    let runtime = Runtime::new();
    let container_fds = "ls -l /proc/1/fd | awk 'NR > 1 { print $11 }'";
    let mut bundle = Bundle::shell(container_fds);
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_PTRACE"]));
    }
    let output = runtime.run_with(&bundle, &["--init"]);
    let listing = output.success();
    assert!(listing.lines().count() >= 3, "{listing}");
    let known = |line: &str| {
        ["/tmp/", "/dev/null", "anon_inode:[signalfd]", "(", "pipe:"]
            .iter()
            .any(|known| line.starts_with(known))
    };
    assert!(listing.lines().all(|line| known(line) && line != "/"), "{listing}");
}

/// What shows a folder of the host's, whatever the working directory is.
fn peek(canary: &Path) -> String {
    let path = canary.join("canary");
    let path = path.display();
    format!("cat .{path}; cat ../../../../../../../..{path}; cat /proc/self/cwd{path}")
}

#[test]
fn no_working_directory_shows_the_host_to_run() {
    let _leaked = leak();
    let canary = canary();
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(&peek(canary.path()));
    for number in 0..64 {
        for below in ["", "/..", "/tmp/.."] {
            let cwd = format!("/proc/self/fd/{number}{below}");
            bundle.set("/process/cwd", json!(cwd));
            let told = text(runtime.build("run", &bundle, &[], &runtime.id()));
            assert!(!told.contains(SECRET), "{cwd}: {told}");
        }
    }
}

#[test]
fn no_working_directory_shows_the_host_to_exec() {
    let _leaked = leak();
    let canary = canary();
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000000"]));
    let peek = peek(canary.path());
    for number in 0..64 {
        let cwd = format!("/proc/self/fd/{number}");
        let told = text(container.exec_command(&["--cwd", &cwd], &["/bin/sh", "-c", &peek]));
        assert!(!told.contains(SECRET), "{cwd}: {told}");
    }
}
