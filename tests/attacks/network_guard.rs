//! Row network-guard (CVE-2020-15257, CVE-2021-20199): a workload that speaks as somebody else, and one that looks for
//! the control sockets of those that watch it.
//!
//! Each forged frame is shown to be one: the rules are flushed as others may flush them, and then it arrives.

use std::path::PathBuf;

use moat_tests::{HOST, NetworkHost, OUTSIDE, Place, Running, sh, wait_until};
use serde_json::json;

use crate::ATTACKER;

/// Notes the marks of all frames that come in at an interface, each once, a line for each.
const SNIFF: &str = r#"
import re, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind((sys.argv[1], 0))
notes, seen = open(sys.argv[2], "w"), set()
print("listening", flush=True)
while True:
    frame, where = s.recvfrom(70000)
    for mark in re.findall(rb"<[0-9a-z-]+>", frame):
        if where[2] != socket.PACKET_OUTGOING and mark not in seen:
            seen.add(mark); notes.write(mark.decode() + "\n"); notes.flush()
"#;

/// Sends frames that the kernel would not: who is where, as JSON, and what every mark begins with.
const FORGE: &str = r#"
import json, socket, struct, sys
a, series = json.loads(sys.argv[1]), sys.argv[2]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
ip4 = lambda text: socket.inet_pton(socket.AF_INET, text)
ip6 = lambda text: socket.inet_pton(socket.AF_INET6, text)
mark = lambda name: ("<%s-%s>" % (series, name)).encode()
def total(data):
    data += b"\0" * (len(data) % 2)
    s = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while s >> 16: s = (s & 0xffff) + (s >> 16)
    return ~s & 0xffff
def v4(source, target, name):
    udp = struct.pack("!HHHH", 4000, 4001, 8 + len(mark(name)), 0) + mark(name)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + ip4(source) + ip4(target)
    return b"\x08\0" + head[:10] + struct.pack("!H", total(head)) + head[12:] + udp
def v6(source, target, kind, hops, body, at):
    fake = ip6(source) + ip6(target) + struct.pack("!II", len(body), kind)
    body = body[:at] + struct.pack("!H", total(fake + body) or 0xffff) + body[at + 2:]
    return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(body), kind, hops) + ip6(source) + ip6(target) + body
def udp6(source, target, name):
    return v6(source, target, 17, 64, struct.pack("!HHHH", 4000, 4001, 8 + len(mark(name)), 0) + mark(name), 6)
def neighbour(address, at, name):
    # "It is at mine", and an option that nobody knows.
    text = mark(name).ljust(30, b"\0")
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip6(address) + b"\2\1" + mac(at) + b"\xfd\4" + text
    return v6(a["own6"], "ff02::1", 58, 255, body, 2)
def arp(hardware, address, name):
    everybody = b"\xff" * 6
    return b"\x08\x06\0\1\x08\0\6\4\0\2" + mac(hardware) + ip4(address) + everybody + ip4(address) + mark(name)
def tagged(kind, content):
    return kind + struct.pack("!H", 7) + content
own, other, all, router = mac(a["own_mac"]), mac(a["other_mac"]), b"\xff" * 6, mac(a["router_mac"])
frames = [
    # As one of its own network, by IPv4 and IPv6.
    (other, own, v4(a["good"], a["other"], "source4")),
    (other, own, udp6(a["good6"], a["other6"], "source6")),
    # As one of its own network, one of another tenant's, and one of the outside, to another tenant.
    (router, own, v4(a["good"], a["tenant"], "tenant-neighbour")),
    (router, own, v4(a["tenant_peer"], a["tenant"], "tenant-peer")),
    (router, own, v4(a["outside"], a["tenant"], "tenant-outside")),
    (router, own, udp6(a["good6"], a["tenant6"], "tenant6")),
    # "The other is at mine", "the router is at mine", and with the other's hardware address.
    (all, own, arp(a["own_mac"], a["good"], "arp")),
    (all, own, arp(a["own_mac"], a["router"], "arp-router")),
    (all, mac(a["good_mac"]), arp(a["own_mac"], a["good"], "arp-sender")),
    (b"\x33\x33\0\0\0\1", own, neighbour(a["good6"], a["own_mac"], "neighbour")),
    (b"\x33\x33\0\0\0\1", own, neighbour(a["router6"], a["own_mac"], "neighbour-router")),
    # Its own address from another's hardware address.
    (other, mac(a["good_mac"]), v4(a["own"], a["other"], "hardware")),
    # Behind the tag of a VLAN, and of two; the kernel may take the outer one off.
    (other, own, tagged(b"\x81\0", v4(a["good"], a["other"], "vlan"))),
    (other, own, tagged(b"\x81\0", v4(a["own"], a["other"], "vlan-true"))),
    (all, own, tagged(b"\x81\0", arp(a["own_mac"], a["good"], "vlan-arp"))),
    (other, own, tagged(b"\x88\xa8", tagged(b"\x81\0", v4(a["good"], a["other"], "vlans")))),
    # No protocol that a workload has to speak.
    (all, own, b"\x88\xcc" + mark("lldp")),
]
true = [
    (other, own, v4(a["own"], a["other"], "true")),
    (other, own, udp6(a["own6"], a["other6"], "true6")),
    (router, own, v4(a["own"], a["outside"], "true-outside")),
]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
for target, source, content in frames + true: s.send((target + source + content).ljust(60, b"\0"))
"#;

/// What [`FORGE`] sends in another's name: to a neighbour, and to another tenant.
const TO_NEIGHBOUR: [&str; 13] = [
    "source4",
    "source6",
    "arp",
    "arp-router",
    "arp-sender",
    "neighbour",
    "neighbour-router",
    "hardware",
    "vlan",
    "vlan-true",
    "vlan-arp",
    "vlans",
    "lldp",
];
const TO_TENANT: [&str; 4] = ["tenant-neighbour", "tenant-peer", "tenant-outside", "tenant6"];

struct Sniffer {
    notes: PathBuf,
    _running: Running,
}

impl Sniffer {
    fn new(host: &NetworkHost, place: &Place, interface: &str, name: &str) -> Self {
        let notes = host.moat.path(name);
        let running = place.start(SNIFF, &[interface, notes.to_str().unwrap()]);
        Self { notes, _running: running }
    }

    /// The marks of a series that came in.
    fn heard(&self, series: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.notes).unwrap();
        let begin = format!("<{series}-");
        let marks = text.lines().filter_map(|line| line.strip_prefix(&begin));
        marks.map(|mark| mark.trim_end_matches('>').to_owned()).collect()
    }

    fn has(&self, series: &str, marks: &[&str]) -> bool {
        let heard = self.heard(series);
        marks.iter().all(|mark| heard.iter().any(|one| one == mark))
    }
}

/// Who is where, for [`FORGE`].
fn addresses(host: &NetworkHost) -> String {
    let on = |name: &str, network: &str, field: &str| host.on(name, network)[field].clone();
    let of_blue = host.on("evil", "blue")["Gateway"].as_str().unwrap().to_owned();
    let bridge = sh(&format!("ip -o addr show to {of_blue} | awk '{{print $2}}'"));
    let hardware = sh(&format!("ip -o link show {bridge} | grep -o 'link/ether [^ ]*' | cut -d ' ' -f 2"));
    // An address of the tenant's network that nobody has.
    let mut peer = host.ip("tenant", "red");
    peer.truncate(peer.rfind('.').unwrap());
    peer.push_str(".200");
    json!({
        "own": on("evil", "blue", "IPAddress"), "own6": on("evil", "blue", "GlobalIPv6Address"),
        "own_mac": on("evil", "blue", "MacAddress"),
        "good": on("good", "blue", "IPAddress"), "good6": on("good", "blue", "GlobalIPv6Address"),
        "good_mac": on("good", "blue", "MacAddress"),
        "other": on("other", "blue", "IPAddress"), "other6": on("other", "blue", "GlobalIPv6Address"),
        "other_mac": on("other", "blue", "MacAddress"),
        "router": of_blue, "router6": on("evil", "blue", "IPv6Gateway"),
        "router_mac": hardware,
        "tenant": on("tenant", "red", "IPAddress"), "tenant6": on("tenant", "red", "GlobalIPv6Address"),
        "tenant_peer": peer, "outside": OUTSIDE,
    })
    .to_string()
}

#[test]
fn nobody_speaks_as_another() {
    let host = NetworkHost::new();
    // A host that itself does not look where packets come from: the rules alone are on trial.
    sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
    host.moat("network create --ipv6 blue");
    host.moat("network create --ipv6 red");
    let evil = host.start("evil", "--network blue");
    let other = host.start("other", "--network blue");
    let good = host.start("good", "--network blue -p 8080:80");
    let tenant = host.start("tenant", "--network red");
    let addresses = addresses(&host);
    // The tables of neighbours are filled before, so that what is poisoned shows.
    let _server = good.serve("tcp", "::", 80);
    let (good4, good6) = (host.ip("good", "blue"), host.ip6("good", "blue"));
    for address in [&good4, &good6] {
        assert!(other.ask("tcp", address, 80).is_some());
    }
    let neighbour = Sniffer::new(&host, &other, "eth0", "neighbour");
    let other_tenant = Sniffer::new(&host, &tenant, "eth0", "tenant");
    let beyond = Sniffer::new(&host, &host.outside(), "out0", "outside");
    let forge = |series: &str| {
        let sent = evil.run("python3", &["-c", FORGE, &addresses, series]);
        assert!(sent.status.success(), "{sent:?}");
        // What was sent last is behind all else.
        wait_until(|| neighbour.has(series, &["true", "true6"]) && beyond.has(series, &["true-outside"]));
    };
    let nothing_but_the_truth = |series: &str| {
        forge(series);
        let mut heard = neighbour.heard(series);
        heard.retain(|mark| !["true", "true6"].contains(&mark.as_str()));
        assert_eq!(heard, Vec::<String>::new(), "at the neighbour's, {series}");
        assert_eq!(other_tenant.heard(series), Vec::<String>::new(), "at another tenant's, {series}");
        assert_eq!(beyond.heard(series), ["true-outside"], "outside, {series}");
    };
    nothing_but_the_truth("1");
    let hardware = host.on("good", "blue")["MacAddress"].as_str().unwrap().to_owned();
    for address in [&good4, &good6] {
        let known = other.sh(&format!("ip neigh show to {address} dev eth0"));
        assert!(known.contains(&hardware), "{known}");
    }
    assert!(other.ask("tcp", &good4, 80).is_some() && other.ask("tcp", &good6, 80).is_some());
    // Each of them is an attack: without the rules it arrives.
    sh("nft flush ruleset");
    let sent = evil.run("python3", &["-c", FORGE, &addresses, "2"]);
    assert!(sent.status.success(), "{sent:?}");
    wait_until(|| {
        // The host may have had to ask first where the tenant is.
        let _ = evil.run("python3", &["-c", FORGE, &addresses, "2"]);
        neighbour.has("2", &TO_NEIGHBOUR) && other_tenant.has("2", &TO_TENANT)
    });
    // And they are put up again, in tables of their own: those of others stay.
    sh("nft add table inet theirs; nft add chain inet theirs kept");
    assert!(host.findings(true)[0].contains("mended"));
    assert!(sh("nft list table inet theirs").contains("kept"));
    // What was believed meanwhile is forgotten.
    for place in [&other, &good] {
        place.sh("ip neigh flush dev eth0");
    }
    sh("ip -br link show type bridge | while read bridge _; do ip neigh flush dev $bridge; done");
    nothing_but_the_truth("3");
    // A published port tells who really asks.
    let seen = host.outside().ask("tcp", HOST, 8080).unwrap();
    assert_eq!(seen.trim_start_matches("::ffff:"), OUTSIDE);
}

/// Every socket with a name that a workload could reach, and what listens on the host.
#[test]
fn control_sockets_are_out_of_reach() {
    let host = NetworkHost::new();
    let mount = format!("-v {ATTACKER}:/bin/attacker:ro");
    let one = host.start("one", &format!("{mount} -p 8080:80"));
    // All that Moat has are the monitor's socket, which is a file, and the resolver's at the gateway.
    let sockets = sh("ss -lxH");
    assert!(sockets.contains("attach.sock") && !sockets.contains('@'), "{sockets}");
    for line in sh("ss -lntuH").lines() {
        assert!(line.contains("172.17.0.1:53") || line.contains(":8080"), "{line}");
    }
    let resolver = sh("ss -lnupH | grep ':53 ' | sed 's/.*pid=//; s/,.*//' | head -n 1");
    let open = sh(&format!("ls -l /proc/{resolver}/fd | grep socket: | wc -l"));
    assert_eq!(open, "2", "the resolver has but the sockets that it answers at");
    let rights = sh(&format!("grep -c '^Cap...:.0000000000000000$' /proc/{resolver}/status"));
    assert_eq!(rights, "4", "all sets but that of what could be had are empty");
    // What a workload finds: by the names that the kernel lists, and in its own files.
    let reach =
        |name: &str| host.moat(&format!("exec {name} attacker sockets {}", host.moat.root().display()));
    assert_eq!(reach("one"), "outcome: 0 of 0");
    // With the host's network it sees the names, and still can not go there. A socket without a file it could.
    let two = host.start("two", &format!("{mount} --network host"));
    let tried = reach("two");
    assert!(tried.starts_with("outcome: 0 of ") && tried != "outcome: 0 of 0", "{tried}");
    let listen = "import socket, time\ns = socket.socket(socket.AF_UNIX); s.bind('\\0moat-trial'); s.listen(1)\n\
        print('listening', flush=True)\ntime.sleep(100000)";
    let _abstract = Place::host().start(listen, &[]);
    let tried = reach("two");
    assert!(tried.starts_with("outcome: 1 of "), "the trial itself reaches what is within reach: {tried}");
    drop((one, two));
}
