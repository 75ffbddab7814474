//! The flags of `run` about networks.

use moat_tests::{HOST, NetworkHost as Host, OUTSIDE, Place};

#[test]
fn addresses_and_names() {
    let host = Host::new();
    host.moat("network create --subnet 10.77.0.0/24 --ip-range 10.77.0.128/25 --gateway 10.77.0.9 --ipv6 --subnet fd77::/64 blue");
    host.start(
        "one",
        "--network blue --ip 10.77.0.5 --ip6 fd77::5 --mac-address 02:00:00:00:77:05 \
         --network-alias db --network-alias store --hostname eins --domainname example.org",
    );
    let there = host.on("one", "blue");
    assert_eq!(there["IPAddress"], "10.77.0.5");
    assert_eq!(there["GlobalIPv6Address"], "fd77::5");
    assert_eq!(there["MacAddress"], "02:00:00:00:77:05");
    assert_eq!(there["Gateway"], "10.77.0.9");
    assert_eq!(there["IPAMConfig"]["IPv4Address"], "10.77.0.5");
    let seen = host.moat("exec one ip addr show eth0");
    for part in ["02:00:00:00:77:05", "10.77.0.5/24", "fd77::5/64"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let hosts = host.moat("exec one cat /etc/hosts");
    assert!(hosts.contains("10.77.0.5\teins.example.org eins\nfd77::5\teins.example.org eins"), "{hosts}");
    host.start("two", "--network blue");
    assert_eq!(host.ip("two", "blue"), "10.77.0.128");
    for name in ["one", "db", "store", "eins", "one.blue"] {
        let found = host.moat(&format!("exec two nslookup {name}"));
        assert!(found.contains("10.77.0.5"), "{name}: {found}");
    }
    let taken = host.refused("run --network blue --ip 10.77.0.5 busybox true");
    assert!(taken.contains("address 10.77.0.5 of network blue belongs to"), "{taken}");
    let beyond = host.refused("run --network blue --ip 10.78.0.5 busybox true");
    assert!(beyond.contains("10.78.0.5 is no address for a workload of network blue"), "{beyond}");
}

#[test]
fn several_networks_at_once() {
    let host = Host::new();
    host.moat("network create --internal dark");
    host.moat("network create blue");
    let one = host.start("one", "--network dark --network name=blue,alias=eins -p 8080:80");
    assert_eq!(host.moat("exec one ls /sys/class/net"), "eth0\neth1\nlo");
    let _server = one.serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    assert_eq!(one.ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    host.start("two", "--network blue");
    assert!(host.moat("exec two nslookup eins").contains(&host.ip("one", "blue")));
    assert_eq!(host.moat("ps --filter name=one --format {{.Networks}}"), "dark,blue");
    assert_eq!(host.moat("ps -q --filter network=dark").len(), 12);
    assert!(host.refused("run --network blue --network none busybox").contains("exclude"));
}

#[test]
fn names_and_resolvers() {
    let host = Host::new();
    let script = "cat /etc/hosts /etc/resolv.conf";
    let run = |flags: &str| {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let args = [&["run", "--rm"], flags.as_slice(), &["busybox", "sh", "-c", script]].concat();
        host.moat.call(&args).success().to_owned()
    };
    let seen =
        run("--add-host db:10.0.0.7 --add-host up:host-gateway --dns-search a.example --dns-option rotate");
    for line in ["10.0.0.7\tdb\n", "172.17.0.1\tup\n", "search a.example\n", "options rotate ndots:0\n"] {
        assert!(seen.contains(line), "{line:?}: {seen}");
    }
    assert!(seen.contains("nameserver 172.17.0.1\n"), "{seen}");
    // The resolver that was named is asked by the network's own.
    let _dns = host.outside().start(DNS, &[]);
    let found = host.moat(&format!("run --rm --dns {OUTSIDE} busybox nslookup far.example"));
    assert!(found.contains("203.0.113.77"), "{found}");
    let host_mode = run("--network host --add-host up:host-gateway");
    assert!(host_mode.contains("127.0.0.1\tup\n"), "{host_mode}");
}

/// A name server that knows one answer.
const DNS: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 53))
print("listening", flush=True)
while True:
    q, peer = s.recvfrom(2000)
    end = q.index(0, 12) + 5
    a = q[end - 4:end - 2] == b"\x00\x01"
    answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + bytes([203, 0, 113, 77]) if a else b""
    s.sendto(q[:2] + b"\x81\x80\x00\x01" + (b"\x00\x01" if a else b"\x00\x00") + b"\x00\x00\x00\x00" + q[12:end] + answer, peer)
"#;

#[test]
fn forms_of_published_ports() {
    let host = Host::new();
    let one =
        host.start("one", "-p 127.0.0.1:9000:90 -p 7000-7002:7000-7002 -p 8000-8001:80 -p 99 --expose 443");
    let two = host.start("two", "-p 8000-8001:80");
    let all = host.moat("port one");
    let free = all.lines().find_map(|line| line.strip_prefix("99/tcp -> 0.0.0.0:")).unwrap().to_owned();
    assert_eq!(
        host.moat("ps --filter name=one --format {{.Ports}}"),
        format!(
            "0.0.0.0:8000->80/tcp, 127.0.0.1:9000->90/tcp, 0.0.0.0:{free}->99/tcp, 443/tcp, \
             0.0.0.0:7000-7002->7000-7002/tcp"
        )
    );
    assert_eq!(host.moat("port two"), "80/tcp -> 0.0.0.0:8001");
    for (place, own, port) in
        [(&one, 7001, 7001), (&one, 80, 8000), (&two, 80, 8001), (&one, 99, free.parse().unwrap())]
    {
        let _server = place.serve("tcp", "0.0.0.0", own);
        assert_eq!(host.outside().ask("tcp", HOST, port).as_deref(), Some(OUTSIDE), "{port}");
    }
    let _local = one.serve("tcp", "0.0.0.0", 90);
    assert!(Place::host().ask("tcp", "127.0.0.1", 9000).is_some());
    assert_eq!(host.outside().ask("tcp", HOST, 9000), None);
    let taken = host.refused("run -p 7002:1 busybox true");
    assert!(taken.contains("port 0.0.0.0:7002/tcp of the host is in use"), "{taken}");
    // All that is exposed, at free ports.
    let three = host.start("three", "-P --expose 81 --expose 53/udp");
    let places = host.moat("port three");
    assert_eq!(places.lines().count(), 2, "{places}");
    let port = places.lines().find_map(|line| line.strip_prefix("81/tcp -> 0.0.0.0:")).unwrap();
    let _server = three.serve("tcp", "0.0.0.0", 81);
    assert_eq!(host.outside().ask("tcp", HOST, port.parse().unwrap()).as_deref(), Some(OUTSIDE));
    let ports = host.moat.inspect("one")["NetworkSettings"]["Ports"].clone();
    assert_eq!(ports["443/tcp"], serde_json::Value::Null);
    assert_eq!(ports["90/tcp"][0]["HostIp"], "127.0.0.1");
    assert_eq!(ports["90/tcp"][0]["HostPort"], "9000");
}
