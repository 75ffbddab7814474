//! The life of a group: joining, freezing, killing, counting, removing.

use std::path::Path;
use std::time::Duration;

use moat_linux::shared::Counters;
use moat_sandbox::cgroup::{self, Layout, Operation};

use crate::{apply, directories, file_of, make, plan, run_in, sleep_for_long, spin};

pub(crate) fn join_and_remove(layout: &Layout, path: &str) {
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

pub(crate) fn freeze_thaw_kill(layout: &Layout, path: &str) {
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

pub(crate) fn statistics(layout: &Layout, path: &str) {
    let group = make(layout, path, "{}");
    let mut worker = run_in(&group.state, || spin(Duration::from_millis(60)));
    worker.wait();
    let _child = run_in(&group.state, sleep_for_long);
    let stats = group.state.stats().expect("statistics");
    assert!(stats.cpu.usage.total > 1_000_000, "{:?}", stats.cpu);
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

pub(crate) fn groups_in_use_are_refused(layout: &Layout, path: &str) {
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

pub(crate) fn groups_below(layout: &Layout, path: &str) {
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
    assert_eq!(group.state.around(child.pid).expect("its group").unified, below.unified);
    assert_eq!(group.state.around(1).expect("its group"), group.state);
    let busy = group.state.remove().expect_err("a group with a process").to_string();
    assert!(busy.contains("still holds 1 processes"), "{busy}");
}

pub(crate) fn parents_with_processes(layout: &Layout, path: &str) {
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
