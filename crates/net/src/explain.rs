//! The way of a packet, with what has gone that way: process, interface, pair, bridge, rules, host.

use std::fmt::Write;

use moat_linux::process::namespace as bits;
use moat_model::network::{EndpointState, NetAttachment, NetworkState};

use crate::nft::{Counted, Firewall};
use crate::route::{Link, Route};
use crate::{Error, Networks, Result, firewall, namespace};

/// The rules that a packet meets on its way, in order: hook, then names of rules.
const OUT: &[(&str, &[&str])] = &[
    ("bridge prerouting", &["guarded", "speaks4", "speaks6", "asks4", "spoofed"]),
    ("inet forward", &["same", "internal-out", "going-on", "isolated", "outbound"]),
    ("inet postrouting", &["outbound4", "outbound6"]),
];
const IN: &[(&str, &[&str])] = &[
    ("inet prerouting", &["published-outside", "port4", "range4", "port6", "range6"]),
    ("inet output", &["published-host"]),
    ("inet forward", &["internal-in", "going-on", "published", "isolated"]),
    ("inet postrouting", &["loopback4", "loopback6", "hairpin4", "hairpin6"]),
];

impl Networks {
    /// Draws the way of a packet between a workload and the outside of one of its networks, with live counters.
    /// What rules count is of all workloads; what devices count is of this one.
    ///
    /// Errors: the workload is not on the network.
    pub fn explain(&self, network: &str, workload: &str) -> Result<String> {
        let network = self.find(network)?;
        let attachment = self.attachment(workload)?;
        let endpoint = attachment.as_ref().and_then(|attachment| {
            attachment.endpoints.iter().find(|one| one.network_id == network.id).map(|one| (attachment, one))
        });
        let Some((attachment, endpoint)) = endpoint else {
            let sentence = format!("workload {workload} is not on network {}", network.name);
            return Err(Error::not_found(sentence));
        };
        let mut route = Route::open()?;
        let inside = inside(attachment, endpoint)?;
        let (device, bridge) = (route.link(&endpoint.device)?, route.link(&network.device)?);
        let counted = Firewall::open()?.counted()?;
        let mut text = String::new();
        devices(&mut text, &network, (attachment, endpoint), [inside, device, bridge]);
        if let Some(out) = route.way_out()? {
            line(&mut text, 4, &format!("{} of the host", out.name), &counts(&out));
        }
        rules(&mut text, "out: the workload speaks", OUT, &counted);
        published(&mut text, attachment);
        rules(&mut text, "in: a published port is spoken to", IN, &counted);
        Ok(text)
    }
}

/// The interface as the workload sees it.
fn inside(attachment: &NetAttachment, endpoint: &EndpointState) -> Result<Option<Link>> {
    use std::os::fd::AsFd;
    let Some(path) = &attachment.namespace else { return Ok(None) };
    let opened = namespace::open(path)?;
    namespace::within(opened.as_fd(), || Route::open()?.link(&endpoint.interface))
}

fn line(text: &mut String, depth: usize, what: &str, counts: &str) {
    let indent = "   ".repeat(depth);
    let arrow = if depth == 0 { "" } else { "└─ " };
    // Writing to a string does not fail.
    let _ = writeln!(text, "{:<58} {counts}", format!("{indent}{arrow}{what}"));
}

fn counts(link: &Link) -> String {
    let counts = &link.counts;
    format!(
        "in {} packets {} bytes, out {} packets {} bytes, dropped {}",
        counts.received_packets,
        counts.received_bytes,
        counts.sent_packets,
        counts.sent_bytes,
        counts.dropped_packets
    )
}

fn devices(
    text: &mut String,
    network: &NetworkState,
    (attachment, endpoint): (&NetAttachment, &EndpointState),
    [inside, device, bridge]: [Option<Link>; 3],
) {
    let told = |link: &Option<Link>| link.as_ref().map_or("not there".to_owned(), counts);
    let namespace = match &attachment.namespace {
        Some(path) => format!("{} {}", bits::names(bits::NETWORK), path.display()),
        None => "guest".to_owned(),
    };
    let name = endpoint.names.first().unwrap_or(&endpoint.workload);
    line(text, 0, &format!("process of {name}, {namespace}"), "");
    let addresses: Vec<String> =
        [endpoint.ip.map(|ip| ip.to_string()), endpoint.ip6.map(|ip| ip.to_string())]
            .into_iter()
            .flatten()
            .collect();
    let interface = format!("{} {} {}", endpoint.interface, addresses.join(" "), endpoint.mac);
    line(text, 1, &interface, &inside.as_ref().map_or_else(String::new, counts));
    let kind = if attachment.namespace.is_some() { "veth" } else { "tap" };
    line(text, 2, &format!("{} ({kind})", endpoint.device), &told(&device));
    let gateways: Vec<String> = network.subnets.iter().map(|one| one.gateway.to_string()).collect();
    line(text, 3, &format!("{} (bridge) {}", network.device, gateways.join(" ")), &told(&bridge));
}

fn rules(text: &mut String, title: &str, hooks: &[(&str, &[&str])], counted: &[Counted]) {
    let _ = writeln!(text, "\n{title}");
    for (hook, names) in hooks {
        line(text, 1, hook, "");
        for name in *names {
            if let Some(rule) = counted.iter().find(|rule| rule.name == *name) {
                let counts = format!("{} packets {} bytes", rule.packets, rule.bytes);
                line(text, 2, &format!("{}: {}", rule.chain, rule.text), &counts);
            }
        }
    }
}

fn published(text: &mut String, attachment: &NetAttachment) {
    for binding in &attachment.ports {
        let Some(target) = firewall::published_at(attachment, binding.host_ip.is_ipv6()) else { continue };
        let name = binding.protocol.name();
        for (host, port) in binding.pairs() {
            let host = std::net::SocketAddr::new(binding.host_ip, host);
            let own = std::net::SocketAddr::new(target, port);
            let _ = writeln!(text, "\npublished: {host}/{name} -> {own}/{name}");
        }
    }
}
