//! Who reaches whom: the matrix of a network's promises.

use moat_model::workload::{EndpointSpec, NetworkMode, NetworkingSpec, PortSpec, Protocol};
use moat_net::ErrorKind;

use crate::host::{HOST, HOST6, Host, OUTSIDE, OUTSIDE6, ip, ip6, live, place, publish, sh};

#[test]
fn containers_reach_each_other_and_the_outside() {
    let host = Host::new();
    let one = host.start("one", &[], &[]);
    let two = host.start("two", &[], &[]);
    assert_eq!((ip(&one, 0).as_str(), ip(&two, 0).as_str()), ("172.17.0.2", "172.17.0.3"));
    for kind in ["tcp", "udp"] {
        let _server = place(&two).serve(kind, "0.0.0.0", 80);
        assert_eq!(place(&one).ask(kind, &ip(&two, 0), 80), Some(ip(&one, 0)));
        let _outside = host.outside().serve(kind, "0.0.0.0", 80);
        // With the host's address: the outside has no way to the container's.
        assert_eq!(place(&one).ask(kind, OUTSIDE, 80).as_deref(), Some(HOST));
        // The host itself is reached as such.
        let _host = Host::own().serve(kind, "172.17.0.1", 81);
        assert_eq!(place(&one).ask(kind, "172.17.0.1", 81), Some(ip(&one, 0)));
        assert_eq!(Host::own().ask(kind, &ip(&two, 0), 80).as_deref(), Some("172.17.0.1"));
    }
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let host = Host::new();
    let one = host.start("one", &[], &[publish(8080, 80, Protocol::Tcp), publish(80, 80, Protocol::Udp)]);
    let two = host.start("two", &[], &[]);
    for (kind, port) in [("tcp", 8080), ("udp", 80)] {
        let _server = place(&one).serve(kind, "0.0.0.0", 80);
        // From the outside, with its own address.
        assert_eq!(host.outside().ask(kind, HOST, port).as_deref(), Some(OUTSIDE), "{kind}");
        // From the host, by loopback and by its address.
        assert_eq!(Host::own().ask(kind, "127.0.0.1", port).as_deref(), Some("172.17.0.1"), "{kind}");
        assert_eq!(Host::own().ask(kind, HOST, port).as_deref(), Some(HOST), "{kind}");
        // From a neighbour and from itself, by the host's address.
        assert_eq!(place(&two).ask(kind, HOST, port).as_deref(), Some("172.17.0.1"), "{kind}");
        assert_eq!(place(&one).ask(kind, HOST, port).as_deref(), Some("172.17.0.1"), "{kind}");
    }
    // What is not published is not reached, also not by who knows the way.
    let _server = place(&one).serve("tcp", "0.0.0.0", 22);
    host.outside().sh(&format!("ip route add 172.17.0.0/16 via {HOST}"));
    assert_eq!(host.outside().ask("tcp", &ip(&one, 0), 22), None);
    assert_eq!(host.outside().ask("tcp", HOST, 22), None);
}

#[test]
fn hairpin_without_the_bridge_filter() {
    let host = Host::new();
    sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
    let one = host.start("one", &[], &[publish(8080, 80, Protocol::Tcp)]);
    let two = host.start("two", &[], &[]);
    let _server = place(&one).serve("tcp", "0.0.0.0", 80);
    assert_eq!(place(&two).ask("tcp", HOST, 8080).as_deref(), Some("172.17.0.1"));
    assert_eq!(place(&one).ask("tcp", HOST, 8080).as_deref(), Some("172.17.0.1"));
    assert_eq!(place(&two).ask("tcp", &ip(&one, 0), 80), Some(ip(&two, 0)));
}

#[test]
fn ipv6_as_ipv4() {
    let host = Host::new();
    let blue = host.network("blue", |spec| spec.ipv6 = true);
    let one =
        host.start("one", &["blue"], &[publish(8080, 80, Protocol::Tcp), publish(80, 80, Protocol::Udp)]);
    let two = host.start("two", &["blue"], &[]);
    let gateway = blue.ipv6().unwrap().1.to_string();
    for (kind, port) in [("tcp", 8080), ("udp", 80)] {
        let _server = place(&one).serve(kind, "::", 80);
        assert_eq!(place(&two).ask(kind, &ip6(&one, 0), 80), Some(ip6(&two, 0)), "{kind}");
        let _outside = host.outside().serve(kind, "::", 81);
        assert_eq!(place(&one).ask(kind, OUTSIDE6, 81).as_deref(), Some(HOST6), "{kind}");
        assert_eq!(host.outside().ask(kind, HOST6, port).as_deref(), Some(OUTSIDE6), "{kind}");
        assert_eq!(Host::own().ask(kind, HOST6, port).as_deref(), Some(HOST6), "{kind}");
        assert_eq!(place(&two).ask(kind, HOST6, port), Some(gateway.clone()), "{kind}");
        assert_eq!(place(&one).ask(kind, HOST6, port), Some(gateway.clone()), "{kind}");
    }
    host.outside().sh(&format!("ip route add fd00::/8 via {HOST6}"));
    let _server = place(&one).serve("tcp", "::", 22);
    assert_eq!(host.outside().ask("tcp", &ip6(&one, 0), 22), None);
}

/// The kernel can only do so where it does not show bridged packets to the packet filter; else it is refused at once.
#[test]
fn ipv6_loopback() {
    let host = Host::new();
    sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables");
    let gateway = host.network("blue", |spec| spec.ipv6 = true).ipv6().unwrap().1.to_string();
    let one = host.start("one", &["blue"], &[publish(8080, 80, Protocol::Tcp)]);
    let _server = place(&one).serve("tcp", "::", 80);
    assert_eq!(Host::own().ask("tcp", "::1", 8080), Some(gateway));
    sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables");
    let found = host.networks.check(&live(&["one"]), true).unwrap();
    assert_eq!(found[0].problem, "it does not hold what is saved", "{found:?}");
    let refused =
        Host::own().run("python3", &["-c", "import socket; socket.socket(10).connect(('::1', 8080))"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ConnectionRefusedError"), "{refused:?}");
}

#[test]
fn ranges_and_addresses_of_the_host() {
    let host = Host::new();
    let same = PortSpec {
        host_ip: None,
        host_ports: Some((7000, 7099)),
        ports: (7000, 7099),
        protocol: Protocol::Tcp,
    };
    let moved = PortSpec { host_ports: Some((7100, 7109)), ports: (90, 99), ..same.clone() };
    let local = PortSpec {
        host_ip: Some("127.0.0.1".parse().unwrap()),
        host_ports: Some((9000, 9000)),
        ports: (7050, 7050),
        protocol: Protocol::Tcp,
    };
    let one = host.start("one", &[], &[same, moved, local]);
    let _first = place(&one).serve("tcp", "0.0.0.0", 7050);
    let _second = place(&one).serve("tcp", "0.0.0.0", 97);
    assert_eq!(host.outside().ask("tcp", HOST, 7050).as_deref(), Some(OUTSIDE));
    assert_eq!(host.outside().ask("tcp", HOST, 7107).as_deref(), Some(OUTSIDE));
    assert_eq!(Host::own().ask("tcp", "127.0.0.1", 9000).as_deref(), Some("172.17.0.1"));
    assert_eq!(host.outside().ask("tcp", HOST, 9000), None);
    // A hundred ports that keep their number are one element.
    assert_eq!(sh("nft list map inet moat ranges4").matches("7000-7099").count(), 1);
}

#[test]
fn ports_are_given_once() {
    let host = Host::new();
    let range = |first, last| PortSpec {
        host_ip: None,
        host_ports: Some((first, last)),
        ports: (80, 80),
        protocol: Protocol::Tcp,
    };
    let one = host.start("one", &[], &[range(8000, 8001)]);
    let two = host.start("two", &[], &[range(8000, 8001)]);
    assert_eq!((one.ports[0].host_port, two.ports[0].host_port), (8000, 8001));
    let error = host.try_start("three", &[], &[range(8000, 8001)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = host.try_start("three", &[], &[publish(8001, 80, Protocol::Tcp)]).unwrap_err();
    let said = "network of workload three: port 0.0.0.0:8001 of the host is published by another workload";
    assert_eq!(error.to_string(), said);
    // A program of the host has it.
    let _server = Host::own().serve("tcp", "0.0.0.0", 8002);
    let error = host.try_start("three", &[], &[publish(8002, 80, Protocol::Tcp)]).unwrap_err();
    assert_eq!(error.to_string(), "network of workload three: port 0.0.0.0:8002/tcp of the host is in use");
    // As long as they are held, no program of the host can have published ports.
    let held = host.try_start("three", &[], &[publish(8003, 80, Protocol::Tcp)]).unwrap();
    let bind = "python3 -c 'import socket; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind((\"\", 8003))'";
    Host::own().fails(bind);
    drop(held.reserved);
    Host::own().sh(bind);
    // Any free one.
    let free = PortSpec { host_ip: None, host_ports: None, ports: (80, 82), protocol: Protocol::Tcp };
    let four = host.start("four", &[], &[free]);
    assert_eq!(four.ports.len(), 3);
    assert!(four.ports.iter().all(|port| port.host_port >= 32768));
    // What failed left nothing.
    for workload in ["one", "two", "three", "four"] {
        host.networks.release(workload).unwrap();
    }
    assert!(!sh("nft list ruleset").contains("172.17.0.2"));
}

#[test]
fn networks_are_isolated() {
    let host = Host::new();
    host.network("blue", |_| {});
    host.network("red", |_| {});
    let one = host.start("one", &["blue"], &[]);
    let two = host.start("two", &["red"], &[publish(8080, 80, Protocol::Tcp)]);
    let three = host.start("three", &["blue", "red"], &[]);
    let _server = place(&two).serve("tcp", "0.0.0.0", 80);
    assert_eq!(place(&one).ask("tcp", &ip(&two, 0), 80), None);
    assert_eq!(place(&three).ask("tcp", &ip(&two, 0), 80), Some(ip(&three, 1)));
    // What is published is for all who reach the host.
    assert_eq!(place(&one).ask("tcp", HOST, 8080), Some(ip(&one, 0)));
}

#[test]
fn nothing_leads_out_of_an_internal_network() {
    let host = Host::new();
    host.network("dark", |spec| {
        spec.internal = true;
        spec.ipv6 = true;
    });
    let one = host.start("one", &["dark"], &[]);
    let two = host.start("two", &["dark"], &[]);
    let free = host.start("free", &[], &[publish(8080, 80, Protocol::Tcp)]);
    let _two = place(&two).serve("tcp", "::", 80);
    let _free = place(&free).serve("tcp", "0.0.0.0", 80);
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    let _host = Host::own().serve("tcp", "0.0.0.0", 81);
    assert_eq!(place(&one).ask("tcp", &ip(&two, 0), 80), Some(format!("::ffff:{}", ip(&one, 0))));
    assert_eq!(place(&one).ask("tcp", &ip6(&two, 0), 80), Some(ip6(&one, 0)));
    // Even for who makes a way out.
    let gateway = host.networks.find("dark").unwrap().ipv4().unwrap().1;
    place(&one).sh(&format!("ip route add default via {gateway}"));
    for (address, port) in
        [(OUTSIDE, 80), (HOST, 8080), (HOST, 81), (&ip(&free, 0), 80), (&gateway.to_string(), 81)]
    {
        assert_eq!(place(&one).ask("tcp", address, port), None, "{address}:{port}");
    }
    host.outside().sh(&format!("ip route add {} via {HOST}", ip(&one, 0)));
    assert_eq!(host.outside().ask("tcp", &ip(&two, 0), 80), None);
    // The host reaches in, and in is where answers come from.
    assert!(Host::own().ask("tcp", &ip(&two, 0), 80).is_some());
    let error = host.try_start("three", &["dark"], &[publish(8081, 80, Protocol::Tcp)]).unwrap_err();
    let said = "network of workload three: port 80/tcp can not be published: \
                the workload has no network that leads outside";
    assert_eq!(error.to_string(), said);
}

#[test]
fn joining_and_leaving_while_it_runs() {
    let host = Host::new();
    host.network("blue", |spec| spec.ipv6 = true);
    host.network("dark", |spec| spec.internal = true);
    let names = ["one".to_owned()];
    let to = |network: &str| EndpointSpec { network: network.to_owned(), ..EndpointSpec::default() };
    host.start("one", &["dark"], &[]);
    let two = host.start("two", &["blue"], &[]);
    let _two = place(&two).serve("tcp", "::", 80);
    let inside = place(&host.networks.attachment("one").unwrap().unwrap());
    assert_eq!(inside.ask("tcp", &ip(&two, 0), 80), None);
    let joined = host.networks.connect("one", &to("blue"), &names).unwrap();
    assert_eq!(joined.interface, "eth1");
    assert!(inside.ask("tcp", &ip(&two, 0), 80).is_some());
    assert_eq!(inside.ask("tcp", &ip6(&two, 0), 80), Some(joined.ip6.unwrap().addr().to_string()));
    // And with it a way out.
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    assert_eq!(inside.ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    let error = host.networks.connect("one", &to("blue"), &names).unwrap_err();
    assert_eq!(error.to_string(), "workload one is on network blue already");
    let error = host.networks.remove("blue").unwrap_err();
    assert_eq!(error.to_string(), "network blue: 2 workloads are on it, one is one");
    host.networks.disconnect("one", "blue").unwrap();
    assert_eq!(inside.ask("tcp", OUTSIDE, 80), None);
    assert!(!inside.sh("ip link").contains("eth1"));
    let error = host.networks.disconnect("one", "blue").unwrap_err();
    assert_eq!(error.to_string(), "workload one is not on network blue");
    host.networks.release("one").unwrap();
    host.networks.release("two").unwrap();
    host.networks.remove("blue").unwrap();
    assert!(!sh("nft list ruleset").contains(&joined.device));
}

#[test]
fn published_ports_follow_the_network_that_leads_outside() {
    let host = Host::new();
    host.network("blue", |_| {});
    host.network("red", |_| {});
    let one = host.start("one", &["blue", "red"], &[publish(8080, 80, Protocol::Tcp)]);
    let _server = place(&one).serve("tcp", "0.0.0.0", 80);
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    host.networks.disconnect("one", "blue").unwrap();
    assert_eq!(host.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    assert_eq!(place(&one).ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
}

#[test]
fn the_network_of_another() {
    let host = Host::new();
    let one = host.start("one", &[], &[]);
    let mode = |mode| NetworkingSpec { mode, ..NetworkingSpec::default() };
    let two = host.attach("two", &mode(NetworkMode::Container("one".to_owned())));
    assert_eq!(two.namespace, one.namespace);
    let path = one.namespace.clone().unwrap().display().to_string();
    let three = host.attach("three", &mode(NetworkMode::Path(path)));
    assert_eq!(three.namespace, one.namespace);
    assert_eq!(host.attach("four", &mode(NetworkMode::Host)).namespace, None);
    let error = host.try_attach("five", &mode(NetworkMode::Container("nobody".to_owned()))).unwrap_err();
    assert_eq!(error.to_string(), "workload nobody has no network that others can join");
    let ports = vec![publish(8080, 80, Protocol::Tcp)];
    let wish = NetworkingSpec { mode: NetworkMode::Host, ports, ..NetworkingSpec::default() };
    let error = host.try_attach("five", &wish).unwrap_err();
    assert_eq!(error.to_string(), "ports can not be published in network mode host");
    // They have nothing of their own to release.
    host.networks.release("two").unwrap();
    assert!(place(&one).sh("ip addr").contains("172.17.0.2/16"));
}

#[test]
fn workloads_that_may_not_speak_to_each_other() {
    let host = Host::new();
    let option = ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned());
    host.network("quiet", |spec| spec.options.extend([option]));
    let one = host.start("one", &["quiet"], &[]);
    let two = host.start("two", &["quiet"], &[]);
    let _two = place(&two).serve("tcp", "0.0.0.0", 80);
    let _outside = host.outside().serve("tcp", "0.0.0.0", 80);
    assert_eq!(place(&one).ask("tcp", &ip(&two, 0), 80), None);
    assert_eq!(place(&one).ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
    assert_eq!(place(&one).ask("tcp", &ip(&two, 0), 80), None);
}
