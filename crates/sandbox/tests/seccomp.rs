//! Filters on the real kernel: a child installs one, starts Python, and Python makes the calls.
#![allow(unsafe_code, reason = "a filter is installed between fork and exec")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use moat_linux::capability::Set;
use moat_model::oci::Seccomp;
use moat_sandbox::seccomp::{Filter, compile, default_profile, hand_over, native_architecture};

const SIGSYS: i32 = 31;

/// Not what is first in the path: that may be a script, whose shell makes calls of its own.
const PYTHON: &str = "/usr/bin/python3";

/// What every script starts with: a raw call that gives its result or the name of its error.
const PRELUDE: &str = r"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    result = libc.syscall(*map(ctypes.c_long, args))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result
";

fn filter(rules: &str) -> Filter {
    let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#);
    let config: Seccomp = serde_json::from_str(&json).unwrap();
    compile(&config).unwrap()
}

/// Python with a filter. Between fork and exec nothing is allocated unless something fails.
fn python(filter: Filter, script: &str, state: Option<(PathBuf, &'static str)>) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-I", "-S", "-c", &format!("{PRELUDE}{script}")]);
    // SAFETY: the child only makes system calls: prctl, seccomp and those that hand the listener over.
    unsafe {
        command.pre_exec(move || {
            moat_linux::process::set_no_new_privileges().map_err(std::io::Error::from)?;
            let listener = filter.install().map_err(std::io::Error::other)?;
            if let (Some(listener), Some((path, json))) = (listener, &state) {
                hand_over(path, json.as_bytes(), listener.as_fd()).map_err(std::io::Error::other)?;
            }
            Ok(())
        });
    }
    command
}

fn run(filter: Filter, script: &str) -> Output {
    python(filter, script, None).output().unwrap()
}

#[track_caller]
fn prints(filter: Filter, script: &str, expected: &str) {
    let output = run(filter, script);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.trim(), expected, "{errors}");
}

#[test]
fn errno_is_what_the_call_returns() {
    let rules = r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":122},
        {"names":["getppid"],"action":"SCMP_ACT_ERRNO"}"#;
    let script = "
try: os.mkdir('/tmp/moat-never')
except OSError as error: print(errno.errorcode[error.errno], call(110))
";
    prints(filter(rules), script, "EDQUOT EPERM");
}

#[test]
fn kill_and_trap_end_the_process_with_sigsys() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let output = run(
            filter(&format!(r#"{{"names":["getppid"],"action":"{action}"}}"#)),
            "print('before', flush=True); call(110); print('after')",
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "before", "{action}");
        assert_eq!(output.status.signal(), Some(SIGSYS), "{action}");
    }
}

#[test]
fn log_lets_the_call_through_and_trace_without_a_tracer_does_not() {
    let rules = r#"{"names":["getppid"],"action":"SCMP_ACT_LOG"},
        {"names":["getpgrp"],"action":"SCMP_ACT_TRACE","errnoRet":7}"#;
    prints(filter(rules), "print(call(110) == os.getppid(), call(111))", "True ENOSYS");
}

#[test]
fn arguments_are_compared_as_64_bits() {
    let arg = |index: u32, op: &str, value: u64, two: u64| {
        format!(r#"{{"index":{index},"op":"SCMP_CMP_{op}","value":{value},"valueTwo":{two}}}"#)
    };
    let rule = |name: &str, errno: u32, args: &[String]| {
        format!(
            r#"{{"names":["{name}"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno},"args":[{}]}}"#,
            args.join(",")
        )
    };
    let rules = [
        rule("getppid", 1, &[arg(0, "EQ", 0x1_0000_0002, 0)]),
        rule("getppid", 2, &[arg(1, "GT", 0xffff_ffff, 0), arg(2, "LE", 9, 0)]),
        rule("getppid", 3, &[arg(3, "MASKED_EQ", 0xf0_0000_000f, 0x50_0000_0003)]),
        rule("getppid", 4, &[arg(4, "NE", 0, 0), arg(4, "NE", 0, 0)]),
    ];
    let script = "
def ask(*args):
    result = call(110, *args, *([0] * (5 - len(args))))
    return result if isinstance(result, str) else 'ok'
print(ask(2), ask(0x100000002), ask(0, 0x100000000, 9), ask(0, 0x100000000, 10), ask(0, 0xffffffff, 9),
      ask(0, 0, 0, 0x5f000000a3), ask(0, 0, 0, 0x4f000000a3), ask(0, 0, 0, 0, 1 << 63))
";
    let errors = "ok EPERM ENOENT ok ok ESRCH ok EINTR";
    prints(filter(&rules.join(",")), script, errors);
}

#[test]
fn the_default_profile_runs_programs_and_guards_the_kernel() {
    let profile = default_profile(Set(0xa804_25fb), native_architecture(), (6, 1));
    // CLONE_NEWUSER, vsock, the kernel's cryptography, a mount, a call from the future.
    let script = "
import threading
thread = threading.Thread(target=print, args=['thread'])
thread.start(); thread.join()
if os.fork() == 0: os._exit(0)
os.wait()
def family(number):
    try: socket.socket(number, socket.SOCK_STREAM).close(); return 'ok'
    except OSError as error: return errno.errorcode[error.errno]
print(call(272, 0x10000000), family(40), family(38), family(1), call(165, 0, 0, 0, 0, 0), call(435, 0, 0), call(600))
";
    prints(compile(&profile).unwrap(), script, "thread\nEPERM EPERM EPERM ok EPERM ENOSYS ENOSYS");
}

#[test]
fn an_agent_answers_a_held_call() {
    let folder = std::env::temp_dir().join(format!("moat-seccomp-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("agent.sock");
    let mut agent = Command::new(PYTHON)
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp_agent.py")])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(said.next().unwrap(), "ready");
    let state = r#"{"ociVersion":"1.2.0","fds":["seccompFd"],"pid":1,"metadata":"m","state":{}}"#;
    let rules = r#"{"names":["getppid"],"action":"SCMP_ACT_NOTIFY"}"#;
    let output = python(filter(rules), "print(call(110))", Some((path, state))).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4711");
    assert_eq!(said.next().unwrap(), state);
    assert_eq!(said.next().unwrap(), "110");
    assert!(agent.wait().unwrap().success());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn an_agent_that_is_not_there_is_named() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = hand_over("/nowhere/agent.sock".as_ref(), b"{}", null.as_fd()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "seccomp: cannot hand the listener to /nowhere/agent.sock: connect(/nowhere/agent.sock): ENOENT"
    );
}

#[test]
fn the_kernel_knows_every_action() {
    for (name, value) in moat_sandbox::seccomp::ACTIONS {
        assert!(moat_linux::seccomp::action_available(value).unwrap(), "{name}");
    }
    let (notification, response, data) = moat_linux::seccomp::notification_sizes().unwrap();
    assert_eq!((notification, response, data), (80, 24, 64));
}
