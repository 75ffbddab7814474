//! What is left by who was killed, and what others took away.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use moat_model::workload::{EndpointSpec, NetworkingSpec, Protocol};
use moat_net::{Attach, Networks, Wall};

use crate::host::{HOST, Host, OUTSIDE, helper, ip, live, place, publish, sh};

/// Waits until the kernel has removed the devices of workloads that have ended.
fn no_devices() {
    while sh("ip -o link").contains("moatv") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[track_caller]
fn nothing_left(host: &Host) {
    crate::wire::nothing_left(&host.folder().join("run"));
}

#[test]
fn a_flush_of_the_packet_filter() {
    let host = Host::new();
    let one = host.start("one", &[], &[publish(8080, 80, Protocol::Tcp)]);
    let server = place(&one).serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.networks.check(&live(&["one"]), false).unwrap(), []);
    sh("nft flush ruleset");
    let found = host.networks.check(&live(&["one"]), false).unwrap();
    assert_eq!((found.len(), found[0].problem.as_str()), (1, "its tables are not there"));
    assert_eq!(host.outside().ask("tcp", HOST, 8080), None);
    assert!(host.networks.check(&live(&["one"]), true).unwrap()[0].repaired);
    assert_eq!(host.networks.check(&live(&["one"]), false).unwrap(), []);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    // Part of it: a rule, an element.
    for part in
        ["flush chain inet moat forward", "flush map inet moat ports4", "flush set bridge moat allow4"]
    {
        sh(&format!("nft {part}"));
        assert_eq!(host.networks.check(&live(&["one"]), true).unwrap().len(), 1, "{part}");
        assert_eq!(host.networks.check(&live(&["one"]), false).unwrap(), [], "{part}");
    }
    // Who comes next finds it out, too.
    sh("nft flush ruleset");
    host.start("two", &[], &[]);
    assert_eq!(host.networks.check(&live(&["one", "two"]), false).unwrap(), []);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    // And who goes is not held up.
    sh("nft flush ruleset");
    // A namespace lives as long as somebody is in it.
    drop(server);
    host.networks.release("one").unwrap();
    host.networks.release("two").unwrap();
    nothing_left(&host);
}

#[test]
fn devices_that_others_took_away() {
    let host = Host::new();
    let one = host.start("one", &[], &[]);
    let two = host.start("two", &[], &[]);
    let _server = place(&two).serve("tcp", "0.0.0.0", 80);
    let both = live(&["one", "two"]);
    for script in [
        format!("ip link del {}", one.endpoints[0].device),
        format!("ip link set {} nomaster", one.endpoints[0].device),
        "ip link set moat0 down".to_owned(),
        "ip link del moat0".to_owned(),
        "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
    ] {
        sh(&script);
        let found = host.networks.check(&both, true).unwrap();
        assert!(!found.is_empty() && found.iter().all(|one| one.repaired), "{script}: {found:?}");
        assert_eq!(host.networks.check(&both, false).unwrap(), [], "{script}");
        assert_eq!(place(&one).ask("tcp", &ip(&two, 0), 80), Some(ip(&one, 0)), "{script}");
        let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
        assert_eq!(place(&one).ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST), "{script}");
    }
}

#[test]
fn a_filter_of_others_that_drops_is_told() {
    let host = Host::new();
    host.start("one", &[], &[]);
    sh("nft add table ip filter; \
        nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'");
    let found = host.networks.check(&live(&["one"]), true).unwrap();
    assert_eq!(found[0].object, "chain ip filter FORWARD");
    assert!(!found[0].repaired);
    let one = host.networks.attachment("one").unwrap().unwrap();
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    assert_eq!(place(&one).ask("tcp", OUTSIDE, 80), None);
    // What it says helps.
    sh(found[0].hint.as_ref().unwrap());
    assert_eq!(place(&one).ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    sh("nft add chain ip filter DOCKER-USER");
    let found = host.networks.check(&live(&["one"]), true).unwrap();
    assert!(found[0].hint.as_ref().unwrap().contains("iptables -I DOCKER-USER -i moat+ -j ACCEPT"));
}

/// What is killed at each of its system calls: a workload is prepared, joins a network, leaves it, is released.
#[test]
#[ignore = "a helper that other tests start"]
fn whole_life() {
    let folder = std::path::PathBuf::from(std::env::var("MOAT_NET_FOLDER").unwrap());
    let networks = Networks::open(&folder.join("data"), &folder.join("run"));
    let names = ["victim".to_owned()];
    let ports = vec![publish(9090, 90, Protocol::Tcp)];
    let networking = NetworkingSpec { ports, ..NetworkingSpec::default() };
    let wish = Attach {
        workload: "victim",
        names: &names,
        networking: &networking,
        exposed: &[],
        wall: Wall::Container,
    };
    networks.prepare(&wish).unwrap();
    let blue = EndpointSpec { network: "blue".to_owned(), ..EndpointSpec::default() };
    networks.connect("victim", &blue, &names).unwrap();
    networks.disconnect("victim", "blue").unwrap();
    networks.release("victim").unwrap();
}

/// Every system call that changes something.
const CHANGES: [&str; 16] = [
    "openat",
    "write",
    "rename",
    "unlink",
    "mkdir",
    "linkat",
    "unlinkat",
    "sendmsg",
    "unshare",
    "setns",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "umount2",
    "bind",
    "flock",
];

/// Runs the life of a workload, killed at the n-th call of one kind; whether it came to that.
fn killed(host: &Host, call: &str, when: usize) -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={when}")]);
    strace.args(helper("repair::whole_life")).env("MOAT_NET_FOLDER", host.folder());
    let status = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    !status.success()
}

#[test]
fn killed_at_any_step() {
    let host = Host::new();
    host.network("blue", |spec| spec.ipv6 = true);
    let one = host.start("one", &[], &[publish(8080, 80, Protocol::Tcp)]);
    let server = place(&one).serve("tcp", "0.0.0.0", 80);
    let mut kills = 0;
    for call in CHANGES {
        for when in 1.. {
            if !killed(&host, call, when) {
                break;
            }
            kills += 1;
            host.networks.check(&live(&["one"]), true).unwrap();
            let again = host.networks.check(&live(&["one"]), false).unwrap();
            // Devices of a namespace that is being removed take a moment.
            let devices = again.iter().all(|one| one.object.starts_with("network device"));
            assert!(devices, "after {call} {when}: {again:?}");
        }
    }
    assert!(kills > 100, "{kills}");
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    drop(server);
    host.networks.release("one").unwrap();
    host.networks.check(&live(&[]), true).unwrap();
    nothing_left(&host);
}

#[test]
fn many_come_and_go() {
    let host = Host::new();
    let ids: Vec<String> = (0..50).map(|number| format!("w{number}")).collect();
    let start = |(number, id): (u16, &String)| {
        let ports: Vec<_> =
            (0..3).map(|port| publish(10_000 + 3 * number + port, 80 + port, Protocol::Tcp)).collect();
        host.start(id, &[], &ports)
    };
    let made: Vec<_> = (0..).zip(&ids).map(start).collect();
    let addresses: BTreeSet<String> = made.iter().map(|one| ip(one, 0)).collect();
    assert_eq!(addresses.len(), ids.len());
    for id in &ids {
        host.networks.release(id).unwrap();
    }
    nothing_left(&host);
    assert_eq!(host.networks.check(&live(&[]), false).unwrap(), []);
}

#[test]
fn networks_come_and_go() {
    let host = Host::new();
    let blue = host.network("blue", |_| {});
    let red = host.network("red", |_| {});
    assert_ne!(blue.subnets, red.subnets);
    assert_eq!(host.networks.find(&blue.id[..8]).unwrap(), blue);
    host.start("one", &["blue"], &[]);
    let removed = host.networks.prune(&|_| true).unwrap();
    assert_eq!(removed.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["red"]);
    assert_eq!(host.networks.find("red").unwrap_err().to_string(), "there is no network red");
    assert!(host.networks.remove("bridge").is_err());
    host.networks.release("one").unwrap();
    no_devices();
    assert_eq!(host.networks.remove("blue").unwrap(), blue);
    assert!(!sh("ip link").contains(&blue.device));
    assert!(!sh("nft list ruleset").contains(&blue.device));
    let spec = |driver: &str, options: &[(&str, &str)]| moat_model::network::NetworkSpec {
        name: "green".to_owned(),
        driver: driver.to_owned(),
        options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..moat_model::network::NetworkSpec::default()
    };
    for (spec, said) in [
        (spec("macvlan", &[]), "network green: the driver macvlan is not supported yet"),
        (spec("bridge", &[("a.b", "c")]), "network green: the driver bridge has no option a.b"),
        (spec("bridge", &[("mtu", "many")]), "network green: option mtu: \"many\" is no number of bytes"),
    ] {
        assert_eq!(host.networks.create(&spec).unwrap_err().to_string(), said);
    }
}

/// A check that puts the filter up anew does not take away what a workload that starts meanwhile has just put in.
#[test]
fn a_repair_beside_workloads_that_start() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let host = Host::new();
    let all = host.start("stays", &[], &[publish(7000, 70, Protocol::Tcp)]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let repairs = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                // Somebody takes a rule away: all is put up again.
                sh("nft flush chain bridge moat prerouting");
                host.networks.check(&|_: &str| None, true).unwrap();
                count += 1;
            }
            count
        });
        let works = || {
            for _ in 0..40 {
                let one = host.start("one", &[], &[publish(8080, 81, Protocol::Tcp)]);
                let map = sh("nft list map inet moat ports4");
                assert!(map.contains(&format!(". 8080 : {} . 81", ip(&one, 0))), "{map}");
                assert!(map.contains(&format!(". 7000 : {} . 70", ip(&all, 0))), "{map}");
                host.networks.release("one").unwrap();
            }
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(works));
        over.store(true, Ordering::Relaxed);
        assert!(repairs.join().unwrap() > 5);
        done.unwrap();
    });
    host.networks.release("stays").unwrap();
    nothing_left(&host);
}
