//! `kill -9` of the runtime at any step: what it leaves, `delete --force` removes whole.
//!
//! The hidden flag `--stop-after` has the runtime stop itself after its n-th step, or after a step of
//! init's; the test waits for that stop and kills it there. Every n is tried, until the command completes.
//! A runtime whose init works in its memory sleeps and can not stop: there init stops, and changes its name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can not go on fails, and says where")]

use std::process::{Command, Stdio};
use std::time::Duration;

use moat_tests::{Bundle, Runtime, wait_until};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;

/// How a command that may stop itself ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It stopped, and was killed there.
    Killed,
    Completed(i32),
}

/// Whether an init of this process's has stopped, and says so by its name.
fn has_stopped_init(pid: u32) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().any(|child| {
        std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "stopped")
    })
}

#[expect(clippy::zombie_processes, reason = "waitpid(2) is called, with flags that `wait` has not")]
/// Runs a command; kills it when it has stopped itself.
fn kill_when_stopped(mut command: Command) -> End {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    loop {
        match waitpid(Some(pid), WaitOptions::UNTRACED | WaitOptions::NOHANG).unwrap() {
            Some((_, status)) if status.stopped() => break,
            Some((_, status)) => return End::Completed(status.exit_status().unwrap()),
            None if has_stopped_init(child.id()) => break,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    kill_process(pid, Signal::KILL).unwrap();
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
    End::Killed
}

fn has_processes(runtime: &Runtime, id: &str) -> bool {
    runtime.leftovers(id).iter().any(|line| line.starts_with("process "))
}

/// The word of `state`, if it has one.
fn status(runtime: &Runtime, id: &str) -> Option<String> {
    let answer = runtime.call(&["state", id]);
    let state: serde_json::Value = serde_json::from_str(&answer.stdout).ok()?;
    Some(state["status"].as_str()?.to_owned())
}

/// Nothing of a half-built container lives on; a whole one may.
fn await_whole_or_dead(runtime: &Runtime, id: &str) {
    wait_until(|| {
        let whole = matches!(status(runtime, id).as_deref(), Some("created" | "running"));
        whole || !has_processes(runtime, id)
    });
}

#[track_caller]
fn delete_whole(runtime: &Runtime, id: &str, when: &str) {
    let deleted = runtime.call(&["delete", "--force", id]);
    assert_eq!(deleted.code, 0, "{when}: {deleted:?}");
    assert_eq!(runtime.leftovers(id), Vec::<String>::new(), "{when}");
}

/// Kills `verb` after each of the runtime's steps; gives how many there are.
fn kill_at_runtime_steps(verb: &str, bundle: &Bundle, flags: &[&str]) -> usize {
    let runtime = Runtime::new();
    for step in 1.. {
        let (id, stop) = (runtime.id(), format!("runtime:{step}"));
        let flags = [flags, &["--stop-after", &stop]].concat();
        let end = kill_when_stopped(runtime.build(verb, bundle, &flags, &id));
        if end == End::Killed {
            await_whole_or_dead(&runtime, &id);
        }
        delete_whole(&runtime, &id, &format!("{verb} {stop}: {end:?}"));
        if end == End::Completed(0) {
            return step - 1;
        }
        assert_eq!(end, End::Killed, "{verb} {stop}");
    }
    unreachable!()
}

/// Kills `verb` after each of init's steps; gives after how many the runtime could be stopped.
fn kill_at_init_steps(verb: &str, bundle: &Bundle, flags: &[&str]) -> usize {
    let runtime = Runtime::new();
    let plan = runtime.build(verb, bundle, &["--dry-run"], "planned").output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    let steps: Vec<&str> = plan
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .filter(|words| words.get(1) == Some(&"init"))
        .map(|words| words[0])
        .collect();
    let mut killed = 0;
    for step in &steps {
        let (id, stop) = (runtime.id(), format!("init:{step}"));
        let flags = [flags, &["--stop-after", &stop]].concat();
        let end = kill_when_stopped(runtime.build(verb, bundle, &flags, &id));
        await_whole_or_dead(&runtime, &id);
        delete_whole(&runtime, &id, &format!("{verb} {stop}: {end:?}"));
        killed += usize::from(end == End::Killed);
    }
    // Once it waits for `start` nobody can be told; execve(2) is no step to stop after.
    assert!(killed + 4 > steps.len(), "{verb}: stopped after {killed} of {steps:?}");
    killed
}

fn sleeper() -> Bundle {
    Bundle::new(&["/bin/sleep", "1000"])
}

/// A user namespace, hooks in both places, bind mounts that the runtime opens, a namespace that is joined.
fn elaborate() -> Bundle {
    let mut bundle = sleeper();
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.push("/linux/namespaces", json!({ "type": "user" }));
    bundle.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    let hook = json!([{ "path": "/bin/true" }]);
    bundle.set("/hooks", json!({ "createRuntime": hook, "createContainer": hook, "poststop": hook }));
    bundle.push(
        "/mounts",
        json!({ "type": "bind", "source": "/tmp", "destination": "/tmp", "options": ["bind", "ro"] }),
    );
    bundle.retain_namespaces(|kind| kind != "uts").remove("/hostname");
    bundle.push("/linux/namespaces", json!({ "type": "uts", "path": "/proc/self/ns/uts" }));
    bundle
}

#[test]
fn create_is_killed_after_each_step_of_the_runtime() {
    assert!(kill_at_runtime_steps("create", &sleeper(), &[]) > 10);
}

#[test]
fn create_is_killed_after_each_step_of_init() {
    assert!(kill_at_init_steps("create", &sleeper(), &[]) > 30);
}

#[test]
fn create_of_an_elaborate_container_is_killed_after_each_step_of_the_runtime() {
    assert!(kill_at_runtime_steps("create", &elaborate(), &[]) > 10);
}

#[test]
fn create_of_an_elaborate_container_is_killed_after_each_step_of_init() {
    assert!(kill_at_init_steps("create", &elaborate(), &[]) > 30);
}

#[test]
fn run_is_killed_after_each_step_of_the_runtime() {
    assert!(kill_at_runtime_steps("run", &sleeper(), &["--detach"]) > 10);
}

#[test]
fn run_is_killed_after_each_step_of_init() {
    assert!(kill_at_init_steps("run", &sleeper(), &["--detach"]) > 30);
}

/// Whatever `start` had done: the container can be started, or runs.
#[test]
fn start_is_killed_after_each_step() {
    let runtime = Runtime::new();
    let bundle = sleeper();
    for step in 1.. {
        let container = runtime.create(&bundle);
        let stop = format!("runtime:{step}");
        let end = kill_when_stopped(runtime.command(&["start", "--stop-after", &stop, container.id()]));
        // The program may be just about to run.
        wait_until(|| match container.status().as_str() {
            "running" => true,
            "created" => container.start().code == 0,
            _ => panic!("{stop}: {:?}", container.state()),
        });
        assert_eq!(container.exec(&["true"]).code, 0, "{stop}");
        container.delete();
        if end != End::Killed {
            assert_eq!(end, End::Completed(0));
            assert!(step > 3, "start has only {step} steps");
            return;
        }
    }
}

#[test]
fn delete_is_killed_after_each_step() {
    let runtime = Runtime::new();
    let bundle = sleeper();
    for (running, flags) in [(true, ["--force"].as_slice()), (false, &[])] {
        for step in 1.. {
            let container = if running { runtime.start(&bundle) } else { runtime.create(&bundle) };
            let stop = format!("runtime:{step}");
            let args = [&["delete", "--stop-after", &stop], flags, &[container.id()]].concat();
            let end = kill_when_stopped(runtime.command(&args));
            delete_whole(&runtime, container.id(), &format!("{args:?}: {end:?}"));
            if end != End::Killed {
                assert_eq!(end, End::Completed(0));
                assert!(step > 3, "delete has only {step} steps");
                break;
            }
        }
    }
}

/// Between the steps, too: at moments that nobody chose. The seed is fixed, the machine is not.
#[test]
fn create_is_killed_at_random_moments() {
    let runtime = Runtime::new();
    let bundle = elaborate();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..60 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let id = runtime.id();
        let mut command = runtime.build("create", &bundle, &[], &id);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let delay = Duration::from_micros(random % 30_000);
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        await_whole_or_dead(&runtime, &id);
        delete_whole(&runtime, &id, &format!("create killed after {delay:?}"));
    }
}
