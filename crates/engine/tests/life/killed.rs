//! SIGKILL at any system call, a full disk, no more descriptors: what is left is found and mended.
//!
//! strace(1) sends the signal: each process of the command is killed at its own n-th call.

use std::process::{Command, Stdio};

use moat_engine::{RemoveOptions, StartOptions};
use moat_model::workload::WorkloadSpec;

use crate::house::{self, House, names, wait_until};

/// Numbers from 1 that come once in a while, the same on every run.
fn points(last: usize, count: usize) -> impl Iterator<Item = usize> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (seed >> 33) as usize % last
    })
}

/// The command, killed at call `at` of each of its processes.
fn killed(command: &Command, at: usize) {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=all"]);
    strace.args(["-e", &format!("inject=all:signal=KILL:when={at}")]);
    strace.arg(command.get_program()).args(command.get_args());
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    strace.status().unwrap();
}

/// Nobody is at work any more, and a repair leaves nothing to be found. Gives what was found before.
#[track_caller]
fn assert_mended(house: &House, when: &str) -> Vec<String> {
    // The kernel may still be at the end of those that were killed.
    let first = house.check(true);
    assert!(!first.iter().any(|line| line.contains("could not be mended")), "{when}: {first:#?}");
    let second = house.check(false);
    assert_eq!(second, Vec::<String>::new(), "{when}, after {first:#?}");
    first
}

pub(crate) fn run_killed_at_any_system_call(house: &House) {
    let command = house.actor("run", &["true"]);
    let mut found = 0;
    for at in points(380, 60) {
        killed(&command, at);
        found += assert_mended(house, &format!("killed at call {at}")).len();
        for workload in house.engine.list().unwrap() {
            workload.remove(&RemoveOptions { force: true, volumes: true }).unwrap();
        }
        assert_eq!(house.leftovers(), Vec::<String>::new(), "killed at call {at}");
    }
    assert!(found > 0, "{found} findings: nothing was killed halfway");
    // All works as before.
    assert_eq!(house.run(house.spec(&["sh", "-c", "exit 6"])).exit.code, 6);
}

pub(crate) fn remove_killed_at_any_system_call(house: &House) {
    for at in points(160, 40) {
        let spec = house.spec(&["sh", "-c", "echo x > /written; sleep 1000"]);
        let workload = house.engine.run(spec, &StartOptions::default()).unwrap().0;
        killed(&house.actor("remove", &[workload.id().as_str()]), at);
        // What was asked of the monitor, it does.
        let state = || workload.state().is_ok_and(|state| state.monitor_expected() && state.stopped_by_user);
        wait_until(|| workload.is_gone() || !state());
        assert_mended(house, &format!("killed at call {at}"));
        for workload in house.engine.list().unwrap() {
            workload.remove(&RemoveOptions { force: true, volumes: true }).unwrap();
        }
        assert_eq!(house.leftovers(), Vec::<String>::new(), "killed at call {at}");
    }
}

/// Both roots on a small file system, in a mount namespace of its own.
pub(crate) fn a_full_disk(house: &House) {
    moat_linux::process::unshare(moat_linux::process::namespace::MOUNT).unwrap();
    let small = house.path().join("small");
    std::fs::create_dir(&small).unwrap();
    moat_linux::mount::set_propagation(c"/", moat_linux::mount::propagation::PRIVATE | MS_REC).unwrap();
    moat_linux::mount::mount_with_options("tmpfs", "small", &small, "size=8m,mode=700").unwrap();
    let engine = house::open(&small);
    house::import(&engine, &house.path().join("rootfs"), house::IMAGE);
    // A log that finds no room costs lines, not the workload.
    let attach = Some(moat_engine::AttachSpec { stdin: false, stdout: true, stderr: true });
    let spec = house.spec(&["sh", "-c", "yes | head -n 500000; exit 8"]);
    let (logged, started) = engine.run(spec, &StartOptions { attach, explain: false }).unwrap();
    let heard = house::hear(&mut started.attached.unwrap());
    assert_eq!((heard.stdout.len(), heard.exit.code), (1_000_000, 8));
    logged.remove(&RemoveOptions::default()).unwrap();
    // A workload that fills the disk itself sees it as any program does.
    let spec = house.spec(&["sh", "-c", "dd if=/dev/zero of=/full bs=4k; echo ended"]);
    let (_, started) = engine.run(spec, &StartOptions { attach, explain: false }).unwrap();
    let heard = house::hear(&mut started.attached.unwrap());
    assert!(heard.stderr.contains("No space left on device") && heard.stdout == "ended\n", "{heard:?}");
    let create = || engine.create(house.spec(&["true"]));
    let failed = std::iter::repeat_with(create).find_map(Result::err).unwrap();
    assert!(failed.to_string().contains("ENOSPC"), "{failed}");
    let whole = engine.list().unwrap();
    assert_eq!(names(&small.join("workloads")).len(), whole.len(), "a create that failed leaves nothing");
    assert_eq!(names(&small.join("names")).len(), whole.len());
    for workload in whole {
        workload.remove(&RemoveOptions { force: true, volumes: true }).unwrap();
    }
    assert_eq!(engine.check(false, false).unwrap(), Vec::new());
    engine.create(house.spec(&["true"])).unwrap().remove(&RemoveOptions::default()).unwrap();
    moat_linux::mount::unmount(&small).unwrap();
}

/// With all mounts below.
const MS_REC: u64 = 1 << 14;

pub(crate) fn no_descriptors_left(house: &House) {
    for limit in [4_u64, 6, 8, 10, 12, 14, 16, 20] {
        let command = house.actor("run", &["true"]);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limit}")).arg(command.get_program()).args(command.get_args());
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() || said.contains("EMFILE") || said.contains("ENFILE"),
            "{limit}: {output:?}"
        );
        assert_mended(house, &format!("with {limit} descriptors"));
    }
    let spec = WorkloadSpec { auto_remove: true, ..house.spec(&["true"]) };
    assert_eq!(house.run(spec).exit.code, 0);
}
