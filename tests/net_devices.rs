//! linux.netDevices: devices of the host move into the container. Every test has a network of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::PathBuf;
use std::process::Command;

use moat_tests::{Bundle, Runtime, wait_until};
use serde_json::json;

/// A network namespace for this thread, and so for all that it starts.
fn own_network() {
    moat_linux::process::unshare(moat_linux::process::namespace::NETWORK).unwrap();
    ip("link set lo up");
}

#[track_caller]
fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A pair of devices; the first has addresses of several kinds.
fn make_pair() {
    ip("link add host0 mtu 1400 type veth peer name peer0");
    ip("addr add 10.9.0.1/24 brd + dev host0");
    ip("addr add 10.9.0.2/24 dev host0");
    ip("addr add 10.9.1.1/24 scope link dev host0");
    ip("addr add fd00::5/64 nodad dev host0");
    ip("addr add fd00::6/64 valid_lft 1000 preferred_lft 1000 dev host0");
    ip("link set host0 up");
    ip("link set peer0 up");
}

#[test]
fn a_device_moves_with_its_addresses() {
    own_network();
    make_pair();
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.set("/linux/netDevices", json!({ "host0": { "name": "eth7" } }));
    for set in ["bounding", "effective", "permitted"] {
        // For ping.
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_NET_RAW"));
    }
    let container = runtime.start(&bundle);
    assert!(!ip("link").contains("host0"), "{}", ip("link"));
    let inside = container.shell("ip addr show eth7");
    let text = inside.success();
    for part in ["mtu 1400", "UP", "inet 10.9.0.1/24 brd 10.9.0.255", "inet 10.9.0.2/24", "inet6 fd00::5/64"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Of another scope, and not permanent.
    assert!(!text.contains("10.9.1.1") && !text.contains("fd00::6"), "{text}");
    // It is connected.
    ip("addr add 10.9.0.9/24 dev peer0");
    container.shell("ping -c 1 10.9.0.9").success();
    container.delete();
}

#[test]
fn names_may_be_kept_or_numbered() {
    own_network();
    make_pair();
    ip("link add more0 type veth peer name more1");
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    let wanted = json!({ "host0": { "name": "net%d" }, "more0": { "name": "net%d" }, "more1": {} });
    bundle.set("/linux/netDevices", wanted);
    let container = runtime.start(&bundle);
    let inside = container.shell("ip link");
    for name in [" net0@", " net1@", " more1@"] {
        assert!(inside.success().contains(name), "{name}: {inside:?}");
    }
    let plan = runtime.run_with(&bundle, &["--dry-run"]);
    assert!(plan.success().contains("move network device host0 in as net%d"), "{plan:?}");
}

#[test]
fn the_host_gets_back_what_is_not_virtual() {
    // The kernel removes virtual devices with their namespace; the other end of the pair goes with them.
    own_network();
    make_pair();
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.set("/linux/netDevices", json!({ "host0": {} }));
    let container = runtime.start(&bundle);
    assert!(ip("link").contains("peer0"));
    container.delete();
    wait_until(|| !ip("link").contains("peer0"));
}

#[test]
fn what_can_not_be_moved_is_named() {
    own_network();
    make_pair();
    ip("link add more0 type veth peer name more1");
    let runtime = Runtime::new();
    for (devices, said) in [
        (json!({ "nope0": {} }), "linux.netDevices nope0: there is no such network device"),
        (
            json!({ "host0": { "name": "lo" } }),
            "linux.netDevices host0: the container has a network device lo already",
        ),
        (json!({ "host0": { "name": "a/b" } }), "linux.netDevices host0: \"a/b\" names no network device"),
        (json!({ "host0": { "name": "a%db" } }), "linux.netDevices host0: \"a%db\" names no network device"),
        (json!({ "host0": { "name": "sixteen-bytes-xx" } }), "\"sixteen-bytes-xx\" names no network device"),
        (
            json!({ "host0": { "name": "x" }, "more0": { "name": "x" } }),
            "linux.netDevices more0: another device is named x, too",
        ),
        (json!({ "lo": { "name": "x" } }), "linux.netDevices lo: rtnetlink(RTM_NEWLINK"),
    ] {
        let mut bundle = Bundle::new(&["true"]);
        bundle.set("/linux/netDevices", devices);
        let output = runtime.run(&bundle);
        assert!(output.failure().contains(said), "{said}: {output:?}");
        assert!(ip("addr show host0").contains("10.9.0.1/24"));
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.set("/linux/netDevices", json!({ "host0": {} })).retain_namespaces(|kind| kind != "network");
    assert!(runtime.run(&bundle).failure().contains("linux.netDevices needs a network namespace"));
}

/// An address that the container's network refuses brings the device back as it was.
#[test]
fn a_device_that_can_not_settle_comes_back() {
    own_network();
    make_pair();
    let runtime = Runtime::new();
    // A network that somebody else has made, without IPv6.
    let holder = runtime.start(Bundle::new(&["sleep", "1000"]).set(
        "/linux/sysctl",
        json!({ "net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1" }),
    ));
    let path = PathBuf::from(format!("/proc/{}/ns/net", holder.pid()));
    let mut bundle = Bundle::new(&["true"]);
    bundle.retain_namespaces(|kind| kind != "network");
    bundle.push("/linux/namespaces", json!({ "type": "network", "path": path }));
    bundle.set("/linux/netDevices", json!({ "host0": { "name": "eth7" } }));
    let output = runtime.run(&bundle);
    let said = "linux.netDevices host0: rtnetlink(RTM_NEWADDR, eth7 fd00::5/64): EACCES";
    assert!(output.failure().contains(said), "{output:?}");
    let back = ip("addr show host0");
    for part in ["mtu 1400", ",UP", "10.9.0.1/24", "10.9.0.2/24", "fd00::5/64"] {
        assert!(back.contains(part), "{part}: {back}");
    }
    // Without the address it can be moved into a network that is joined.
    ip("addr del fd00::5/64 dev host0");
    runtime.run(&bundle).success();
    assert!(holder.shell("ip addr show eth7").success().contains("10.9.0.1/24"));
}
