//! CVE-2022-0492, CVE-2023-25809: a container writes to its cgroups, or to the release_agent of a hierarchy,
//! which the kernel runs on the host. The files are opened for writing and not written: where a mitigation is
//! missing, the groups may be those of others.

use moat_tests::{Bundle, Output, Runtime, in_lab, run_in_lab};
use serde_json::json;

fn run(script: &str) -> Output {
    Runtime::new().run(&Bundle::shell(script))
}

#[test]
fn every_cgroup_mount_is_read_only() {
    let output = run("cat /proc/self/mountinfo");
    let mounts: Vec<&str> =
        output.success().lines().filter(|line| line.contains(" /sys/fs/cgroup")).collect();
    assert!(!mounts.is_empty(), "{output:?}");
    for mount in mounts {
        let options = mount.split(' ').nth(5).unwrap();
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options.split(',').any(|option| option == flag), "{flag}: {mount}");
        }
    }
}

#[test]
fn nothing_below_can_be_written() {
    let script = "cd /sys/fs/cgroup; find . -type f | while read file; do \
            ( : >> $file ) 2>/dev/null && echo \"$file can be written\"; done; \
        find . -name cgroup.procs | wc -l";
    let output = run(script);
    let count = output.success().trim().parse::<u32>();
    assert!(count.is_ok_and(|count| count > 0), "{output:?}");
}

#[test]
fn no_release_agent_is_in_sight() {
    assert_eq!(run("find /sys/fs/cgroup -name release_agent").success(), "");
}

/// The container sees its own groups as the roots: no path tells what is above, and nothing above is there.
#[test]
fn the_groups_of_others_are_out_of_sight() {
    let output = run("cat /proc/self/cgroup; grep -h ' /sys/fs/cgroup' /proc/self/mountinfo");
    let (mut groups, mut mounts) = (0, 0);
    for line in output.success().lines() {
        if line.contains(" /sys/fs/cgroup") {
            assert_eq!(line.split(' ').nth(3), Some("/"), "{line}");
            mounts += 1;
        } else {
            assert!(line.ends_with(":/"), "{line}");
            groups += 1;
        }
    }
    assert!(groups > 0 && mounts > 0, "{output:?}");
}

#[test]
fn mounting_a_hierarchy_is_refused() {
    let script = "for try in 'cgroup -o memory' 'cgroup -o rdma' 'cgroup -o none,name=new' cgroup2; do \
            mount -t $try cgroup /tmp 2>/dev/null && echo \"mounted $try\"; done; \
        mount -o remount,rw,bind /sys/fs/cgroup 2>/dev/null && echo 'made writable'; \
        for folder in /sys/fs/cgroup/*; do \
            mount -o remount,rw,bind $folder 2>/dev/null && echo \"$folder made writable\"; \
            umount $folder 2>/dev/null && echo \"$folder uncovered\"; done; echo tried";
    let mut bundle = Bundle::shell(script);
    bundle.set("/root/readonly", json!(false));
    assert_eq!(Runtime::new().run(&bundle).success(), "tried\n");
}

/// The same holds for what is executed later.
#[test]
fn exec_finds_the_same() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000000"]));
    let script = "cat /proc/self/cgroup | grep -v ':/$'; find /sys/fs/cgroup -name cgroup.procs | \
        while read file; do ( : >> $file ) 2>/dev/null && echo \"$file can be written\"; done; echo tried";
    assert_eq!(container.shell(script).success(), "tried\n");
}

/// Without a cgroup namespace of its own, it is still its own groups alone that are shown, and read-only.
#[test]
fn without_a_namespace_it_is_the_same() {
    let script = "find /sys/fs/cgroup -name release_agent; find /sys/fs/cgroup -name cgroup.procs | \
        while read file; do ( : >> $file ) 2>/dev/null && echo \"$file can be written\"; done; \
        awk '/ - cgroup/ { print $4 }' /proc/self/mountinfo";
    let mut bundle = Bundle::shell(script);
    bundle.retain_namespaces(|kind| kind != "cgroup");
    let runtime = Runtime::new();
    let container = runtime.start(&bundle);
    container.wait();
    let told = container.stdout();
    assert!(!told.is_empty() && told.lines().all(|line| line.ends_with(container.id())), "{told}");
}

/// In a user namespace without a cgroup namespace the hierarchy can not be mounted anew; what is shown in its
/// place is the host's, and must be as read-only as was asked for.
#[test]
fn what_is_shown_to_a_user_namespace_is_read_only() {
    let script = "awk '/ - cgroup/ { print $6 }' /proc/self/mountinfo; find /sys/fs/cgroup -name cgroup.procs | \
        while read file; do ( : >> $file ) 2>/dev/null && echo \"$file can be written\"; done; true";
    let mut bundle = Bundle::shell(script);
    bundle.retain_namespaces(|kind| kind != "cgroup").remove_mount("/sys/fs/cgroup");
    bundle.push("/linux/namespaces", json!({ "type": "user" }));
    for map in ["uidMappings", "gidMappings"] {
        bundle.push(&format!("/linux/{map}"), json!({ "containerID": 0, "hostID": 0, "size": 65_536 }));
    }
    let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    bundle.push(
        "/mounts",
        json!({ "type": "cgroup2", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": options }),
    );
    let output = Runtime::new().run(&bundle);
    let mounts: Vec<&str> = output.success().lines().collect();
    assert!(!mounts.is_empty(), "{output:?}");
    assert!(mounts.iter().all(|options| options.starts_with("ro,")), "{mounts:#?}");
}

/// All of the above in the lab, whose kernel has cgroup v2 alone.
#[test]
fn all_of_this_on_cgroup_v2() {
    if !in_lab() {
        return run_in_lab("cgroup_write::all_of_this_on_cgroup_v2");
    }
    every_cgroup_mount_is_read_only();
    nothing_below_can_be_written();
    no_release_agent_is_in_sight();
    the_groups_of_others_are_out_of_sight();
    mounting_a_hierarchy_is_refused();
    exec_finds_the_same();
    without_a_namespace_it_is_the_same();
    what_is_shown_to_a_user_namespace_is_read_only();
}
