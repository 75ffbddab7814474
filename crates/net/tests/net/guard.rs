//! Workloads that pretend to be others; and what is within reach of one.

use crate::host::{HOST, Host, ip, ip6, live, place, publish, sh};
use moat_model::workload::Protocol;

/// Sends frames that the kernel would not: arguments are interface, then frames in hexadecimal digits.
const SEND: &str = "import socket, sys\n\
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))\n\
for frame in sys.argv[2:]: s.send(bytes.fromhex(frame))";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An answer that `address` is at `mac`, to all.
fn arp(sender: &[u8], mac: &[u8], address: &str) -> String {
    let head = [&[0xff; 6], sender, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    hex(&[head, mac.to_vec(), octets(address), vec![0xff; 6], octets(address)].concat())
}

fn dropped() -> u64 {
    let text = sh("nft list chain bridge moat guard | grep spoofed");
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn nobody_speaks_as_another() {
    let host = Host::new();
    host.network("blue", |spec| spec.ipv6 = true);
    let evil = host.start("evil", &["blue"], &[]);
    let good = host.start("good", &["blue"], &[]);
    let other = host.start("other", &["blue"], &[]);
    let (own, theirs) = (evil.endpoints[0].mac.0, good.endpoints[0].mac.0);
    // Neighbours know each other before.
    let _server = place(&good).serve("tcp", "::", 80);
    assert!(place(&other).ask("tcp", &ip(&good, 0), 80).is_some());
    let before = dropped();
    let frames = [
        // "The other's address is at mine", with either hardware address as the sender.
        arp(&own, &own, &ip(&good, 0)),
        arp(&theirs, &own, &ip(&good, 0)),
        arp(&own, &theirs, &ip(&good, 0)),
        // "The gateway is me."
        arp(&own, &own, &host.networks.find("blue").unwrap().ipv4().unwrap().1.to_string()),
        // A frame of another protocol.
        hex(&[&[0xff; 6][..], &own, &[0x88, 0xcc, 0, 0]].concat()),
    ];
    let mut arguments = vec!["-c", SEND, "eth0"];
    arguments.extend(frames.iter().map(String::as_str));
    assert!(place(&evil).run("python3", &arguments).status.success());
    assert_eq!(dropped() - before, frames.len() as u64);
    let known = place(&other).sh("ip neigh show dev eth0");
    assert!(!known.contains(&evil.endpoints[0].mac.to_string()), "{known}");
    assert!(place(&other).ask("tcp", &ip(&good, 0), 80).is_some());
    // With an address that it gave itself, of its own network, of nobody's, or the neighbour's hardware address.
    let before = dropped();
    for script in [
        "ip addr add 172.17.77.77/16 dev eth0; ping -c 1 -W 1 -I 172.17.77.77 172.17.0.1",
        "ip addr add 203.0.113.9/32 dev eth0; ping -c 1 -W 1 -I 203.0.113.9 192.0.2.2",
        "ip addr add 2001:db8:7::7/64 dev eth0 nodad; ping -c 1 -W 1 -I 2001:db8:7::7 2001:db8::2",
    ] {
        place(&evil).fails(script);
    }
    assert!(dropped() > before);
    let neighbour = good.endpoints[0].mac;
    place(&evil).fails(&format!(
        "ip link set eth0 down; ip link set eth0 address {neighbour}; ip link set eth0 up; \
         ping -c 1 -W 1 {}",
        ip(&other, 0)
    ));
    assert!(place(&other).ask("tcp", &ip(&good, 0), 80).is_some());
    assert!(place(&other).ask("tcp", &ip6(&good, 0), 80).is_some());
}

#[test]
fn nobody_tells_others_where_the_routers_are() {
    let host = Host::new();
    host.network("blue", |spec| spec.ipv6 = true);
    let evil = host.start("evil", &["blue"], &[]);
    let good = host.start("good", &["blue"], &[]);
    // To all: a router that lives for long, with the sum that belongs to it.
    let advertise = "import socket\n\
        s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)\n\
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)\n\
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(\"eth0\"))\n\
        s.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8] + [0] * 8), (\"ff02::1\", 0))";
    assert!(place(&evil).run("python3", &["-c", advertise]).status.success());
    assert!(sh("nft list chain bridge moat guard | grep no-router").contains("packets 1 "));
    assert_eq!(place(&good).sh("ip -6 route show default | wc -l"), "1");
    assert_eq!(sh("ip -6 route show default | wc -l"), "0");
}

/// The row network-guard: no abstract sockets, no way to the host's loopback, the true source, one own table.
#[test]
fn what_is_within_reach_of_a_workload() {
    let host = Host::with_names();
    let one = host.start("one", &[], &[publish(8080, 80, Protocol::Tcp)]);
    // The resolver listens nowhere but at the gateway, and there is no socket without a file.
    let sockets = sh("ss -lxH | grep '@' || true");
    assert_eq!(sockets, "");
    for line in sh("ss -lntuH").lines() {
        assert!(line.contains("172.17.0.1:53"), "{line}");
    }
    // Loopback of the host, by the way that published ports take.
    let _server = Host::own().serve("tcp", "127.0.0.1", 81);
    place(&one).sh("ip route add 127.0.0.5 via 172.17.0.1; ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 172.17.0.1");
    place(&one).sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet");
    assert_eq!(place(&one).ask("tcp", "127.0.0.1", 81), None);
    let _published = place(&one).serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(crate::host::OUTSIDE));
    // All rules stand in the own tables, and come back.
    let tables = sh("nft list tables");
    assert_eq!(tables, "table inet moat\ntable bridge moat");
    sh("nft flush ruleset");
    assert_eq!(host.outside().ask("tcp", HOST, 8080), None);
    host.networks.check(&live(&["one"]), true).unwrap();
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(crate::host::OUTSIDE));
    host.networks.release("one").unwrap();
}
