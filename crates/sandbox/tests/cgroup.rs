//! Groups on the real kernel, in whatever layout it has: as root on this machine and in the lab.
//!
//! The cases run one after the other in one thread, because they fork. Each makes groups under a name of its
//! own and removes them, also when it fails. `cargo test --test cgroup NAME` runs those whose name contains NAME;
//! `measure` runs only when it is named.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program with its own main"
)]

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use moat_linux::process::{self, Clone3, Forked};
use moat_linux::shared::Counters;
use moat_model::oci;
use moat_sandbox::cgroup::{self, CgroupState, Layout, Operation};
use rustix::process::WaitStatus;

type Case = (&'static str, fn(&Layout, &str));

const CASES: [Case; 13] = [
    ("join_and_remove", join_and_remove),
    ("memory_limit_holds", memory_limit_holds),
    ("pids_limit_holds", pids_limit_holds),
    ("cpu_limit_holds", cpu_limit_holds),
    ("devices_are_filtered", devices_are_filtered),
    ("freeze_thaw_kill", freeze_thaw_kill),
    ("update_in_any_order", update_in_any_order),
    ("statistics", statistics),
    ("groups_in_use_are_refused", groups_in_use_are_refused),
    ("groups_below", groups_below),
    ("missing_files_are_named", missing_files_are_named),
    ("parents_with_processes", parents_with_processes),
    ("measure", measure),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0;
    for (kind, layout) in layouts() {
        for (name, case) in CASES {
            let named = wanted.iter().any(|wanted| name.contains(wanted.as_str()));
            let runs = if name == "measure" { named } else { named || wanted.is_empty() };
            if !runs {
                continue;
            }
            let path = format!("/moat-test-{}-{name}", std::process::id());
            match catch_unwind(AssertUnwindSafe(|| case(&layout, &path))) {
                Ok(()) => println!("test {kind}::{name} ... ok"),
                Err(_) => {
                    println!("test {kind}::{name} ... FAILED");
                    failed += 1;
                }
            }
        }
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    let entrance = state.entrance().expect("the ways in");
    let inside = Counters::new(1).expect("a shared page");
    let options = Clone3 { cgroup: entrance.directory(), ..Clone3::default() };
    match process::fork(options).expect("a child") {
        Forked::Child => {
            let code = match entrance.join_legacy() {
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

fn join_and_remove(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let mut child = run_in(&group.state, sleep_for_long);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid)).expect("its groups");
    let joined = groups.lines().filter(|line| line.ends_with(path)).count();
    assert_eq!(joined, directories(&group.state).len(), "{groups}");
    assert_eq!(group.state.pids().expect("pids"), [child.pid]);
    group.state.kill_all().expect("kill");
    assert!(child.ends_within(Duration::from_secs(2)));
    group.state.remove().expect("remove");
    for directory in directories(&group.state) {
        assert!(!directory.exists(), "{}", directory.display());
    }
    group.state.remove().expect("removing what is gone");
}

fn memory_limit_holds(layout: &Layout, path: &str) {
    let limit = 30 << 20;
    let json = format!(r#"{{"memory": {{"limit": {limit}, "swap": {limit}}}}}"#);
    if lacks(layout, "memory", &json) {
        return;
    }
    let group = make(layout, path, &json);
    let watch = group.state.oom_watch().expect("a watch").expect("a memory controller");
    assert_eq!(group.state.oom().expect("kills").kills, 0);
    let mut child = run_in(&group.state, || {
        let mut memory = Vec::new();
        for _ in 0..100 {
            memory.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
        i32::from(memory.len() != 100)
    });
    assert_eq!(child.wait().terminating_signal(), Some(9));
    let mut ready = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ready, Some(&timeout)).expect("poll"), 1);
    watch.drain();
    let oom = group.state.oom().expect("kills");
    assert_eq!(oom.kills, 1);
    let victim = oom.victims.last().expect("a record of the kernel");
    assert_eq!(victim.pid, child.pid, "{oom:?}");
    assert!(victim.limit_of.ends_with(path), "{oom:?}");
    assert_eq!(group.state.stats().expect("statistics").memory.event_count.oom_kill, 1);
}

fn pids_limit_holds(layout: &Layout, path: &str) {
    let json = r#"{"pids": {"limit": 4}}"#;
    if lacks(layout, "pids", json) {
        return;
    }
    let group = make(layout, path, json);
    let mut child = run_in(&group.state, || {
        let mut made = 0;
        while made < 10 {
            match process::fork(Clone3::default()) {
                Ok(Forked::Child) => std::process::exit(sleep_for_long()),
                Ok(Forked::Parent(..)) => made += 1,
                Err(_) => break,
            }
        }
        made
    });
    assert_eq!(child.wait().exit_status(), Some(3));
    assert_eq!(group.state.pids().expect("pids").len(), 3);
    assert_eq!(group.state.stats().expect("statistics").pids.limit, 4);
}

fn cpu_limit_holds(layout: &Layout, path: &str) {
    let json = r#"{"cpu": {"quota": 20000, "period": 100000}}"#;
    if lacks(layout, "cpu", json) {
        return;
    }
    let group = make(layout, path, json);
    let began = Instant::now();
    run_in(&group.state, || spin(Duration::from_secs(2))).wait();
    let stats = group.state.stats().expect("statistics").cpu;
    let share = stats.usage.total as f64 / began.elapsed().as_nanos() as f64;
    // Other work on the machine can only make it less.
    assert!((0.1..=0.21).contains(&share), "{share} of a CPU: {stats:?}");
    assert!(stats.throttling.throttled_periods > 10, "{stats:?}");
}

fn can_open(path: &str, writing: bool) -> bool {
    std::fs::OpenOptions::new().read(true).write(writing).open(path).is_ok()
}

const NULL_ONLY: &str = r#"{"devices": [{"allow": false},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "w"},
    {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}]}"#;

fn devices_are_filtered(layout: &Layout, path: &str) {
    let group = make(layout, path, NULL_ONLY);
    let opens = || {
        let opened = [can_open("/dev/null", true), can_open("/dev/zero", false), can_open("/dev/zero", true)];
        let full = can_open("/dev/full", false);
        opened.iter().chain([&full]).fold(0, |bits, open| bits << 1 | i32::from(*open))
    };
    assert_eq!(run_in(&group.state, opens).wait().exit_status(), Some(0b1100));
    // An update stands in place of what was there.
    let update =
        resources(r#"{"devices": [{"allow": true}, {"allow": false, "type": "c", "major": 1, "minor": 3}]}"#);
    apply(&group.state.plan_update(&update).expect("an update"));
    assert_eq!(run_in(&group.state, opens).wait().exit_status(), Some(0b0111));
    if let (Some(unified), true) = (&group.state.unified, group.state.legacy.is_empty()) {
        let directory = std::fs::File::open(&unified.directory).expect("the group");
        let attached = moat_linux::bpf::attached_device_filters(directory.as_fd()).expect("its filters");
        assert_eq!(attached.len(), 1);
    }
}

fn freeze_thaw_kill(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let counters = Counters::new(1).expect("a shared page");
    let count = || -> i32 {
        loop {
            counters.set(0, counters.get(0) + 1);
        }
    };
    let mut child = run_in(&group.state, count);
    let moves = || {
        let before = counters.get(0);
        std::thread::sleep(Duration::from_millis(50));
        counters.get(0) != before
    };
    assert!(moves());
    assert!(!group.state.is_frozen().expect("state"));
    group.state.freeze().expect("freeze");
    assert!(group.state.is_frozen().expect("state"));
    assert!(!moves());
    group.state.thaw().expect("thaw");
    assert!(!group.state.is_frozen().expect("state"));
    assert!(moves());
    group.state.freeze().expect("freeze");
    group.state.kill_all().expect("kill");
    assert!(child.ends_within(Duration::from_secs(2)), "a frozen process was not killed");
}

fn update_in_any_order(layout: &Layout, path: &str) {
    let json =
        r#"{"memory": {"limit": 67108864, "swap": 67108864}, "cpu": {"quota": 50000, "period": 100000}}"#;
    if lacks(layout, "memory", r#"{"memory": {"limit": 1}}"#) {
        return;
    }
    let group = make(layout, path, json);
    let state = &group.state;
    let update = |json: &str| apply(&state.plan_update(&resources(json)).expect("an update"));
    let read = |controller: &str, v1: &str, v2: &str| {
        let file = file_of(state, controller, v1, v2).expect("the controller");
        std::fs::read_to_string(file).expect("its file").trim().to_owned()
    };
    let memory = || read("memory", "memory.limit_in_bytes", "memory.max");
    // Up, down, and up again: v1 wants the one or the other first.
    for limit in [134_217_728_u64, 33_554_432, 100_663_296] {
        update(&format!(r#"{{"memory": {{"limit": {limit}, "swap": {limit}}}}}"#));
        assert_eq!(memory(), limit.to_string());
    }
    update(r#"{"memory": {"swap": 134217728}}"#);
    let swap = read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    assert_eq!(swap, if state.legacy.is_empty() { "33554432" } else { "134217728" });
    // Ten times the period, then less quota than the burst that is set.
    update(r#"{"cpu": {"period": 500000}}"#);
    update(r#"{"cpu": {"quota": 400000, "burst": 300000}}"#);
    update(r#"{"cpu": {"quota": 100000, "burst": 20000}}"#);
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("100000"));
    let period = read("cpu", "cpu.cfs_period_us", "cpu.max");
    assert_eq!(period.split(' ').next_back(), Some("500000"));
    update(r#"{"memory": {"limit": -1}, "cpu": {"quota": -1}}"#);
    let _child = run_in(state, sleep_for_long);
    let too_low = resources(r#"{"memory": {"limit": 1, "swap": 1, "checkBeforeUpdate": true}}"#);
    if state.legacy.is_empty() {
        let operations = state.plan_update(&too_low).expect("an update");
        let refused = operations.iter().find_map(|operation| operation.apply().err()).expect("a refusal");
        assert!(refused.to_string().contains("is below the"), "{refused}");
    }
}

fn statistics(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let mut worker = run_in(&group.state, || spin(Duration::from_millis(60)));
    worker.wait();
    let _child = run_in(&group.state, sleep_for_long);
    let stats = group.state.stats().expect("statistics");
    assert!(stats.cpu.usage.total > 30_000_000, "{:?}", stats.cpu);
    let has = |controller: &str| file_of(&group.state, controller, "", "").is_some();
    if has("memory") {
        assert!(
            stats.memory.usage.limit > 0 && stats.memory.raw.contains_key("pgfault"),
            "{:?}",
            stats.memory
        );
    }
    if has("pids") {
        assert_eq!((stats.pids.current, stats.pids.limit), (1, 0));
    }
    if has("cpuset") {
        assert!(!stats.cpuset.cpus.is_empty() && !stats.cpuset.mems.is_empty());
    }
    assert_eq!(
        stats.cpu.psi.is_some(),
        group.state.unified.is_some() && Path::new("/proc/pressure").exists()
    );
    let json = serde_json::to_value(&stats).expect("JSON");
    assert!(json["cpu"]["usage"]["total"].is_u64() && json["network_interfaces"].is_array());
}

fn groups_in_use_are_refused(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let mut child = run_in(&group.state, sleep_for_long);
    let (state, operations) = plan(layout, path, "{}");
    let first = operations.iter().position(|operation| operation.apply().is_err()).expect("a refusal");
    let refused = operations[first].apply().expect_err("a refusal").to_string();
    assert!(refused.ends_with("is in use by 1 processes"), "{refused}");
    // Cleaning up after the refusal leaves the other's group alone.
    let made = state.made_by(&operations[..first]);
    assert!(made.is_empty());
    state.remove_empty().expect("nothing empty");
    assert!(!child.ends_within(Duration::from_millis(20)));
    assert!(directories(&group.state).iter().all(|directory| directory.exists()));
    // An empty group that was left behind is taken.
    group.state.kill_all().expect("kill");
    child.wait();
    apply(&operations);
}

fn groups_below(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let below = group.state.below("one/two").expect("a path");
    for directory in directories(&below) {
        Operation::MakeDirectory {
            directory: directory.to_owned(),
            own: true,
            inherit_cpuset: directory.starts_with("/sys/fs/cgroup/cpuset"),
        }
        .apply()
        .expect("a group below");
    }
    let child = run_in(&below, sleep_for_long);
    assert_eq!(group.state.pids().expect("pids"), [child.pid]);
    let busy = group.state.remove().expect_err("a group with a process").to_string();
    assert!(busy.contains("still holds 1 processes"), "{busy}");
}

fn missing_files_are_named(layout: &Layout, path: &str) {
    let json = r#"{"hugepageLimits": [{"pageSize": "3MB", "limit": 3145728}]}"#;
    if lacks(layout, "hugetlb", json) {
        return;
    }
    let (state, operations) = plan(layout, path, json);
    let _group = Group { state };
    let refused = operations.iter().find_map(|operation| operation.apply().err()).expect("a refusal");
    assert!(refused.to_string().starts_with("linux.resources.hugepageLimits: openat("), "{refused}");
    assert_eq!(refused.hint_text(), Some("the kernel has no hugetlb.3MB.max"));
}

fn parents_with_processes(layout: &Layout, path: &str) {
    let Layout::Unified(unified) = layout else { return println!("     only cgroup2 alone knows this rule") };
    let bare = Layout::Unified(cgroup::Unified { controllers: Vec::new(), ..unified.clone() });
    let parent = make(&bare, path, "{}");
    let _child = run_in(&parent.state, sleep_for_long);
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]}"#;
    let (_, operations) = plan(layout, &format!("{path}/box"), json);
    let refused = operations.iter().find_map(|operation| operation.apply().err()).expect("a refusal");
    assert!(
        refused.to_string().contains("has processes of its own, so its children can not have"),
        "{refused}"
    );
    assert_eq!(refused.hint_text(), Some("choose a linux.cgroupsPath whose parent holds no processes"));
    // Without a limit the container goes without controllers, and the parent is left as it was.
    let below = make(layout, &format!("{path}/bare"), "{}");
    let _inside = run_in(&below.state, sleep_for_long);
    let kind = std::fs::read_to_string(directories(&parent.state)[0].join("cgroup.type")).expect("its type");
    assert_eq!(kind, "domain\n");
}

/// Numbers for the module's header: making, joining and removing a group; joining is measured after some quiet.
fn measure(layout: &Layout, path: &str) {
    let micros = |began: Instant| began.elapsed().as_micros();
    for round in 0..5 {
        let began = Instant::now();
        let layout_again = cgroup::detect().expect("the host's layout");
        let detected = micros(began);
        drop(layout_again);
        let began = Instant::now();
        let (state, operations) = plan(layout, path, NULL_ONLY);
        let planned = micros(began);
        let group = Group { state };
        let began = Instant::now();
        let times: Vec<String> = operations
            .iter()
            .map(|operation| {
                let began = Instant::now();
                operation.apply().expect("a step");
                format!("{} {}", micros(began), operation)
            })
            .collect();
        let made = micros(began);
        std::thread::sleep(Duration::from_millis(100));
        let joined = Counters::new(1).expect("a shared page");
        let entrance = group.state.entrance().expect("the ways in");
        let began = Instant::now();
        let options = Clone3 { cgroup: entrance.directory(), ..Clone3::default() };
        let Forked::Parent(pid, _) = process::fork(options).expect("a child") else {
            let began = Instant::now();
            entrance.join_legacy().expect("join");
            joined.set(0, micros(began) as u64);
            std::process::exit(0)
        };
        let forked = micros(began);
        process::wait(pid, true).expect("wait");
        std::thread::sleep(Duration::from_millis(100));
        let waited = Counters::new(1).expect("a shared page");
        let Forked::Parent(pid, _) = process::fork(Clone3::default()).expect("a child") else {
            let began = Instant::now();
            for directory in directories(&group.state) {
                std::fs::write(directory.join("cgroup.procs"), std::process::id().to_string()).expect("join");
            }
            waited.set(0, micros(began) as u64);
            std::process::exit(0)
        };
        process::wait(pid, true).expect("wait");
        let began = Instant::now();
        group.state.remove().expect("remove");
        println!(
            "detect {detected} us, plan {planned}, make {made}, fork {forked}, tasks {}, cgroup.procs {}, remove {}",
            joined.get(0),
            waited.get(0),
            micros(began)
        );
        if round == 4 {
            println!("{}", times.join("\n"));
        }
    }
}
