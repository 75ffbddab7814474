//! What others take away, and what is left by who was killed.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use moat_tests::{HOST, NetworkHost as Host, OUTSIDE, sh, wait_until};

#[test]
fn a_flush_of_the_packet_filter() {
    let host = Host::new();
    let one = host.start("one", "-p 8080:80");
    let _server = one.serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.findings(false), Vec::<String>::new());
    sh("nft flush ruleset");
    assert_eq!(host.outside().ask("tcp", HOST, 8080), None);
    assert!(host.findings(false)[0].contains("packet filter: its tables are not there"));
    assert!(host.findings(true)[0].contains("mended"));
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    assert_eq!(host.findings(false), Vec::<String>::new());
}

#[test]
fn a_monitor_that_was_killed() {
    let host = Host::new();
    host.start("one", "-p 8080:80 --restart always");
    let state = std::fs::read(host.moat.root().join("workloads").join(id(&host, "one")).join("state.json"));
    let state: serde_json::Value = serde_json::from_slice(&state.unwrap()).unwrap();
    let monitor = state["monitor"]["pid"].as_u64().unwrap();
    sh(&format!("kill -9 {monitor}"));
    wait_until(|| !host.findings(false).is_empty());
    host.findings(true);
    assert_eq!(host.moat.status("one"), "exited");
    host.nothing_left();
    // Its port and its address are free again, for itself or for another.
    let two = host.start("two", "-p 8080:80");
    let _server = two.serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    host.moat("rm -f two");
    host.moat("start one");
    assert_eq!(host.ip("one", "bridge"), "172.17.0.2");
}

/// A restart policy begins with a network that is made anew, and a program that ends leaves nothing.
#[test]
fn restarts_and_ends() {
    let host = Host::new();
    host.moat("run -d --name one --restart on-failure:2 -p 8080:80 busybox sh -c false");
    wait_until(|| host.moat.status("one") == "exited");
    assert_eq!(host.moat("inspect -f {{.RestartCount}} one"), "2");
    host.nothing_left();
    host.moat("run --rm -p 8080:80 busybox true");
    host.refused("run --rm -p 8080:80 busybox no-such-program");
    host.nothing_left();
}

fn id(host: &Host, name: &str) -> String {
    host.moat(&format!("inspect -f {{{{.Id}}}} {name}"))
}

/// The system calls by which `network connect` changes something: the address, what is saved, what the kernel is told.
const CHANGES: [&str; 4] = ["linkat", "rename", "sendmsg", "setns"];

/// `network connect`, killed at the n-th call of one kind; whether it came to that.
fn killed(host: &Host, call: &str, when: usize) -> bool {
    let mut strace = std::process::Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={when}")]);
    strace.arg(host.moat.program()).arg("--root").arg(host.moat.root());
    strace.args(["network", "connect", "blue", "one"]);
    let output = strace.stdin(Stdio::null()).output().unwrap();
    // strace ends as its child did.
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{call} {when}: {output:?}");
    killed
}

#[test]
fn killed_at_any_step_of_connect() {
    let host = Host::new();
    host.moat("network create --ipv6 blue");
    let one = host.start("one", "-p 8080:80");
    let server = one.serve("tcp", "0.0.0.0", 80);
    let mut kills = 0;
    for call in CHANGES {
        for when in 1.. {
            let was_killed = killed(&host, call, when);
            kills += usize::from(was_killed);
            host.findings(true);
            let again = host.findings(false);
            // Devices that are being removed take a moment.
            assert!(again.iter().all(|one| one.contains("network device")), "after {call} {when}: {again:?}");
            assert_eq!(
                host.outside().ask("tcp", HOST, 8080).as_deref(),
                Some(OUTSIDE),
                "after {call} {when}"
            );
            host.moat("network disconnect --force blue one");
            if !was_killed {
                break;
            }
        }
    }
    assert!(kills > 20, "{kills}");
    // It is in the namespace of the workload, which would live as long.
    drop(server);
    host.moat("rm -f one");
    host.nothing_left();
}
