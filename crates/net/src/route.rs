//! Links, addresses and routes by rtnetlink(7).
//!
//! What is asked for is put together by the library's types. What is listed is read attribute by attribute:
//! decoding whole link messages would bring every kind of device there is into the program.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use moat_linux::Errno;
use moat_linux::netlink::{Socket, flag};
use moat_model::network::Mac;
use netlink_packet_core::{DecodeError, Emitable, NlasIterator, parse_string, parse_u32};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::{Error, Result};

/// Kinds of messages and attributes, `linux/rtnetlink.h` and `linux/if_link.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const ROUTE_HEADER_BYTES: usize = 12;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const LINK_HEADER_BYTES: usize = 16;

/// A socket; it stays in the network namespace in which it was opened.
pub(crate) struct Route(Socket);

/// A network device, as the kernel tells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu_bytes: u32,
    pub(crate) up: bool,
    /// The index of the bridge that it is a port of; 0 for none.
    pub(crate) master: u32,
    pub(crate) mac: Vec<u8>,
    /// Whether it is one end of a pair whose other end is in a network namespace that has ended: the kernel removes both
    /// in its own time.
    pub(crate) is_ending: bool,
    /// Packets and bytes received, sent, and dropped in both directions.
    pub(crate) counts: LinkCounts,
}

/// What went through a device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkCounts {
    pub(crate) received_packets: u64,
    pub(crate) sent_packets: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) dropped_packets: u64,
}

/// A pair of devices: one end becomes a port of a bridge, the other the interface of a workload.
pub(crate) struct Pair<'a> {
    pub(crate) device: &'a str,
    pub(crate) bridge: u32,
    pub(crate) interface: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu_bytes: u32,
    pub(crate) namespace: BorrowedFd<'a>,
}

impl Route {
    /// Opens a socket in the network namespace of this thread.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(Socket::route()?))
    }

    /// All devices.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let answers =
            self.0.list(RTM_GETLINK, RTM_NEWLINK, &emitted(&LinkHeader::default()), "RTM_GETLINK")?;
        answers.iter().map(|answer| link(answer).map_err(undecodable)).collect()
    }

    /// One device; `None` where there is none of this name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let what = format!("RTM_GETLINK, {name}");
        match self.0.exchange(RTM_GETLINK, flag::ACK, &emitted(&message), &what) {
            Ok(answers) => {
                let found = answers.iter().find(|answer| answer.kind == RTM_NEWLINK);
                found.map(|answer| link(&answer.payload).map_err(undecodable)).transpose()
            }
            Err(error) if error.errno() == Errno::NODEV => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The index of a device that must exist.
    pub(crate) fn index(&mut self, name: &str) -> Result<u32> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(Error::host(format!("there is no network device {name}"))),
        }
    }

    /// Makes a bridge, which is down.
    pub(crate) fn add_bridge(&mut self, name: &str, mac: Mac, mtu_bytes: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // Given, or it would be that of a port, and change as ports come and go.
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(BridgeStpState::Disabled)])),
            ]),
        ];
        self.make(&message, &format!("{name} type bridge"))?;
        // Given after it was made, it does not follow the smallest of the ports.
        let index = self.index(name)?;
        self.change(index, vec![LinkAttribute::Mtu(mtu_bytes)], None, &format!("{name} mtu {mtu_bytes}"))
    }

    /// Makes a pair of devices: one end up on its bridge, the other down in its namespace.
    pub(crate) fn add_pair(&mut self, pair: &Pair<'_>) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pair.interface.to_owned()),
            LinkAttribute::Address(pair.mac.0.to_vec()),
            LinkAttribute::Mtu(pair.mtu_bytes),
            LinkAttribute::NetNsFd(pair.namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        message.attributes = vec![
            LinkAttribute::IfName(pair.device.to_owned()),
            LinkAttribute::Mtu(pair.mtu_bytes),
            LinkAttribute::Controller(pair.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.make(&message, &format!("{} type veth peer {}", pair.device, pair.interface))
    }

    fn make(&mut self, message: &LinkMessage, what: &str) -> Result<()> {
        let flags = flag::ACK | flag::CREATE | flag::EXCL;
        self.0.exchange(RTM_NEWLINK, flags, &emitted(message), &format!("RTM_NEWLINK, {what}"))?;
        Ok(())
    }

    fn change(
        &mut self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        up: Option<bool>,
        what: &str,
    ) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes = attributes;
        self.0.exchange(RTM_NEWLINK, flag::ACK, &emitted(&message), &format!("RTM_NEWLINK, {what}"))?;
        Ok(())
    }

    /// Brings a device up.
    pub(crate) fn set_up(&mut self, index: u32, name: &str) -> Result<()> {
        self.change(index, Vec::new(), Some(true), &format!("{name} up"))
    }

    /// Makes a device that exists a port of a bridge, with the bridge's largest packet, and brings it up.
    pub(crate) fn join(&mut self, index: u32, bridge: u32, mtu_bytes: u32, name: &str) -> Result<()> {
        let attributes = vec![LinkAttribute::Mtu(mtu_bytes), LinkAttribute::Controller(bridge)];
        self.change(index, attributes, Some(true), &format!("{name} master {bridge} up"))
    }

    /// Says how a bridge treats a port: whether it speaks to the bridge alone, and to no other port that is so.
    ///
    /// What comes from a port may go back to it: where the kernel shows bridged packets to the packet filter, a
    /// workload reaches its own published port that way.
    pub(crate) fn set_port(&mut self, index: u32, isolated: bool, name: &str) -> Result<()> {
        let port = vec![InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(isolated)];
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ];
        let what = format!("{name} hairpin on isolated {isolated}");
        self.change(index, vec![LinkAttribute::LinkInfo(info)], None, &what)
    }

    /// Removes a device; it is no error that there is none.
    pub(crate) fn delete(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let what = format!("RTM_DELLINK, {name}");
        match self.0.exchange(RTM_DELLINK, flag::ACK, &emitted(&message), &what) {
            Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Gives a device an address, at once and without a search for duplicates; it is no error that it has it.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet, name: &str) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(address.addr())];
        match address {
            IpNet::V4(net) => {
                message.header.family = AddressFamily::Inet;
                message.attributes.push(AddressAttribute::Address(address.addr()));
                if net.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpNet::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        let flags = flag::ACK | flag::CREATE | flag::REPLACE;
        let what = format!("RTM_NEWADDR, {name} {address}");
        self.0.exchange(RTM_NEWADDR, flags, &emitted(&message), &what)?;
        Ok(())
    }

    /// The ranges that lead anywhere from here: the destinations of all routes but the default ones.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpNet>> {
        let request = emitted(&RouteMessage::default().header);
        let answers = self.0.list(RTM_GETROUTE, RTM_NEWROUTE, &request, "RTM_GETROUTE")?;
        let mut found = Vec::new();
        for answer in &answers {
            let header = RouteHeader::parse(answer).map_err(undecodable)?;
            for attribute in NlasIterator::new(answer.get(ROUTE_HEADER_BYTES..).unwrap_or_default()) {
                let attribute = attribute.map_err(undecodable)?;
                if attribute.kind() == RTA_DST {
                    found.extend(destination(attribute.value(), header.destination_prefix_length));
                }
            }
        }
        Ok(found)
    }

    /// The device of the default route, by IPv4; `None` where there is none.
    pub(crate) fn way_out(&mut self) -> Result<Option<Link>> {
        let mut request = RouteMessage::default().header;
        request.address_family = AddressFamily::Inet;
        let answers = self.0.list(RTM_GETROUTE, RTM_NEWROUTE, &emitted(&request), "RTM_GETROUTE")?;
        let mut index = None;
        for answer in &answers {
            let header = RouteHeader::parse(answer).map_err(undecodable)?;
            if header.destination_prefix_length > 0 || header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            for attribute in NlasIterator::new(answer.get(ROUTE_HEADER_BYTES..).unwrap_or_default()) {
                let attribute = attribute.map_err(undecodable)?;
                if attribute.kind() == RTA_OIF {
                    index = index.or(parse_u32(attribute.value()).ok());
                }
            }
        }
        Ok(self.links()?.into_iter().find(|link| Some(link.index) == index))
    }

    /// Lets answers that come from a device reach ::1: what `route_localnet` is for IPv4.
    ///
    /// The kernel looks for ::1 on the device that a packet came from. Packets that bear this destination on the
    /// wire it drops before; so only those pass whose destination was turned back from the host's own address.
    pub(crate) fn let_loopback_in(&mut self, index: u32, name: &str) -> Result<()> {
        // Behind the route of the loopback interface itself.
        const METRIC: u32 = 1 << 20;
        const LOCAL: u8 = 255;
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet6,
            destination_prefix_length: 128,
            table: LOCAL,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(IpAddr::V6(Ipv6Addr::LOCALHOST).into()),
            RouteAttribute::Oif(index),
            RouteAttribute::Priority(METRIC),
        ];
        let flags = flag::ACK | flag::CREATE | flag::REPLACE;
        let what = format!("RTM_NEWROUTE, local ::1 dev {name} table local");
        self.0.exchange(RTM_NEWROUTE, flags, &emitted(&message), &what)?;
        Ok(())
    }

    /// Sets the way out of this namespace.
    pub(crate) fn set_default_route(&mut self, gateway: IpAddr, index: u32) -> Result<()> {
        let message = default_route(gateway, index);
        let flags = flag::ACK | flag::CREATE | flag::REPLACE;
        let what = format!("RTM_NEWROUTE, default via {gateway}");
        self.0.exchange(RTM_NEWROUTE, flags, &emitted(&message), &what)?;
        Ok(())
    }
}

fn destination(address: &[u8], prefix: u8) -> Option<IpNet> {
    let address = match address.len() {
        4 => IpAddr::from(*address.first_chunk::<4>()?),
        _ => IpAddr::from(*address.first_chunk::<16>()?),
    };
    IpNet::new(address, prefix).ok()
}

fn default_route(gateway: IpAddr, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    message
}

fn emitted(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err calls")]
fn undecodable(error: DecodeError) -> Error {
    Error::host(format!("an answer of rtnetlink: {error}"))
}

fn link(message: &[u8]) -> std::result::Result<Link, DecodeError> {
    let header = LinkHeader::parse(message)?;
    let mut link = Link { index: header.index, up: header.flags.contains(LinkFlags::Up), ..Link::default() };
    for attribute in NlasIterator::new(message.get(LINK_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            IFLA_IFNAME => link.name = parse_string(attribute.value())?,
            IFLA_MTU => link.mtu_bytes = parse_u32(attribute.value())?,
            IFLA_MASTER => link.master = parse_u32(attribute.value())?,
            IFLA_ADDRESS => link.mac = attribute.value().to_vec(),
            // No number is given to a namespace that nobody has any more.
            IFLA_LINK_NETNSID => link.is_ending = parse_u32(attribute.value())? == u32::MAX,
            IFLA_STATS64 => link.counts = counts(attribute.value()),
            _ => {}
        }
    }
    Ok(link)
}

/// The beginning of `struct rtnl_link_stats64`.
fn counts(bytes: &[u8]) -> LinkCounts {
    let number = |index: usize| {
        let field = bytes.get(index * 8..).and_then(<[u8]>::first_chunk);
        field.map_or(0, |field| u64::from_ne_bytes(*field))
    };
    LinkCounts {
        received_packets: number(0),
        sent_packets: number(1),
        received_bytes: number(2),
        sent_bytes: number(3),
        dropped_packets: number(6).saturating_add(number(7)),
    }
}
