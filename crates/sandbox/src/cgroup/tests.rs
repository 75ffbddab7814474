//! Plans as text.

use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn unified() -> Unified {
    Unified {
        mount: "/cg".into(),
        root: "/".into(),
        own: "/user/session".into(),
        controllers: words("cpuset cpu io memory hugetlb pids rdma misc"),
        writable: true,
    }
}

fn hybrid() -> Layout {
    let hierarchy = |names: &str| Hierarchy {
        mount: Path::new("/cg").join(names.replace(' ', ",")),
        root: "/".into(),
        own: "/own".into(),
        controllers: words(names),
        name: None,
        writable: true,
    };
    let named = Hierarchy {
        mount: "/cg/systemd".into(),
        controllers: Vec::new(),
        name: Some("systemd".into()),
        ..hierarchy("x")
    };
    let names = ["cpu cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];
    let hierarchies = names.into_iter().map(hierarchy).chain([named]).collect();
    let unified = Unified { mount: "/cg/unified".into(), controllers: words("hugetlb"), ..unified() };
    Layout::Legacy { hierarchies, unified: Some(unified) }
}

fn resources(json: &str) -> oci::Resources {
    serde_json::from_str(json).unwrap()
}

fn lines(operations: &[Operation]) -> Vec<String> {
    operations.iter().map(Operation::to_string).collect()
}

fn planned(layout: &Layout, json: &str) -> Vec<String> {
    let (_, operations) = plan(layout, "/a/box", "box", Some(&resources(json)), false).unwrap();
    lines(&operations)
}

fn refused(layout: &Layout, json: &str) -> String {
    plan(layout, "/box", "box", Some(&resources(json)), false).unwrap_err().to_string()
}

/// The limits of a plan without what makes the group.
fn limits(layout: &Layout, json: &str) -> Vec<String> {
    let lines = planned(layout, json);
    lines.into_iter().filter_map(|line| line.strip_prefix("set /cg/").map(str::to_owned)).collect()
}

const ALL: &str = r#"{
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 10000, "cpus": "0-1", "mems": "0"},
    "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
    "pids": {"limit": 10},
    "blockIO": {"weight": 100,
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 2}, {"major": 8, "minor": 16, "rate": 0}]},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]
}"#;

#[test]
fn v2_makes_the_way_and_sets_the_limits() {
    let enable = "cpuset cpu io memory hugetlb pids rdma misc";
    assert_eq!(
        planned(
            &Layout::Unified(unified()),
            r#"{"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 3}]}"#
        ),
        [
            &format!("enable {enable} below /cg"),
            "make group /cg/a",
            &format!("enable {enable} below /cg/a"),
            "make group /cg/a/box",
            "filter devices of /cg/a/box: deny all, allow c 1:3 rwm",
        ]
    );
    assert_eq!(
        limits(&Layout::Unified(unified()), ALL),
        [
            "a/box/cpu.weight = 59",
            "a/box/cpu.max = 50000 100000, /cg/a/box/cpu.max.burst = 10000",
            "a/box/cpuset.cpus = 0-1",
            "a/box/cpuset.mems = 0",
            "a/box/memory.swap.max = 500",
            "a/box/memory.max = 1000",
            "a/box/memory.low = 500",
            "a/box/pids.max = 10",
            "a/box/io.bfq.weight = 100",
            "a/box/io.max = 8:0 rbps=1 wiops=2",
            "a/box/io.max = 8:16 wiops=max",
            "a/box/hugetlb.2MB.max = 4194304",
            "a/box/hugetlb.2MB.rsvd.max = 4194304",
        ]
    );
}

#[test]
fn v1_makes_every_group_and_sets_the_limits() {
    assert_eq!(
        planned(&hybrid(), r#"{"devices": [{"allow": false}]}"#),
        [
            "make group /cg/unified/a/box",
            "make group /cg/cpu,cpuacct/a/box",
            "make group /cg/cpuset/a/box with the CPUs of its parent",
            "make group /cg/memory/a/box",
            "make group /cg/devices/a/box",
            "make group /cg/freezer/a/box",
            "make group /cg/blkio/a/box",
            "make group /cg/pids/a/box",
            "make group /cg/systemd/a/box",
            "set devices of /cg/devices/a/box: deny all",
        ]
    );
    assert_eq!(
        limits(&hybrid(), ALL),
        [
            "cpu,cpuacct/a/box/cpu.shares = 512",
            "cpu,cpuacct/a/box/cpu.cfs_period_us = 100000, /cg/cpu,cpuacct/a/box/cpu.cfs_quota_us = 50000, \
             /cg/cpu,cpuacct/a/box/cpu.cfs_burst_us = 10000",
            "cpuset/a/box/cpuset.cpus = 0-1",
            "cpuset/a/box/cpuset.mems = 0",
            "memory/a/box/memory.limit_in_bytes = 1000, /cg/memory/a/box/memory.memsw.limit_in_bytes = 1500",
            "memory/a/box/memory.soft_limit_in_bytes = 500",
            "pids/a/box/pids.max = 10",
            "blkio/a/box/blkio.bfq.weight = 100",
            "blkio/a/box/blkio.throttle.read_bps_device = 8:0 1",
            "blkio/a/box/blkio.throttle.write_iops_device = 8:0 2",
            "blkio/a/box/blkio.throttle.write_iops_device = 8:16 0",
            // The hybrid layout's cgroup2 has this controller.
            "unified/a/box/hugetlb.2MB.max = 4194304",
            "unified/a/box/hugetlb.2MB.rsvd.max = 4194304",
        ]
    );
    let needs_hugetlb = planned(&hybrid(), r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}"#);
    assert_eq!(needs_hugetlb[0], "enable hugetlb below /cg/unified");
}

#[test]
fn less_usual_limits() {
    let v2 = Layout::Unified(unified());
    assert_eq!(
        limits(
            &v2,
            r#"{"cpu": {"shares": 2, "idle": 1}, "memory": {"limit": -1}, "pids": {"limit": -1},
            "rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 3}},
            "unified": {"memory.high": "5", "io.latency": "8:0 target=1\n8:16 target=2"}}"#
        ),
        [
            "a/box/cpu.idle = 1",
            "a/box/memory.swap.max = max",
            "a/box/memory.max = max",
            "a/box/pids.max = max",
            "a/box/rdma.max = mlx5_0 hca_handle=2 hca_object=3",
            "a/box/io.latency = 8:0 target=1",
            "a/box/io.latency = 8:16 target=2",
            "a/box/memory.high = 5",
        ]
    );
    assert_eq!(
        limits(&v2, r#"{"memory": {"limit": 0, "swap": 0}, "pids": {"limit": 0}, "cpu": {"shares": 0}}"#),
        [""; 0]
    );
    assert_eq!(
        limits(
            &hybrid(),
            r#"{"cpu": {"realtimeRuntime": 5, "realtimePeriod": 10}, "memory": {"limit": -1,
            "kernel": 7, "kernelTCP": 8, "swappiness": 0, "disableOOMKiller": true}}"#
        ),
        [
            "cpu,cpuacct/a/box/cpu.rt_period_us = 10, /cg/cpu,cpuacct/a/box/cpu.rt_runtime_us = 5",
            "memory/a/box/memory.limit_in_bytes = -1, /cg/memory/a/box/memory.memsw.limit_in_bytes = -1",
            "memory/a/box/memory.kmem.tcp.limit_in_bytes = 8",
            "memory/a/box/memory.swappiness = 0",
            "memory/a/box/memory.oom_control = 1",
        ]
    );
}

#[test]
fn a_missing_controller_is_named_with_its_key() {
    let few = Layout::Unified(Unified { controllers: words("cpu pids"), ..unified() });
    assert_eq!(
        refused(&few, r#"{"memory": {"limit": 5}}"#),
        "linux.resources.memory.limit needs the cgroup controller memory, which is not there"
    );
    assert_eq!(
        refused(&few, r#"{"blockIO": {"weight": 50}}"#),
        "linux.resources.blockIO.weight needs the cgroup controller io, which is not there"
    );
    assert_eq!(
        refused(&few, r#"{"unified": {"memory.max": "5"}}"#),
        "linux.resources.unified[memory.max] needs the controller memory, which cgroup v2 does not have here"
    );
    assert_eq!(
        refused(&hybrid(), r#"{"network": {"classID": 5}}"#),
        "linux.resources.network.classID needs the cgroup controller net_cls, which is not there"
    );
    assert_eq!(
        refused(&Layout::None, r#"{"devices": [{"allow": false}]}"#),
        "linux.resources.devices needs a cgroup, and no cgroup file system is mounted"
    );
    let (state, operations) = plan(&Layout::None, "", "box", None, false).unwrap();
    assert!(state.is_empty() && operations.is_empty());
}

#[test]
fn what_v2_can_not_do_is_told() {
    let v2 = Layout::Unified(unified());
    for (json, key) in [
        (r#"{"memory": {"swappiness": 5}}"#, "memory.swappiness"),
        (r#"{"memory": {"kernelTCP": 5}}"#, "memory.kernelTCP"),
        (r#"{"memory": {"disableOOMKiller": true}}"#, "memory.disableOOMKiller"),
        (r#"{"cpu": {"realtimeRuntime": 5}}"#, "cpu.realtimeRuntime"),
    ] {
        assert_eq!(refused(&v2, json), format!("linux.resources.{key} has no counterpart in cgroup v2"));
    }
    assert_eq!(
        refused(&v2, r#"{"memory": {"limit": -5}}"#),
        "linux.resources.memory.limit -5 is neither -1 nor a number of bytes"
    );
    assert_eq!(
        refused(&v2, r#"{"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}"#),
        "linux.resources.hugepageLimits \"../2MB\" is not a page size like 2MB"
    );
    assert_eq!(
        refused(&v2, r#"{"rdma": {"a b": {"hcaHandles": 1}}}"#),
        "linux.resources.rdma \"a b\" is not the name of a device"
    );
}

#[test]
fn best_effort_leaves_out_what_it_may_not_make() {
    let read_only = Layout::Unified(Unified { writable: false, ..unified() });
    let wanted = |json| plan(&read_only, "", "box", Some(&resources(json)), true);
    let (state, operations) = wanted(r#"{"devices": [{"allow": false}]}"#).unwrap();
    assert!(state.is_empty() && operations.is_empty());
    assert_eq!(
        wanted(r#"{"pids": {"limit": 5}}"#).unwrap_err().to_string(),
        "linux.resources.pids.limit needs the cgroup controller pids, which is not there"
    );
    // A delegated group: beside the runtime's own.
    let (state, operations) = plan(&Layout::Unified(unified()), "", "box", None, true).unwrap();
    assert_eq!(state.unified.unwrap().path, "/user/box");
    assert_eq!(lines(&operations).last().unwrap(), "make group /cg/user/box");
}

#[test]
fn commands_do_the_same_by_hand() {
    let (_, operations) = plan(
        &hybrid(),
        "/box",
        "box",
        Some(&resources(
            r#"{"memory": {"limit": 5}, "cpu": {"quota": 9, "period": 8},
            "devices": [{"allow": false}, {"allow": true, "type": "c", "major": 1, "access": "r"}]}"#,
        )),
        false,
    )
    .unwrap();
    let commands: Vec<String> = operations.iter().map(Operation::by_hand).collect();
    assert!(commands.contains(&"mkdir -p /cg/memory/box".to_owned()));
    assert!(commands.contains(&"echo 5 > /cg/memory/box/memory.limit_in_bytes".to_owned()));
    assert!(commands.contains(
        &"echo a > /cg/devices/box/devices.deny; echo 'c 1:* r' > /cg/devices/box/devices.allow".to_owned()
    ));
    let (_, operations) = plan(&Layout::Unified(unified()), "/box", "box", None, false).unwrap();
    assert_eq!(
        operations[0].by_hand(),
        "echo '+cpuset +cpu +io +memory +hugetlb +pids +rdma +misc' > /cg/cgroup.subtree_control"
    );
}

#[test]
fn the_state_is_saved_and_split() {
    let (state, operations) = plan(&hybrid(), "/box", "box", None, false).unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<CgroupState>(&text).unwrap(), state);
    let made = state.made_by(&operations[..3]);
    assert_eq!((made.legacy.len(), made.unified.is_some()), (2, true));
    assert_eq!(state.made_by(&operations), state);
    let below = state.below("in/side").unwrap();
    assert_eq!(below.unified.unwrap().directory, Path::new("/cg/unified/box/in/side"));
    assert!(state.below("../x").is_err());
}
