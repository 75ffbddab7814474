//! What networks, places and published ports are in the packet filter: the elements of its sets and maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use moat_model::network::{EndpointState, NetAttachment, NetworkState, PortBinding};
use moat_model::workload::Protocol;

use crate::lease;
use crate::nft::{Change, Element, Firewall};
use crate::store::Store;
use crate::{Error, Result};

/// A name of a device in a key: padded with zeroes.
fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn element(set: &'static str, key: Vec<u8>) -> Element {
    Element { set, key, key_end: None, data: None, end: false, claim: false, what: String::new() }
}

/// What the filter must know of a network.
pub(crate) fn of_network(network: &NetworkState) -> Vec<Element> {
    let bridge = || device(&network.device);
    let mut elements = vec![element("bridges", bridge())];
    if network.internal {
        elements.push(element("internal", bridge()));
    }
    if network.inter_container {
        elements.push(element("same", [bridge(), bridge()].concat()));
    }
    for subnet in &network.subnets {
        let (first, last) = (octets(subnet.subnet.network()), octets(subnet.subnet.broadcast()));
        let (subnets, outbound) = match subnet.subnet {
            IpNet::V4(_) => ("subnets4", "outbound4"),
            IpNet::V6(_) => ("subnets6", "outbound6"),
        };
        let mut range = element(subnets, [bridge(), first.clone()].concat());
        range.key_end = Some([bridge(), last].concat());
        elements.push(range);
        if network.masquerade && !network.internal {
            elements.push(element(outbound, first));
            elements.extend(after(&subnet.subnet).map(|key| Element { end: true, ..element(outbound, key) }));
        }
    }
    elements
}

/// What the filter must know of the host.
pub(crate) fn of_host() -> Vec<Element> {
    // Where the kernel shows bridged packets to the filter, answers for ::1 are turned back too early, and dropped: who
    // asks there must be refused at once, not wait for ever.
    let shown = crate::namespace::read_sysctl("net/bridge/bridge-nf-call-ip6tables").as_deref() == Some("1");
    let loopback = || element("unanswered6", octets(Ipv6Addr::LOCALHOST.into()));
    shown.then(loopback).into_iter().collect()
}

/// The address behind a range; none behind the last one.
fn after(subnet: &IpNet) -> Option<Vec<u8>> {
    match subnet {
        IpNet::V4(net) => u32::from(net.broadcast()).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
        IpNet::V6(net) => u128::from(net.broadcast()).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
    }
}

/// Who may speak from the device of a place.
pub(crate) fn of_endpoint(endpoint: &EndpointState) -> Vec<Element> {
    let mut speaker = device(&endpoint.device);
    speaker.extend(endpoint.mac.0);
    speaker.extend([0, 0]);
    let key = |address: IpAddr| [speaker.clone(), octets(address)].concat();
    let mut elements = Vec::new();
    elements.extend(endpoint.ip.map(|net| element("allow4", key(net.addr().into()))));
    if let Some(net) = endpoint.ip6 {
        elements.push(element("allow6", key(net.addr().into())));
        elements.push(element("allow6", key(lease::link_local(endpoint.mac).into())));
    }
    elements
}

/// The place that leads outside by this family, which published ports lead to.
pub(crate) fn published_at(attachment: &NetAttachment, ipv6: bool) -> Option<IpAddr> {
    attachment.endpoints.iter().find_map(|endpoint| match ipv6 {
        false => endpoint.gateway.and(endpoint.ip).map(|net| net.addr().into()),
        true => endpoint.gateway6.and(endpoint.ip6).map(|net| net.addr().into()),
    })
}

/// What the filter must know of a workload: its places, and its published ports.
pub(crate) fn of_attachment(attachment: &NetAttachment) -> Vec<Element> {
    let mut elements: Vec<Element> = attachment.endpoints.iter().flat_map(of_endpoint).collect();
    for binding in &attachment.ports {
        if let Some(target) = published_at(attachment, binding.host_ip.is_ipv6()) {
            elements.extend(of_binding(binding, target));
        }
    }
    elements
}

pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn of_binding(binding: &PortBinding, target: IpAddr) -> Vec<Element> {
    let (first, last) = match binding.host_ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from([0xff; 16]).into())
        }
        one => (one, one),
    };
    let key = |address: IpAddr, port: u16| {
        let mut bytes = octets(address);
        bytes.extend([protocol_number(binding.protocol), 0, 0, 0]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0]);
        bytes
    };
    let claimed = |set, ports: (u16, u16), data| Element {
        set,
        key: key(first, ports.0),
        key_end: Some(key(last, ports.1)),
        data: Some(data),
        end: false,
        claim: true,
        what: format!("{}:{}", binding.host_ip, ports.0),
    };
    let ipv6 = binding.host_ip.is_ipv6();
    if binding.host_port == binding.port {
        let set = if ipv6 { "ranges6" } else { "ranges4" };
        let end = binding.host_port.saturating_add(binding.count - 1);
        return vec![claimed(set, (binding.host_port, end), octets(target))];
    }
    // The kernel can not add: where the numbers differ, each port is an element.
    let set = if ipv6 { "ports6" } else { "ports4" };
    let to = |port: u16| [octets(target), port.to_be_bytes().to_vec(), vec![0, 0]].concat();
    binding.pairs().map(|(host, port)| claimed(set, (host, host), to(port))).collect()
}

/// All that the filter must hold, from what is saved.
pub(crate) fn expected(store: &Store) -> Result<Vec<Element>> {
    let mut elements: Vec<Element> = of_host();
    for network in store.list_networks()? {
        elements.extend(of_network(&network));
    }
    for workload in store.list_workloads()? {
        if let Some(attachment) = store.load_attachment(&workload)? {
            elements.extend(of_attachment(&attachment));
        }
    }
    Ok(elements)
}

/// Adds elements, after everything else where the filter was lost. Errors: a port is taken.
pub(crate) fn add(store: &Store, elements: &[Element]) -> Result<()> {
    change(store, elements, &[])
}

/// Changes elements; those to remove must be there unless all is lost.
pub(crate) fn change(store: &Store, add: &[Element], remove: &[Element]) -> Result<()> {
    let mut firewall = Firewall::open()?;
    {
        let _nobody_rebuilds = store.lock_filter(false)?;
        match firewall.change(add, remove) {
            Ok(()) => return Ok(()),
            Err(Change::Failed(error)) => return Err(error),
            Err(Change::Missing) => {}
            Err(Change::Taken(what)) => return add_rest(&mut firewall, &what, add, remove),
        }
    }
    let _alone = store.lock_filter(true)?;
    repair(store, &mut firewall, add, remove)
}

/// Something is there already. That may be our own: somebody else who found the filter lost has put up all that is
/// saved. Addresses are given once, so what leads to the same place is the same.
fn add_rest(firewall: &mut Firewall, what: &str, add: &[Element], remove: &[Element]) -> Result<()> {
    let taken = || Error::conflict(format!("port {what} of the host is published by another workload"));
    let there = firewall.elements()?.unwrap_or_default();
    let rest: Vec<Element> =
        add.iter().filter(|element| !there.iter().any(|other| same(other, element))).cloned().collect();
    if rest.len() == add.len() {
        return Err(taken());
    }
    match firewall.change(&rest, remove) {
        Ok(()) => Ok(()),
        Err(Change::Failed(error)) => Err(error),
        Err(Change::Taken(_)) => Err(taken()),
        Err(Change::Missing) => Err(Error::host("the packet filter was changed by others meanwhile")),
    }
}

/// Part of what was to change is not there: puts up what is saved, changed as wanted.
fn repair(store: &Store, firewall: &mut Firewall, add: &[Element], remove: &[Element]) -> Result<()> {
    let gone = |element: &Element| remove.iter().any(|other| same(other, element));
    let mut all: Vec<Element> = expected(store)?.into_iter().filter(|element| !gone(element)).collect();
    for element in add {
        if !all.iter().any(|other| same(other, element)) {
            all.push(element.clone());
        }
    }
    firewall.rebuild(&all)
}

/// Whether two elements are one to the kernel.
pub(crate) fn same(one: &Element, other: &Element) -> bool {
    (one.set, &one.key, &one.key_end, &one.data, one.end)
        == (other.set, &other.key, &other.key_end, &other.data, other.end)
}

/// Removes elements; it is no error that some are gone.
pub(crate) fn forget(store: &Store, elements: &[Element]) -> Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut firewall = Firewall::open()?;
    let nobody_rebuilds = store.lock_filter(false)?;
    match firewall.change(&[], elements) {
        Ok(()) => return Ok(()),
        Err(Change::Failed(error)) => return Err(error),
        Err(Change::Missing | Change::Taken(_)) => {}
    }
    // Some were never added, or the filter was lost: what is left of them goes.
    let there = firewall.elements()?.unwrap_or_default();
    let left: Vec<Element> =
        elements.iter().filter(|element| there.iter().any(|other| same(other, element))).cloned().collect();
    match firewall.change(&[], &left) {
        Ok(()) => Ok(()),
        Err(Change::Failed(error)) => Err(error),
        Err(Change::Missing | Change::Taken(_)) => {
            drop(nobody_rebuilds);
            rebuild(store, &mut firewall)
        }
    }
}

/// Puts the filter up anew from what is saved.
pub(crate) fn rebuild(store: &Store, firewall: &mut Firewall) -> Result<()> {
    let _alone = store.lock_filter(true)?;
    firewall.rebuild(&expected(store)?)
}
