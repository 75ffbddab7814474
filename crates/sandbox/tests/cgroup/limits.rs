//! Limits: they hold, change in any order, and name what is missing.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moat_linux::process::{self, Clone3, Forked};
use moat_sandbox::cgroup::Layout;

use crate::{Group, apply, file_of, lacks, make, plan, resources, run_in, sleep_for_long, spin};

pub(crate) fn memory_limit_holds(layout: &Layout, path: &str) {
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

pub(crate) fn pids_limit_holds(layout: &Layout, path: &str) {
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

pub(crate) fn cpu_limit_holds(layout: &Layout, path: &str) {
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

pub(crate) const NULL_ONLY: &str = r#"{"devices": [{"allow": false},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "w"},
    {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}]}"#;

pub(crate) fn devices_are_filtered(layout: &Layout, path: &str) {
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

pub(crate) fn update_in_any_order(layout: &Layout, path: &str) {
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

pub(crate) fn missing_files_are_named(layout: &Layout, path: &str) {
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

/// A place on a real disk with 2 MiB to read, and the number of the disk: a file of this test where its folder is on
/// one, else the disk itself, which not every machine lets its root open.
fn disk() -> Option<(String, PathBuf)> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moat-test-disk");
    if std::fs::write(&file, vec![7_u8; 2 << 20]).is_ok() {
        let written = std::fs::File::open(&file).expect("the file");
        written.sync_all().expect("on the disk");
        let device = written.metadata().expect("its disk").dev();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        if Path::new("/sys/dev/block").join(&number).exists() {
            return Some((number, file));
        }
    }
    let number = std::fs::read_to_string("/sys/block/vda/dev").ok()?;
    Some((number.trim().to_owned(), PathBuf::from("/dev/vda")))
}

/// Reads 2 MiB of the disk past the page cache.
fn read_disk(path: &Path) -> i32 {
    use rustix::fs::{Mode, OFlags};
    let Ok(fd) = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()) else { return 1 };
    let mut memory = vec![0_u8; 132 << 10];
    let start = memory.as_ptr().align_offset(4096);
    let Some(piece) = memory.get_mut(start..start + (128 << 10)) else { return 2 };
    for _ in 0..16 {
        if rustix::io::read(&fd, &mut *piece).is_err() {
            return 3;
        }
    }
    0
}

pub(crate) fn io_limit_holds(layout: &Layout, path: &str) {
    let Some((number, device)) = disk() else { return println!("     this machine has no disk") };
    let (major, minor) = number.split_once(':').expect("major:minor");
    let json = format!(
        r#"{{"blockIO": {{"throttleReadBpsDevice": [{{"major": {major}, "minor": {minor}, "rate": 1048576}}]}}}}"#
    );
    let controller = if layout.hierarchies().is_empty() { "io" } else { "blkio" };
    if lacks(layout, controller, &json) {
        return;
    }
    let group = make(layout, path, &json);
    let began = Instant::now();
    let mut child = run_in(&group.state, || read_disk(&device));
    assert_eq!(child.wait().exit_status(), Some(0));
    // 2 MiB at 1 MiB a second; the first piece is free, and slices are not exact.
    let seconds = began.elapsed().as_secs_f64();
    assert!((1.5..4.0).contains(&seconds), "{seconds} s");
    let stats = group.state.stats().expect("statistics").blkio;
    let read = stats.io_service_bytes_recursive.iter().filter(|entry| entry.op == "Read");
    assert_eq!(read.map(|entry| entry.value).sum::<u64>(), 2 << 20, "{stats:?}");
}
