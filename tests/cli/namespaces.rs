//! Namespaces of another workload: `--pid`, `--ipc` and `--uts` with `container:`.

use moat_tests::{Moat, wait_until};

const WAIT: &str = "while :; do sleep 1; done";

/// The file that names a namespace, as a process in the workload sees it.
#[track_caller]
fn namespace(moat: &Moat, name: &str, kind: &str) -> String {
    moat.call(&["exec", name, "readlink", &format!("/proc/self/ns/{kind}")]).success().to_owned()
}

#[test]
fn processes_of_another_are_seen_and_reached() {
    let moat = Moat::new();
    moat.start("first", &[], "sleep 1234 & while :; do sleep 1; done");
    let sleeps = || moat.call(&["top", "first"]).success().lines().any(|line| line.ends_with(" sleep 1234"));
    wait_until(sleeps);
    moat.start("second", &["--pid", "container:first"], WAIT);
    assert_eq!(namespace(&moat, "first", "pid"), namespace(&moat, "second", "pid"));
    assert_ne!(namespace(&moat, "first", "mnt"), namespace(&moat, "second", "mnt"));
    assert_eq!(moat.inspect("second")["HostConfig"]["PidMode"], "container:first");
    // Its own /proc shows them, and a signal gets there.
    let seen = moat.call(&["exec", "second", "sh", "-c", "ps -o pid,args | grep ' sleep 1234$'"]);
    let pid = seen.success().split_whitespace().next().unwrap().to_owned();
    moat.call(&["exec", "second", "kill", "-9", &pid]).success();
    wait_until(|| !sleeps());
    // Who only joins can end alone; who owns the namespace takes the other with it.
    moat.call(&["rm", "-f", "second"]).success();
    assert_eq!(moat.status("first"), "running");
    moat.start("third", &["--pid", "container:first"], WAIT);
    moat.call(&["kill", "first"]).success();
    wait_until(|| moat.status("third") == "exited");
    assert_eq!(moat.inspect("third")["State"]["ExitCode"], 137);
    let refused = moat.run(&["--pid", "container:first", "busybox", "true"]);
    assert!(refused.code == 125 && refused.stderr.contains("first"), "{refused:?}");
    assert_eq!(moat.run(&["--pid", "container:nobody", "busybox", "true"]).code, 125);
    assert_eq!(moat.run(&["--init", "--pid", "container:third", "busybox", "true"]).code, 125);
}

#[test]
fn memory_of_another_is_shared() {
    let moat = Moat::new();
    moat.start("first", &["--ipc", "shareable", "--shm-size", "4m"], WAIT);
    moat.start("second", &["--ipc", "container:first"], WAIT);
    assert_eq!(namespace(&moat, "first", "ipc"), namespace(&moat, "second", "ipc"));
    moat.call(&["exec", "first", "sh", "-c", "echo shared > /dev/shm/note"]).success();
    assert_eq!(moat.call(&["exec", "second", "cat", "/dev/shm/note"]).success(), "shared\n");
    let full = moat.call(&["exec", "second", "dd", "if=/dev/zero", "of=/dev/shm/full", "bs=1M", "count=8"]);
    assert!(full.failure().contains("No space left"), "{full:?}");
    let both = moat.run(&["--ipc", "container:first", "--shm-size", "1m", "busybox", "true"]);
    assert!(both.code == 125 && both.stderr.contains("--shm-size"), "{both:?}");
    // Without it there is a /dev/shm of its own.
    moat.start("third", &[], WAIT);
    assert_ne!(namespace(&moat, "first", "ipc"), namespace(&moat, "third", "ipc"));
    assert_eq!(moat.call(&["exec", "third", "ls", "/dev/shm"]).success(), "");
}

#[test]
fn the_name_of_another_is_shared() {
    let moat = Moat::new();
    moat.start("first", &["--hostname", "lighthouse"], WAIT);
    moat.start("second", &["--uts", "container:first"], WAIT);
    assert_eq!(namespace(&moat, "first", "uts"), namespace(&moat, "second", "uts"));
    assert_eq!(moat.call(&["exec", "second", "hostname"]).success(), "lighthouse\n");
    let both = moat.run(&["--uts", "container:first", "--hostname", "x", "busybox", "true"]);
    assert!(both.code == 125 && both.stderr.contains("--hostname"), "{both:?}");
}
