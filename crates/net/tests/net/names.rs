//! Names: what workloads call each other, and what leaves the house.

use moat_model::network::{NetAttachment, SubnetSpec};
use moat_model::workload::{EndpointSpec, NetworkingSpec};

use crate::host::{Host, OUTSIDE, Place, Running, ip, ip6, live, place, sh};

/// What the networks of these tests start as their resolver.
#[test]
#[ignore = "a helper that other tests start"]
fn resolver_process() {
    moat_net::resolver::serve().unwrap();
}

fn server(attachment: &NetAttachment) -> String {
    attachment.resolver.unwrap().to_string()
}

/// Asks as dig(1) does; an empty text where there is no such record.
fn dig(place: &Place, server: &str, question: &str) -> String {
    place.sh(&format!("dig +short +tries=1 @{server} {question}"))
}

fn status(place: &Place, server: &str, question: &str) -> String {
    let text = place.sh(&format!("dig +tries=1 @{server} {question}"));
    text.split("status: ").nth(1).unwrap().split(',').next().unwrap().to_owned()
}

/// The process that listens at port 53 of an address; an empty text where none does.
fn resolver_of(server: &str) -> String {
    sh(&format!("ss -lnup | grep -w '{server}:53' | sed 's/.*pid=//; s/,.*//' || true"))
}

/// No resolver is left once all have gone for good.
fn wait_for_end(network: &str) {
    while !sh(&format!("ss -lntup | grep -w '{network}:53' || true")).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn workloads_find_each_other_by_name() {
    let host = Host::with_names();
    host.network("blue", |spec| spec.ipv6 = true);
    let alias = EndpointSpec {
        network: "blue".to_owned(),
        aliases: vec!["web".to_owned()],
        ..EndpointSpec::default()
    };
    let wish = NetworkingSpec { endpoints: vec![alias], ..NetworkingSpec::default() };
    let one = host.attach("one", &wish);
    let two = host.attach("two", &wish);
    let server = server(&one);
    let inside = place(&one);
    for flags in ["", "+tcp "] {
        assert_eq!(dig(&inside, &server, &format!("{flags}two")), ip(&two, 0));
        assert_eq!(dig(&inside, &server, &format!("{flags}TWO.Blue")), ip(&two, 0));
        assert_eq!(dig(&inside, &server, &format!("{flags}two AAAA")), ip6(&two, 0));
        assert_eq!(dig(&inside, &server, &format!("{flags}-x {}", ip(&two, 0))), "two.blue.");
        assert_eq!(dig(&inside, &server, &format!("{flags}-x {}", ip6(&two, 0))), "two.blue.");
    }
    let mut both: Vec<String> = dig(&inside, &server, "web").lines().map(str::to_owned).collect();
    both.sort();
    assert_eq!(both, [ip(&one, 0), ip(&two, 0)]);
    // It exists, and has no record of that kind.
    assert_eq!(status(&inside, &server, "two MX"), "NOERROR");
    host.networks.release("two").unwrap();
    assert_eq!(dig(&inside, &server, "two"), "");
    host.networks.release("one").unwrap();
    wait_for_end(&server);
}

#[test]
fn only_what_one_may_reach_is_told() {
    let host = Host::with_names();
    host.network("blue", |_| {});
    host.network("red", |_| {});
    let one = host.start("one", &["blue"], &[]);
    let two = host.start("two", &["red"], &[]);
    let both = host.start("both", &["blue", "red"], &[]);
    assert_eq!(dig(&place(&one), &server(&one), "both"), ip(&both, 0));
    assert_eq!(dig(&place(&one), &server(&one), "two"), "");
    // Also from the network whose resolver is not its first one.
    assert_eq!(dig(&place(&both), &server(&both), "two"), ip(&two, 0));
    assert_eq!(dig(&place(&one), &server(&one), &format!("-x {}", ip(&two, 0))), "");
    // Nobody of the outside is answered.
    host.outside().sh(&format!("ip route add {} via {}", server(&one), crate::host::HOST));
    host.outside().fails(&format!("dig +short +tries=1 +time=1 @{} both", server(&one)));
    for workload in ["one", "two", "both"] {
        host.networks.release(workload).unwrap();
    }
    wait_for_end(&server(&one));
}

/// A name server of the outside, which answers `big.test` by UDP with a hint to ask by TCP, and notes what it is asked.
fn upstream(host: &Host, notes: &std::path::Path) -> Running {
    host.outside().start(UPSTREAM, &[notes.to_str().unwrap()])
}

const UPSTREAM: &str = r#"
import socket, struct, sys, threading
notes = open(sys.argv[1], "w")
def answer(query, tcp):
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    notes.write("%s %r\n" % ("tcp" if tcp else "udp", question)); notes.flush()
    if not tcp and question.startswith(b"\3big"):
        return query[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + question
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\xc6\x33\x64\7"
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("192.0.2.2", 53))
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind(("192.0.2.2", 53)); t.listen(9)
def tcp():
    while True:
        c, _ = t.accept()
        n, = struct.unpack(">H", c.recv(2)); a = answer(c.recv(n), True)
        c.sendall(struct.pack(">H", len(a)) + a); c.close()
threading.Thread(target=tcp, daemon=True).start()
print("listening", flush=True)
while True:
    q, peer = u.recvfrom(4096)
    u.sendto(answer(q, False), peer)
"#;

#[test]
fn the_outside_is_asked_for_what_is_not_ours() {
    let host = Host::with_names();
    let notes = host.folder().join("notes");
    let _upstream = upstream(&host, &notes);
    host.network("dark", |spec| spec.internal = true);
    let dns = vec![OUTSIDE.parse().unwrap()];
    let to = |network: &str| EndpointSpec { network: network.to_owned(), ..EndpointSpec::default() };
    let wish = |networks: &[&str]| NetworkingSpec {
        endpoints: networks.iter().map(|name| to(name)).collect(),
        dns: dns.clone(),
        ..NetworkingSpec::default()
    };
    let one = host.attach("one", &wish(&[]));
    let dark = host.attach("dark", &wish(&["dark"]));
    assert_eq!(dig(&place(&one), &server(&one), "small.test"), "198.51.100.7");
    // dig asks again by TCP when it is told so.
    assert_eq!(dig(&place(&one), &server(&one), "big.test"), "198.51.100.7");
    let asked = std::fs::read_to_string(&notes).unwrap();
    assert!(asked.contains("udp") && asked.contains("tcp"), "{asked}");
    // Ours are never asked for outside: neither names, nor addresses, nor anything from an internal network.
    assert_eq!(dig(&place(&one), &server(&one), "one"), ip(&one, 0));
    assert_eq!(dig(&place(&one), &server(&one), "-x 172.17.200.200"), "");
    assert_eq!(status(&place(&dark), &server(&dark), "secret.test"), "NXDOMAIN");
    assert_eq!(status(&place(&dark), &server(&dark), "+tcp secret.test"), "NXDOMAIN");
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), asked);
    // Whoever joins a network that leads outside may ask there.
    host.networks.connect("dark", &to("bridge"), &["dark".to_owned()]).unwrap();
    assert_eq!(dig(&place(&dark), &server(&dark), "small.test"), "198.51.100.7");
    for workload in ["one", "dark"] {
        host.networks.release(workload).unwrap();
    }
    wait_for_end(&server(&one));
    wait_for_end(&server(&dark));
}

#[test]
fn what_is_no_question_harms_nobody() {
    let host = Host::with_names();
    let one = host.start("one", &[], &[]);
    let server = server(&one);
    place(&one).sh(&format!(
        "python3 -c 'import os, socket, struct\n\
         u = socket.socket(2, 2); u.connect((\"{server}\", 53))\n\
         for n in range(300): u.send(os.urandom(n))\n\
         for n in range(9):\n  t = socket.create_connection((\"{server}\", 53)); t.sendall(struct.pack(\">H\", 99) + os.urandom(n))'"
    ));
    assert_eq!(dig(&place(&one), &server, "one"), ip(&one, 0));
    host.networks.release("one").unwrap();
    wait_for_end(&server);
}

#[test]
fn a_resolver_that_was_killed_comes_back() {
    let host = Host::with_names();
    let one = host.start("one", &[], &[]);
    let server = server(&one);
    sh(&format!("kill -9 {}", resolver_of(&server)));
    while !host
        .networks
        .check(&live(&["one"]), false)
        .unwrap()
        .iter()
        .any(|one| one.problem == "its resolver does not run")
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.networks.check(&live(&["one"]), true).unwrap();
    assert_eq!(host.networks.check(&live(&["one"]), false).unwrap(), []);
    assert_eq!(dig(&place(&one), &server, "one"), ip(&one, 0));
    host.networks.release("one").unwrap();
    wait_for_end(&server);
}

/// Who runs one workload after another, each alone on its network, does not wait for a resolver each time; and who
/// removes a network can have its addresses again at once.
#[test]
fn a_resolver_serves_one_workload_after_another() {
    let host = Host::with_names();
    let subnet = SubnetSpec { subnet: "10.66.0.0/24".parse().unwrap(), gateway: None, ip_range: None };
    for _ in 0..3 {
        host.network("blue", |spec| spec.subnets = vec![subnet.clone()]);
        let mut processes = Vec::new();
        for _ in 0..5 {
            let one = host.start("one", &["blue"], &[]);
            assert_eq!(dig(&place(&one), &server(&one), "one"), ip(&one, 0));
            processes.push(resolver_of("10.66.0.1"));
            host.networks.release("one").unwrap();
        }
        processes.dedup();
        assert_eq!(processes.len(), 1, "{processes:?}");
        host.networks.remove("blue").unwrap();
        assert_eq!(resolver_of("10.66.0.1"), "");
    }
}
