//! Filters that no longer fit the program: a thread without one, or a call that is missed or not noticed.
//!
//! The tests of `machine` drive every device under the filters. Here: each thread of a running machine has one
//! and can not get more privileges, and a call that is not on the list ends the program and is named.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use moat_vmm::isolation::{self, Thread};

use super::hands::{Do, Folder, Machine};

/// The value of a line of /proc/PID/task/TID/status.
fn line(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn each_thread_of_a_running_machine_has_a_filter() {
    let folder = Folder::new();
    let api = folder.text("api");
    let disk = folder.disk("disk", 1 << 20);
    let machine = Machine::new(&folder, &["--cpus", "3", "--disk", &disk, "--api", &api]);
    machine.run(Do::Read32, 0xd000_0000, 0);
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", machine.child.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let name = line(&status, "Name");
        assert_eq!(line(&status, "Seccomp"), "2", "{name}");
        assert_eq!(line(&status, "NoNewPrivs"), "1", "{name}");
        names.push(name);
    }
    names.sort();
    // The kernel's own workers of io_uring and KVM have no code of the program's.
    names.retain(|name| !name.starts_with("iou-") && !name.starts_with("kvm-"));
    assert_eq!(names, ["moat-vmm", "vcpu0", "vcpu1", "vcpu2"]);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

/// Set for the process that is to be ended.
const VICTIM: &str = "MOAT_SECCOMP_VICTIM";

/// Runs this test once more, as a process that is to be ended by what it does.
fn victim(test: &str, what: &str) -> (Option<i32>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(VICTIM, what).output().unwrap();
    assert_eq!(output.status.signal(), None);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A thread's filter, and a call that it forbids.
#[allow(unsafe_code, reason = "asks for a mapping, which must be refused")]
fn forbidden(what: &str) {
    let thread = if what.starts_with("main") { Thread::Main } else { Thread::Processor };
    isolation::enter(&isolation::filter(thread).unwrap()).unwrap();
    match what {
        "main-execve" => drop(std::os::unix::process::CommandExt::exec(&mut Command::new("/bin/true"))),
        "main-ptrace" => drop(rustix::process::getppid()),
        "processor-open" => drop(std::fs::File::open("/etc/passwd")),
        "processor-internet" => drop(std::net::TcpListener::bind("127.0.0.1:0")),
        "processor-executable" => {
            // SAFETY: a mapping at an address that the kernel chooses, which nobody uses.
            let _ = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    4096,
                    rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::EXEC,
                    rustix::mm::MapFlags::PRIVATE,
                )
            };
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_call_that_is_not_on_the_list_is_named() {
    if let Ok(what) = std::env::var(VICTIM) {
        forbidden(&what);
        std::process::exit(0);
    }
    for (what, call) in [
        ("main-execve", "execve"),
        ("main-ptrace", "getppid"),
        ("processor-open", "openat"),
        ("processor-internet", "socket"),
        ("processor-executable", "mmap"),
    ] {
        let (code, errors) = victim("seccomp_drift::a_call_that_is_not_on_the_list_is_named", what);
        assert_eq!(code, Some(moat_linux::seccomp::TRAPPED), "{what}: {errors}");
        assert!(errors.contains("a system call that its seccomp filter forbids: "), "{errors}");
        assert!(errors.contains(call), "{what}: {errors}");
    }
}
