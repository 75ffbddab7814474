//! Limits on cgroup v2, in an emulated host: this test boots it once and runs itself there.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod checks;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use checks::{MIB, group, stats};
use moat_tests::{Bundle, Runtime, in_lab, run_in_lab};
use serde_json::json;

#[test]
fn limits_hold_on_cgroup_v2() {
    if in_lab() { inside() } else { run_in_lab("limits_hold_on_cgroup_v2") }
}

/// All checks in one boot.
fn inside() {
    assert!(Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "the lab has cgroup v2 alone");
    checks::memory();
    checks::memory_of_the_first_process();
    checks::pids();
    checks::update();
    checks::refused_update();
    checks::cpu();
    io_max();
    pressure();
}

/// What is written to a real disk is written at the limit.
fn io_max() {
    const RATE: u64 = 2 * MIB;
    const BYTES: u64 = 6 * MIB;
    let disk = std::fs::metadata("/dev/vda").unwrap().rdev();
    let (major, minor) = (major_of(disk), minor_of(disk));
    let runtime = Runtime::new();
    let write = format!("dd if=/dev/zero of=/dev/disk bs=64k count={} oflag=direct conv=fsync", BYTES >> 16);
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle
        .push("/linux/devices", json!({ "path": "/dev/disk", "type": "b", "major": major, "minor": minor }));
    let rule = json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": "rw" });
    bundle.push("/linux/resources/devices", rule);
    let container = runtime.start(&bundle);
    let timed = || {
        let start = Instant::now();
        container.shell(&write).success();
        start.elapsed()
    };
    let free = timed();
    let limit = json!([{ "major": major, "minor": minor, "rate": RATE }]);
    let resources = runtime.folder().join("resources.json");
    std::fs::write(&resources, json!({ "blockIO": { "throttleWriteBpsDevice": limit } }).to_string())
        .unwrap();
    runtime.call(&["update", "--resources", resources.to_str().unwrap(), container.id()]).success();
    let slow = timed();
    let least = Duration::from_secs_f64(BYTES as f64 / RATE as f64 * 0.95);
    println!("io.max: 6 MiB in {free:.2?} without a limit, in {slow:.2?} at 2 MiB/s");
    assert!(slow >= least && free < slow, "{free:?} {slow:?} {least:?}");
    let max =
        std::fs::read_to_string(group(&runtime, container.id(), ("blkio", "io")).join("io.max")).unwrap();
    assert!(max.contains(&format!("{major}:{minor} ")) && max.contains(&format!("wbps={RATE}")), "{max}");
    let answer = stats(&runtime, container.id());
    let written = answer["blkio"]["ioServiceBytesRecursive"].as_array().unwrap().iter();
    let written: u64 = written
        .filter(|entry| entry["op"] == "Write" && entry["major"] == major)
        .map(|entry| entry["value"].as_u64().unwrap_or(0))
        .sum();
    assert!(written >= 2 * BYTES, "{answer}");
}

/// A container that is held back waits for the processor, and its pressure says so.
fn pressure() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("while :; do :; done");
    bundle.set("/linux/resources/cpu", json!({ "quota": 20_000, "period": 100_000 }));
    let container = runtime.start(&bundle);
    moat_tests::wait_until(|| {
        stats(&runtime, container.id())["cpu"]["psi"]["some"]["total"].as_u64().unwrap_or(0) > 500_000
    });
    let answer = stats(&runtime, container.id());
    for of in ["cpu", "memory", "blkio"] {
        assert!(answer[of]["psi"]["some"]["avg10"].is_number(), "{of}: {answer}");
    }
    println!("pressure: {}", answer["cpu"]["psi"]);
    let table = runtime.call(&["stats", container.id()]);
    assert!(table.success().contains("cpu pressure"), "{table:?}");
    print!("{}", table.stdout);
}

/// The kernel's encoding of device numbers, makedev(3).
fn major_of(device: u64) -> u64 {
    (device >> 8) & 0xfff
}

fn minor_of(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & !0xff)
}
