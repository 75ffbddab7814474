//! The rules themselves: one table for packets, `inet moat`, and one for frames, `bridge moat`.
//!
//! Rules name sets and maps, never a workload: a network, a place or a published port is an element. So the
//! number of rules is the same for one container and for a thousand, and a change is one small transaction.
//! Each rule counts, and carries its name as a comment; `text` is how nft(8) would say it.

use super::expression::{Connection, Expression, Header, Meta, Verdict};
use super::message::Family;

/// A table's name, in both families.
pub(crate) const TABLE: &str = "moat";
/// All devices of workloads begin with this, so the guard needs no list of them: what is not allowed is dropped.
pub(crate) const DEVICE_PREFIX: &str = "moatv";

/// A set, or a map where `data` is given.
pub(crate) struct Set {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    /// The parts of a key.
    pub(crate) key: &'static [Part],
    /// The parts of what it leads to.
    pub(crate) data: &'static [Part],
    /// Whether an element is a range.
    pub(crate) interval: bool,
}

/// A part of a key, in 4-byte words and as nft(8) numbers its type.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) type_number: u32,
    pub(crate) bytes: u32,
}

pub(crate) const IPV4: Part = Part { type_number: 7, bytes: 4 };
pub(crate) const IPV6: Part = Part { type_number: 8, bytes: 16 };
const ETHER: Part = Part { type_number: 9, bytes: 6 };
const PROTOCOL: Part = Part { type_number: 12, bytes: 1 };
const SERVICE: Part = Part { type_number: 13, bytes: 2 };
pub(crate) const INTERFACE: Part = Part { type_number: 41, bytes: 16 };

const fn set(family: Family, name: &'static str, key: &'static [Part]) -> Set {
    Set { family, name, key, data: &[], interval: false }
}

const fn ranges(name: &'static str, key: &'static [Part], data: &'static [Part]) -> Set {
    Set { family: Family::Inet, name, key, data, interval: true }
}

/// All sets and maps.
pub(crate) const SETS: &[Set] = &[
    // Bridges of networks; those of internal ones stand in both.
    set(Family::Inet, "bridges", &[INTERFACE]),
    set(Family::Inet, "internal", &[INTERFACE]),
    // The same bridge twice: what stays on it may pass, also where the kernel shows bridged packets to these rules.
    set(Family::Inet, "same", &[INTERFACE, INTERFACE]),
    // The addresses of a bridge's network.
    ranges("subnets4", &[INTERFACE, IPV4], &[]),
    ranges("subnets6", &[INTERFACE, IPV6], &[]),
    // The addresses that the outside can not answer.
    ranges("outbound4", &[IPV4], &[]),
    ranges("outbound6", &[IPV6], &[]),
    // Addresses at which no published port can be reached.
    set(Family::Inet, "unanswered6", &[IPV6]),
    // Published ports that lead to another one, and those that keep their number: a range is one element.
    ranges("ports4", &[IPV4, PROTOCOL, SERVICE], &[IPV4, SERVICE]),
    ranges("ranges4", &[IPV4, PROTOCOL, SERVICE], &[IPV4]),
    ranges("ports6", &[IPV6, PROTOCOL, SERVICE], &[IPV6, SERVICE]),
    ranges("ranges6", &[IPV6, PROTOCOL, SERVICE], &[IPV6]),
    // Who may speak, by device, hardware address and address.
    set(Family::Bridge, "allow4", &[INTERFACE, ETHER, IPV4]),
    set(Family::Bridge, "allow6", &[INTERFACE, ETHER, IPV6]),
];

/// A chain; a base chain where it has a hook.
pub(crate) struct Chain {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    pub(crate) hook: Option<Hook>,
}

/// Where a base chain stands.
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

const fn base(family: Family, name: &'static str, kind: &'static str, number: u32, priority: i32) -> Chain {
    Chain { family, name, hook: Some(Hook { kind, number, priority }) }
}

/// All chains, those that are jumped to first.
pub(crate) const CHAINS: &[Chain] = &[
    Chain { family: Family::Inet, name: "ports", hook: None },
    base(Family::Inet, "raw", "filter", 0, -300),
    base(Family::Inet, "prerouting", "nat", 0, -100),
    base(Family::Inet, "output", "nat", 3, -100),
    base(Family::Inet, "input", "filter", 1, 0),
    base(Family::Inet, "forward", "filter", 2, 0),
    base(Family::Inet, "postrouting", "nat", 4, 100),
    Chain { family: Family::Bridge, name: "guard", hook: None },
    base(Family::Bridge, "prerouting", "filter", 0, -300),
];

/// A rule.
pub(crate) struct Rule {
    pub(crate) family: Family,
    pub(crate) chain: &'static str,
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    pub(crate) expressions: Vec<Expression>,
}

fn bytes(register: u32, value: &[u8]) -> Expression {
    Expression::Compare { register, value: value.to_vec(), equal: true }
}

fn protocol(number: u8) -> [Expression; 2] {
    [Expression::Meta(Meta::NetworkProtocol, 0), bytes(0, &[number])]
}

fn transport(number: u8) -> [Expression; 2] {
    [Expression::Meta(Meta::TransportProtocol, 0), bytes(0, &[number])]
}

fn interface(meta: Meta, set: &'static str, inside: bool) -> [Expression; 2] {
    [Expression::Meta(meta, 0), Expression::InSet { set, inside }]
}

fn connection(what: Connection, bits: u32) -> [Expression; 3] {
    let none = 0_u32.to_ne_bytes().to_vec();
    [
        Expression::Connection(what, 0),
        Expression::Mask(0, bits),
        Expression::Compare { register: 0, value: none, equal: false },
    ]
}

/// NFPROTO_IPV4 and NFPROTO_IPV6.
const V4: u8 = 2;
const V6: u8 = 10;
/// Offsets of addresses in the headers of IPv4 and IPv6.
const SOURCE4: (u32, u32) = (12, 4);
const TARGET4: (u32, u32) = (16, 4);
const SOURCE6: (u32, u32) = (8, 16);
const TARGET6: (u32, u32) = (24, 16);
/// Bits of connection tracking.
const ESTABLISHED_OR_RELATED: u32 = 6;
const DESTINATION_CHANGED: u32 = 0x20;

fn address((offset, length): (u32, u32), register: u32) -> Expression {
    Expression::Payload(Header::Network, offset, length, register)
}

struct Rules(Vec<Rule>);

impl Rules {
    fn add(
        &mut self,
        (family, chain): (Family, &'static str),
        name: &'static str,
        text: &'static str,
        conditions: Vec<Vec<Expression>>,
        end: Expression,
    ) {
        let mut expressions: Vec<Expression> = conditions.into_iter().flatten().collect();
        expressions.extend([Expression::Counter, end]);
        self.0.push(Rule { family, chain, name, text, expressions });
    }
}

/// All rules, in order.
pub(crate) fn rules() -> Vec<Rule> {
    let mut rules = Rules(Vec::new());
    destinations(&mut rules);
    sources(&mut rules);
    filters(&mut rules);
    guard(&mut rules);
    rules.0
}

/// What leads to published ports.
fn destinations(rules: &mut Rules) {
    const LOCAL: u32 = 2;
    let drop = Expression::Verdict(Verdict::Drop);
    let jump = Expression::Verdict(Verdict::Jump("ports"));
    // Packets to 127.0.0.0/8 may come from a bridge only as answers, whose address is turned back later.
    rules.add(
        (Family::Inet, "raw"),
        "loopback-guard",
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
        vec![
            interface(Meta::InterfaceIn, "bridges", true).to_vec(),
            protocol(V4).to_vec(),
            vec![Expression::Payload(Header::Network, 16, 1, 0), bytes(0, &[127])],
        ],
        drop,
    );
    let to_host = || vec![Expression::DestinationKind(0), bytes(0, &LOCAL.to_ne_bytes())];
    rules.add(
        (Family::Inet, "prerouting"),
        "published-outside",
        "iifname != @internal fib daddr type local jump ports",
        vec![interface(Meta::InterfaceIn, "internal", false).to_vec(), to_host()],
        jump.clone(),
    );
    rules.add(
        (Family::Inet, "output"),
        "unanswered",
        "ip6 daddr @unanswered6 accept",
        vec![
            protocol(V6).to_vec(),
            vec![address(TARGET6, 0), Expression::InSet { set: "unanswered6", inside: true }],
        ],
        Expression::Verdict(Verdict::Accept),
    );
    rules.add(
        (Family::Inet, "output"),
        "published-host",
        "fib daddr type local jump ports",
        vec![to_host()],
        jump,
    );
    for (family, target, words, ports, ranges, names, texts) in [
        (
            V4,
            TARGET4,
            1,
            "ports4",
            "ranges4",
            ("port4", "range4"),
            (
                "dnat ip to ip daddr . meta l4proto . th dport map @ports4",
                "dnat ip to ip daddr . meta l4proto . th dport map @ranges4",
            ),
        ),
        (
            V6,
            TARGET6,
            4,
            "ports6",
            "ranges6",
            ("port6", "range6"),
            (
                "dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6",
                "dnat ip6 to ip6 daddr . meta l4proto . th dport map @ranges6",
            ),
        ),
    ] {
        let key = |map| {
            vec![
                address(target, 0),
                Expression::Meta(Meta::TransportProtocol, words),
                Expression::Payload(Header::Transport, 2, 2, words + 1),
                Expression::Map(map),
            ]
        };
        let chain = (Family::Inet, "ports");
        let port = Expression::Destination(family, Some(words));
        rules.add(chain, names.0, texts.0, vec![protocol(family).to_vec(), key(ports)], port);
        let range = Expression::Destination(family, None);
        rules.add(chain, names.1, texts.1, vec![protocol(family).to_vec(), key(ranges)], range);
    }
}

/// What changes the source of a connection.
fn sources(rules: &mut Rules) {
    let chain = (Family::Inet, "postrouting");
    let to_bridge = || interface(Meta::InterfaceOut, "bridges", true).to_vec();
    let changed = || connection(Connection::Status, DESTINATION_CHANGED).to_vec();
    rules.add(
        chain,
        "loopback4",
        "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
        vec![
            protocol(V4).to_vec(),
            vec![Expression::Payload(Header::Network, 12, 1, 0), bytes(0, &[127])],
            to_bridge(),
        ],
        Expression::Masquerade,
    );
    rules.add(
        chain,
        "loopback6",
        "ip6 saddr ::1 oifname @bridges masquerade",
        vec![
            protocol(V6).to_vec(),
            vec![address(SOURCE6, 0), bytes(0, &std::net::Ipv6Addr::LOCALHOST.octets())],
            to_bridge(),
        ],
        Expression::Masquerade,
    );
    for (family, source, subnets, outbound, names, texts) in [
        (
            V4,
            SOURCE4,
            "subnets4",
            "outbound4",
            ("hairpin4", "outbound4"),
            (
                "oifname . ip saddr @subnets4 ct status dnat masquerade",
                "ip saddr @outbound4 oifname != @bridges masquerade",
            ),
        ),
        (
            V6,
            SOURCE6,
            "subnets6",
            "outbound6",
            ("hairpin6", "outbound6"),
            (
                "oifname . ip6 saddr @subnets6 ct status dnat masquerade",
                "ip6 saddr @outbound6 oifname != @bridges masquerade",
            ),
        ),
    ] {
        // Who speaks to a neighbour through the host must get the answer from the host.
        let neighbour = vec![
            Expression::Meta(Meta::InterfaceOut, 0),
            address(source, 4),
            Expression::InSet { set: subnets, inside: true },
        ];
        let conditions = vec![protocol(family).to_vec(), neighbour, changed()];
        rules.add(chain, names.0, texts.0, conditions, Expression::Masquerade);
        let inside = vec![address(source, 0), Expression::InSet { set: outbound, inside: true }];
        let conditions =
            vec![protocol(family).to_vec(), inside, interface(Meta::InterfaceOut, "bridges", false).to_vec()];
        rules.add(chain, names.1, texts.1, conditions, Expression::Masquerade);
    }
}

/// What may pass.
fn filters(rules: &mut Rules) {
    let accept = || Expression::Verdict(Verdict::Accept);
    let drop = || Expression::Verdict(Verdict::Drop);
    let from = |set| interface(Meta::InterfaceIn, set, true).to_vec();
    let to = |set| interface(Meta::InterfaceOut, set, true).to_vec();
    let going_on = || connection(Connection::State, ESTABLISHED_OR_RELATED).to_vec();
    let forward = (Family::Inet, "forward");
    let same = vec![
        Expression::Meta(Meta::InterfaceIn, 0),
        Expression::Meta(Meta::InterfaceOut, 4),
        Expression::InSet { set: "same", inside: true },
    ];
    rules.add(forward, "same", "iifname . oifname @same accept", vec![same], accept());
    rules.add(forward, "internal-out", "iifname @internal drop", vec![from("internal")], drop());
    rules.add(forward, "internal-in", "oifname @internal drop", vec![to("internal")], drop());
    rules.add(forward, "going-on", "ct state established,related accept", vec![going_on()], accept());
    rules.add(
        forward,
        "published",
        "oifname @bridges ct status dnat accept",
        vec![to("bridges"), connection(Connection::Status, DESTINATION_CHANGED).to_vec()],
        accept(),
    );
    rules.add(forward, "isolated", "oifname @bridges drop", vec![to("bridges")], drop());
    rules.add(forward, "outbound", "iifname @bridges accept", vec![from("bridges")], accept());

    // From an internal network only names, echoes and what the host itself began.
    let input = (Family::Inet, "input");
    let internal = |conditions: Vec<Vec<Expression>>| {
        std::iter::once(from("internal")).chain(conditions).collect::<Vec<_>>()
    };
    let names = |number| {
        vec![
            transport(number).to_vec(),
            vec![Expression::Payload(Header::Transport, 2, 2, 0), bytes(0, &53_u16.to_be_bytes())],
        ]
    };
    rules.add(
        input,
        "internal-going-on",
        "iifname @internal ct state established,related accept",
        internal(vec![going_on()]),
        accept(),
    );
    rules.add(
        input,
        "internal-names-udp",
        "iifname @internal udp dport 53 accept",
        internal(names(17)),
        accept(),
    );
    rules.add(
        input,
        "internal-names-tcp",
        "iifname @internal tcp dport 53 accept",
        internal(names(6)),
        accept(),
    );
    let (icmp, icmp6) = (vec![transport(1).to_vec()], vec![transport(58).to_vec()]);
    rules.add(
        input,
        "internal-echo4",
        "iifname @internal meta l4proto icmp accept",
        internal(icmp),
        accept(),
    );
    rules.add(
        input,
        "internal-echo6",
        "iifname @internal meta l4proto icmpv6 accept",
        internal(icmp6),
        accept(),
    );
    rules.add(input, "internal-host", "iifname @internal drop", internal(Vec::new()), drop());
}

/// Who may speak on a bridge: each device with its own addresses alone. It stands before the bridge learns.
fn guard(rules: &mut Rules) {
    let accept = || Expression::Verdict(Verdict::Accept);
    let drop = || Expression::Verdict(Verdict::Drop);
    let guard = (Family::Bridge, "guard");
    let ether = |kind: [u8; 2]| vec![Expression::Payload(Header::Link, 12, 2, 0), bytes(0, &kind)];
    let (ipv4, arp, ipv6) = ([0x08, 0x00], [0x08, 0x06], [0x86, 0xdd]);
    // Device, then the hardware address of a header, then an address.
    let speaker = |hardware: (Header, u32), address: (Header, u32, u32), set, inside| {
        vec![
            Expression::Meta(Meta::InterfaceIn, 0),
            Expression::Payload(hardware.0, hardware.1, 6, 4),
            Expression::Payload(address.0, address.1, address.2, 6),
            Expression::InSet { set, inside },
        ]
    };
    let sender = (Header::Link, 6);
    rules.add(
        (Family::Bridge, "prerouting"),
        "guarded",
        "iifname moatv* jump guard",
        vec![vec![Expression::Meta(Meta::InterfaceIn, 0), bytes(0, DEVICE_PREFIX.as_bytes())]],
        Expression::Verdict(Verdict::Jump("guard")),
    );
    rules.add(
        guard,
        "speaks4",
        "ether type ip iifname . ether saddr . ip saddr @allow4 accept",
        vec![ether(ipv4), speaker(sender, (Header::Network, 12, 4), "allow4", true)],
        accept(),
    );
    rules.add(
        guard,
        "asks4",
        "ether type arp iifname . arp saddr ether . arp saddr ip @allow4 \
         iifname . ether saddr . arp saddr ip @allow4 accept",
        vec![
            ether(arp),
            speaker((Header::Network, 8), (Header::Network, 14, 4), "allow4", true),
            speaker(sender, (Header::Network, 14, 4), "allow4", true),
        ],
        accept(),
    );
    for (name, text, kind) in [
        ("no-router", "icmpv6 type nd-router-advert drop", 134),
        ("no-redirect", "icmpv6 type nd-redirect drop", 137),
    ] {
        let icmp = vec![Expression::Payload(Header::Transport, 0, 1, 0), bytes(0, &[kind])];
        rules.add(guard, name, text, vec![ether(ipv6), transport(58).to_vec(), icmp], drop());
    }
    rules.add(
        guard,
        "not-its-address",
        "icmpv6 type nd-neighbor-advert iifname . ether saddr . icmpv6 taddr != @allow6 drop",
        vec![
            ether(ipv6),
            transport(58).to_vec(),
            vec![Expression::Payload(Header::Transport, 0, 1, 0), bytes(0, &[136])],
            speaker(sender, (Header::Transport, 8, 16), "allow6", false),
        ],
        drop(),
    );
    rules.add(
        guard,
        "speaks6",
        "ether type ip6 iifname . ether saddr . ip6 saddr @allow6 accept",
        vec![ether(ipv6), speaker(sender, (Header::Network, 8, 16), "allow6", true)],
        accept(),
    );
    rules.add(guard, "spoofed", "drop", Vec::new(), drop());
}
