//! Who reaches whom.

use moat_tests::{
    HOST, HOST6, Moat, NetworkHost as Host, OUTSIDE, OUTSIDE6, Place, in_lab, run_in_lab_with, sh,
};

#[test]
fn each_other_and_the_outside() {
    let host = Host::new();
    let one = host.start("one", "");
    let two = host.start("two", "");
    let (ip1, ip2) = (host.ip("one", "bridge"), host.ip("two", "bridge"));
    for kind in ["tcp", "udp"] {
        let _two = two.serve(kind, "0.0.0.0", 80);
        assert_eq!(one.ask(kind, &ip2, 80), Some(ip1.clone()), "{kind}");
        let _outside = host.outside().serve(kind, "0.0.0.0", 80);
        // With the host's address: the outside has no way to the workload's.
        assert_eq!(one.ask(kind, OUTSIDE, 80).as_deref(), Some(HOST), "{kind}");
    }
    // By name, in both directions, and by the address the name.
    let found = host.moat("exec one nslookup two");
    assert!(found.contains(&ip2), "{found}");
    assert!(host.moat("exec two ping -c 1 one").contains(&ip1));
    let reverse = host.moat(&format!("exec one nslookup {ip2}"));
    assert!(reverse.contains("name = two"), "{reverse}");
    host.moat("rename two zwei");
    assert!(host.moat("exec one nslookup zwei").contains(&ip2));
    host.refused("exec one nslookup two");
}

#[test]
fn a_published_port_from_everywhere() {
    let host = Host::new();
    let one = host.start("one", "-p 8080:80 -p 5353:53/udp");
    let two = host.start("two", "");
    for (kind, port, own) in [("tcp", 8080, 80), ("udp", 5353, 53)] {
        let _server = one.serve(kind, "0.0.0.0", own);
        // From the outside, with its own address.
        assert_eq!(host.outside().ask(kind, HOST, port).as_deref(), Some(OUTSIDE), "{kind}");
        // From the host by loopback and by its address, from a neighbour, and from itself.
        for (place, address) in
            [(Place::host(), "127.0.0.1"), (Place::host(), HOST), (two.clone(), HOST), (one.clone(), HOST)]
        {
            assert!(place.ask(kind, address, port).is_some(), "{kind} {place:?} {address}");
        }
    }
    // No process of Moat has anything to do with it.
    assert!(!sh("ss -lntupH | grep -v :53 || true").contains("proxy"));
    assert_eq!(host.moat("port one"), "53/udp -> 0.0.0.0:5353\n80/tcp -> 0.0.0.0:8080");
    assert_eq!(host.moat("port one 80"), "0.0.0.0:8080");
    host.moat("stop -t 0 one");
    assert_eq!(host.moat("port one"), "");
    assert_eq!(host.outside().ask("tcp", HOST, 8080), None);
    host.moat("start one");
    let _server = host.place("one").serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
}

/// The kernel at hand may have no SCTP: here the rule is shown by the element that it looks up.
#[test]
fn sctp_is_published() {
    let host = Host::new();
    host.start("one", "-p 7000:70/sctp");
    let ip = host.ip("one", "bridge");
    let map = sh("nft list map inet moat ports4");
    assert!(map.contains(&format!("0.0.0.0/0 . sctp . 7000 : {ip} . 70")), "{map}");
    assert_eq!(host.moat("port one"), "70/sctp -> 0.0.0.0:7000");
}

/// In the emulated host, whose kernel has SCTP.
#[test]
fn sctp_is_spoken() {
    if !in_lab() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("moat");
        let mut strip = std::process::Command::new("strip");
        assert!(strip.arg("-o").arg(&program).arg(Moat::empty().program()).status().unwrap().success());
        run_in_lab_with("reach::sctp_is_spoken", &[&program]);
        return;
    }
    let host = Host::new();
    let one = host.start("one", "-p 7000:70/sctp");
    let two = host.start("two", "");
    let _server = one.serve("sctp", "0.0.0.0", 70);
    let (ip1, ip2) = (host.ip("one", "bridge"), host.ip("two", "bridge"));
    assert_eq!(two.ask("sctp", &ip1, 70), Some(ip2));
    assert_eq!(host.outside().ask("sctp", HOST, 7000).as_deref(), Some(OUTSIDE));
    assert!(Place::host().ask("sctp", "127.0.0.1", 7000).is_some());
    let _outside = host.outside().serve("sctp", "0.0.0.0", 71);
    assert_eq!(one.ask("sctp", OUTSIDE, 71).as_deref(), Some(HOST));
}

#[test]
fn ipv6() {
    let host = Host::new();
    host.moat("network create --ipv6 six");
    let one = host.start("one", "--network six -p 8080:80");
    let two = host.start("two", "--network six");
    let _server = one.serve("tcp", "::", 80);
    assert_eq!(two.ask("tcp", &host.ip6("one", "six"), 80), Some(host.ip6("two", "six")));
    let _outside = host.outside().serve("tcp", "::", 81);
    assert_eq!(two.ask("tcp", OUTSIDE6, 81).as_deref(), Some(HOST6));
    assert_eq!(host.outside().ask("tcp", HOST6, 8080).as_deref(), Some(OUTSIDE6));
    assert_eq!(host.moat("port one"), "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080");
    let found = host.moat("exec two nslookup -type=aaaa one");
    assert!(found.contains(&host.ip6("one", "six")), "{found}");
}

#[test]
fn internal_and_isolated_networks() {
    let host = Host::new();
    host.moat("network create --internal dark");
    host.moat("network create blue");
    let one = host.start("one", "--network dark");
    let two = host.start("two", "--network dark");
    let three = host.start("three", "--network blue");
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    let _two = two.serve("tcp", "0.0.0.0", 80);
    let _three = three.serve("tcp", "0.0.0.0", 80);
    assert!(one.ask("tcp", &host.ip("two", "dark"), 80).is_some());
    assert_eq!(one.ask("tcp", OUTSIDE, 80), None);
    assert_eq!(three.ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    // Two networks are two worlds, also for names.
    assert_eq!(one.ask("tcp", &host.ip("three", "blue"), 80), None);
    assert_eq!(three.ask("tcp", &host.ip("two", "dark"), 80), None);
    host.refused("exec one nslookup three");
    host.moat("exec one nslookup two");
    assert!(
        host.refused("run -p 80:80 --network dark busybox true").contains("no network that leads outside")
    );
}

#[test]
fn joining_and_leaving_while_it_runs() {
    let host = Host::new();
    host.moat("network create blue");
    let one = host.start("one", "");
    let two = host.start("two", "--network blue");
    let _two = two.serve("tcp", "0.0.0.0", 80);
    let ip2 = host.ip("two", "blue");
    assert_eq!(one.ask("tcp", &ip2, 80), None);
    host.moat("network connect --alias eins blue one");
    assert_eq!(one.ask("tcp", &ip2, 80), Some(host.ip("one", "blue")));
    assert!(host.moat("exec two nslookup eins").contains(&host.ip("one", "blue")));
    assert!(host.moat("exec one cat /etc/hosts").contains(&host.ip("one", "blue")));
    // It stays so.
    host.moat("restart -t 0 one");
    assert_eq!(host.place("one").ask("tcp", &ip2, 80), Some(host.ip("one", "blue")));
    let again = host.refused("network connect blue one");
    assert!(again.contains("workload one to network blue: it is on that network already"), "{again}");
    let used = host.refused("network rm blue");
    assert!(used.contains("2 workloads are on it"), "{used}");
    host.moat("network disconnect blue one");
    assert_eq!(host.place("one").ask("tcp", &ip2, 80), None);
    assert_eq!(host.on("one", "blue"), serde_json::Value::Null);
    let gone = host.refused("network disconnect blue one");
    assert!(gone.contains("it is not on that network"), "{gone}");
    host.moat("network disconnect --force blue one");
    // Off the last one, and on again, as it runs.
    host.moat("network disconnect bridge one");
    assert_eq!(host.moat("exec one ls /sys/class/net"), "lo");
    assert!(!host.moat("exec one cat /etc/hosts").contains("172.17."));
    host.moat("network connect bridge one");
    assert_eq!(host.moat("exec one ls /sys/class/net"), "eth0\nlo");
    // Of one that does not run it is noted.
    host.moat("stop -t 0 one");
    host.moat("network connect blue one");
    host.moat("start one");
    assert_eq!(host.place("one").ask("tcp", &ip2, 80), Some(host.ip("one", "blue")));
    let refused = host.refused("network connect blue two");
    assert!(refused.contains("already"), "{refused}");
    host.start("alone", "--network host");
    assert!(host.refused("network connect blue alone").contains("its network is host"));
}

#[test]
fn the_network_of_another() {
    let host = Host::new();
    let one = host.start("one", "-p 8080:80 --add-host db:10.9.8.7");
    let two = host.start("two", "--network container:one");
    host.start("three", "--network container:two");
    assert_eq!(one.sh("readlink /proc/self/ns/net"), two.sh("readlink /proc/self/ns/net"));
    let _server = host.place("three").serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    assert!(host.moat("exec three cat /etc/hosts").contains("10.9.8.7\tdb"));
    assert_eq!(host.moat("exec three cat /etc/resolv.conf"), host.moat("exec one cat /etc/resolv.conf"));
    assert_eq!(host.moat("inspect -f {{.HostConfig.NetworkMode}} two"), "container:one");
    for (flags, said) in [
        ("-p 80:80", "ports can not be published in network mode container"),
        ("--dns 9.9.9.9", "names and resolvers are those of the workload whose network is shared"),
    ] {
        let refused = host.refused(&format!("create --network container:one {flags} busybox"));
        assert!(refused.contains(said), "{refused}");
    }
    // It has nothing of its own to give back.
    host.moat("rm -f two three");
    assert!(one.sh("ip addr").contains("172.17.0.2/16"));
    assert!(host.refused("run --network container:nobody busybox").contains("does not exist"));
}

#[test]
fn a_namespace_that_somebody_else_made() {
    let host = Host::new();
    sh("ip netns add moat-test; ip -n moat-test link set lo up; ip -n moat-test addr add 10.5.5.5/32 dev lo");
    let seen = host.moat("run --rm --network ns:/run/netns/moat-test busybox ip addr");
    assert!(seen.contains("10.5.5.5/32"), "{seen}");
    sh("ip netns del moat-test");
    host.refused("run --rm --network ns:/run/netns/moat-test busybox ip addr");
}
