//! A guest that was taken over speaks in place of its agent: the host believes none of it, says what is wrong in words
//! that move no cursor, and goes on. Guests in which the kernel panics or the agent hangs are no worse.

use std::path::Path;
use std::process::Command;

use moat_tests::{Moat, Output, Place, Wire, visit_with_machines, wait_until};

const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-agent");

#[test]
fn a_hostile_guest_is_not_believed() {
    let name = "agent_frame::a_hostile_guest_is_not_believed";
    visit_with_machines(name, Some(Path::new(HOSTILE)), inside);
}

fn inside() {
    let _wire = Wire::lay();
    let moat = Moat::with_machines();
    for (lie, sentence) in [
        ("panic", "its machine has ended: "),
        ("huge", "a frame of 4294967295 bytes is longer than"),
        ("garbage", "a frame that is not understood"),
        ("deep", "a frame that is not understood"),
        ("silent", "it does not answer"),
        ("slow", "it does not answer"),
        ("other", "the guest's agent answers Exited"),
        ("spell", "owned"),
    ] {
        refused(&moat, lie, sentence);
    }
    lies_about_itself(&moat);
    an_end_that_can_not_be(&moat);
}

fn start(moat: &Moat, lie: &str, flags: &[&str]) -> Output {
    let args = ["run", "--isolation", "microvm", "--name", lie, "--hostname", lie, "-p", "8080:80"];
    moat.call(&[&args, flags, &["busybox", "true"]].concat())
}

/// The workload does not start; its port, its place on the network and its jail are gone.
fn refused(moat: &Moat, lie: &str, sentence: &str) {
    let told = start(moat, lie, &[]);
    assert_eq!(told.code, 125, "{lie}: {told:?}");
    assert!(told.stderr.contains(sentence), "{lie}: {told:?}");
    if lie == "panic" {
        assert!(told.stderr.contains("Kernel panic"), "{told:?}");
    }
    harmless(lie, &told);
    nothing_left(moat, lie);
}

fn harmless(lie: &str, told: &Output) {
    let bad = |letter: char| letter.is_control() && letter != '\n';
    assert!(!told.stdout.contains(bad) && !told.stderr.contains(bad), "{lie}: {told:?}");
    assert!(told.stderr.len() < 10_000, "{lie}: {} bytes", told.stderr.len());
}

fn nothing_left(moat: &Moat, name: &str) {
    moat.call(&["rm", "-f", name]).success();
    let free = Command::new("sh").args(["-c", "! ss -lntH | grep -q :8080 && ! pgrep moat-vmm"]).status();
    assert!(free.unwrap().success(), "{name}");
    let left = Place::host().sh("ip -d link; nft list map inet moat ports4");
    assert!(!left.contains("8080") && !left.contains("tun type tap"), "{name}: {left}");
    moat.call(&["system", "check"]).success();
}

/// It runs, as far as the host can know; what it says of itself is shown as far as it can be.
fn lies_about_itself(moat: &Moat) {
    start(moat, "figures", &["-d"]).success();
    let stats = moat.call(&["stats", "--no-stream", "figures"]);
    assert!(stats.success().contains("figures"), "{stats:?}");
    harmless("figures", &stats);
    let top = moat.call(&["top", "figures"]);
    assert_eq!(top.success().lines().count(), 5001);
    harmless("figures", &top);
    // It never ends, and hears nothing. `stop` gives it up.
    let exec = moat.call(&["exec", "-d", "figures", "true"]);
    harmless("figures", &exec);
    moat.call(&["stop", "-t", "1", "figures"]).success();
    let state = moat.inspect("figures")["State"].clone();
    assert_eq!(state["ExitCode"], 137, "{state}");
    assert!(state["Error"].as_str().unwrap().starts_with("its machine was killed: "), "{state}");
    nothing_left(moat, "figures");
}

fn an_end_that_can_not_be(moat: &Moat) {
    start(moat, "numbers", &["-d"]);
    wait_until(|| moat.status("numbers") == "exited");
    let shown = moat.call(&["inspect", "numbers"]);
    harmless("numbers", &shown);
    let code = moat.inspect("numbers")["State"]["ExitCode"].as_i64().unwrap();
    assert_eq!(code, 255);
    let reason = moat.inspect("numbers")["State"]["Error"].clone();
    assert!(reason.as_str().unwrap().contains("the guest tells of exit code -2147483648"), "{reason}");
    let waited = moat.call(&["wait", "numbers"]);
    assert_eq!(waited.success().trim(), code.to_string());
    nothing_left(moat, "numbers");
}
