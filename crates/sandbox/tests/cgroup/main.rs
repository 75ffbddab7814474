//! Groups on the real kernel, in whatever layout it has: as root on this machine and in the lab.
//!
//! The cases run one after the other in the main thread, because they fork. Each makes groups under a name of its
//! own and removes them, also when it fails. `cargo test --test cgroup -- --ignored` prints what things cost.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program with its own main"
)]

mod life;
mod limits;
mod measure;
mod rootless;

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use moat_linux::process::{self, Clone3, Forked};
use moat_linux::shared::Counters;
use moat_model::oci;
use moat_sandbox::cgroup::{self, CgroupState, Layout, Operation};
use rustix::process::WaitStatus;

type Case = (&'static str, fn(&Layout, &str));

const CASES: [Case; 15] = [
    ("join_and_remove", life::join_and_remove),
    ("memory_limit_holds", limits::memory_limit_holds),
    ("pids_limit_holds", limits::pids_limit_holds),
    ("cpu_limit_holds", limits::cpu_limit_holds),
    ("devices_are_filtered", limits::devices_are_filtered),
    ("freeze_thaw_kill", life::freeze_thaw_kill),
    ("update_in_any_order", limits::update_in_any_order),
    ("statistics", life::statistics),
    ("groups_in_use_are_refused", life::groups_in_use_are_refused),
    ("groups_below", life::groups_below),
    ("missing_files_are_named", limits::missing_files_are_named),
    ("parents_with_processes", life::parents_with_processes),
    ("io_limit_holds", limits::io_limit_holds),
    ("rootless", rootless::rootless),
    ("measure", measure::measure),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for (kind, layout) in layouts() {
        for (name, case) in CASES {
            let layout = layout.clone();
            let perform = move || {
                let controllers = Controllers::saved();
                let path = format!("/moat-test-{}-{name}", std::process::id());
                let result = catch_unwind(AssertUnwindSafe(|| case(&layout, &path)));
                controllers.restore();
                result.map_err(|_| Failed::without_message())
            };
            // It asserts nothing: it prints what things cost.
            let only_named = name == "measure";
            trials.push(Trial::test(format!("{kind}::{name}"), perform).with_ignored_flag(only_named));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What the root of cgroup2 gives to its children: plans enable more, and the machine gets back what it had.
struct Controllers(Option<(PathBuf, String)>);

impl Controllers {
    fn saved() -> Self {
        let layout = cgroup::detect().expect("the host's layout");
        let control = layout.unified().map(|unified| unified.mount.join("cgroup.subtree_control"));
        Self(control.map(|file| (file.clone(), std::fs::read_to_string(file).expect("its controllers"))))
    }

    fn restore(&self) {
        let Some((file, before)) = &self.0 else { return };
        let now = std::fs::read_to_string(file).expect("its controllers");
        for name in now.split_whitespace().filter(|name| !before.split_whitespace().any(|had| had == *name)) {
            if let Err(error) = std::fs::write(file, format!("-{name}")) {
                println!("left enabled: {name}: {error}");
            }
        }
    }
}

/// The host's layout, and the parts of a hybrid one by themselves.
fn layouts() -> Vec<(&'static str, Layout)> {
    let layout = cgroup::detect().expect("the host's layout");
    match &layout {
        Layout::Unified(_) => vec![("v2", layout)],
        Layout::Legacy { hierarchies, unified: Some(unified) } => {
            let v1 = Layout::Legacy { hierarchies: hierarchies.clone(), unified: None };
            let v2 = Layout::Unified(unified.clone());
            vec![("hybrid", layout), ("v1", v1), ("v2", v2)]
        }
        Layout::Legacy { .. } => vec![("v1", layout)],
        Layout::None => panic!("this host has no cgroups to test with"),
    }
}

/// A group that is killed and removed at the end.
struct Group {
    state: CgroupState,
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = self.state.kill_all().and_then(|()| self.state.remove());
        if let Err(error) = gone {
            println!("left behind: {error}");
        }
    }
}

fn resources(json: &str) -> oci::Resources {
    serde_json::from_str(json).expect("resources")
}

fn plan(layout: &Layout, path: &str, json: &str) -> (CgroupState, Vec<Operation>) {
    cgroup::plan(layout, path, "box", Some(&resources(json)), false).expect("a plan")
}

fn apply(operations: &[Operation]) {
    for operation in operations {
        operation.apply().unwrap_or_else(|error| panic!("{operation}: {error} {:?}", error.hint_text()));
    }
}

fn make(layout: &Layout, path: &str, json: &str) -> Group {
    let (state, operations) = plan(layout, path, json);
    let group = Group { state };
    apply(&operations);
    group
}

/// A forked process; killed and reaped at the end.
struct Child {
    pid: i32,
    reaped: bool,
}

impl Child {
    fn wait(&mut self) -> WaitStatus {
        self.reaped = true;
        process::wait(self.pid, true).expect("wait").expect("a status")
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if process::wait(self.pid, false).expect("wait").is_some() {
                self.reaped = true;
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            drop(process::kill(self.pid, 9));
            drop(process::wait(self.pid, true));
        }
    }
}

/// Runs `work` in a process of the group, and returns when it is inside.
fn run_in(state: &CgroupState, work: impl FnOnce() -> i32) -> Child {
    let unified = state.open_unified().expect("the v2 group");
    let tasks = state.open_legacy().expect("the v1 groups");
    let inside = Counters::new(1).expect("a shared page");
    let options = Clone3 { cgroup: unified.as_ref().map(AsFd::as_fd), ..Clone3::default() };
    match process::fork(options).expect("a child") {
        Forked::Child => {
            let code = match tasks.join() {
                Ok(()) => {
                    inside.set(0, 1);
                    work()
                }
                Err(error) => {
                    println!("{error}");
                    99
                }
            };
            std::process::exit(code)
        }
        Forked::Parent(pid, _) => {
            let mut child = Child { pid, reaped: false };
            while inside.get(0) == 0 {
                assert!(!child.ends_within(Duration::from_millis(1)), "the child could not join");
            }
            child
        }
    }
}

fn sleep_for_long() -> i32 {
    std::thread::sleep(Duration::from_secs(60));
    0
}

fn spin(duration: Duration) -> i32 {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    0
}

fn directories(state: &CgroupState) -> Vec<&Path> {
    state.legacy.iter().chain(&state.unified).map(|group| group.directory.as_path()).collect()
}

/// The file of a controller's group, on v1 or v2.
fn file_of(state: &CgroupState, controller: &str, v1: &str, v2: &str) -> Option<PathBuf> {
    let has = |group: &&cgroup::Group| group.controllers.iter().any(|name| name == controller);
    let legacy = state.legacy.iter().find(has).map(|group| group.directory.join(v1));
    legacy.or_else(|| state.unified.iter().find(has).map(|group| group.directory.join(v2)))
}

/// Says that a layout has no such controller, which is told and no failure: cgroup2 of a hybrid host has few.
fn lacks(layout: &Layout, controller: &str, json: &str) -> bool {
    let unified = layout.unified().is_some_and(|one| one.controllers.iter().any(|name| name == controller));
    let legacy = layout.hierarchies().iter().any(|one| one.controllers.iter().any(|name| name == controller));
    if unified || legacy {
        return false;
    }
    let refused = cgroup::plan(layout, "/moat-test", "box", Some(&resources(json)), false);
    let sentence = refused.expect_err("a limit without its controller").to_string();
    assert!(sentence.contains(&format!("the cgroup controller {controller}")), "{sentence}");
    println!("     no controller {controller} here: {sentence}");
    true
}
