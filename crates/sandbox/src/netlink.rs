//! A socket to the kernel's routing messages, rtnetlink(7): links and their addresses.
//!
//! The attributes of links are read one by one: decoding whole link messages would bring every kind of
//! device there is into the program.

use std::net::IpAddr;

use moat_linux::netlink::{Socket, flag};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NlasIterator, Parseable, parse_string, parse_u32,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::{Error, Result};

/// Kinds of messages and attributes, `linux/rtnetlink.h` and `linux/if_link.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;

const LINK_HEADER_BYTES: usize = 16;

/// The socket; it stays in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Route(Socket);

/// A network device.
#[derive(Debug)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Whether it carries packets.
    pub up: bool,
    /// Its hardware address; 00:00:00:00:00:00 of loopback.
    pub mac: Vec<u8>,
}

impl Route {
    /// Opens a socket in the network namespace that this process is in.
    pub fn open() -> Result<Self> {
        Ok(Self(Socket::route()?))
    }

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let request = emitted(&LinkHeader::default());
        let answers = self.0.list(RTM_GETLINK, RTM_NEWLINK, &request, "RTM_GETLINK")?;
        answers.iter().map(|answer| link(answer).map_err(undecodable)).collect()
    }

    /// All addresses of a device.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<AddressMessage>> {
        let request = emitted(&AddressMessage::default());
        let answers = self.0.list(RTM_GETADDR, RTM_NEWADDR, &request, "RTM_GETADDR")?;
        let mut found = Vec::new();
        for answer in &answers {
            let address = AddressMessage::parse(answer.as_slice()).map_err(undecodable)?;
            found.extend((address.header.index == index).then_some(address));
        }
        Ok(found)
    }

    /// Changes a device.
    pub(crate) fn change(
        &mut self,
        header: &LinkHeader,
        attributes: &[DefaultNla],
        what: &str,
    ) -> Result<()> {
        let mut request = emitted(header);
        request.extend(emitted(&attributes));
        self.0.exchange(RTM_NEWLINK, flag::ACK, &request, &format!("RTM_NEWLINK, {what}"))?;
        Ok(())
    }

    /// Gives a device an address.
    pub(crate) fn add_address(&mut self, address: &AddressMessage, what: &str) -> Result<()> {
        let flags = flag::ACK | flag::CREATE | flag::EXCL;
        self.0.exchange(RTM_NEWADDR, flags, &emitted(address), &format!("RTM_NEWADDR, {what}"))?;
        Ok(())
    }

    /// Lets a device carry packets.
    pub fn set_up(&mut self, link: &Link) -> Result<()> {
        let header = LinkHeader {
            index: link.index,
            flags: LinkFlags::Up,
            change_mask: LinkFlags::Up,
            ..LinkHeader::default()
        };
        self.change(&header, &[], &format!("{} up", link.name))
    }

    /// Gives a device another name; it must not be up.
    pub fn rename(&mut self, link: &Link, name: &str) -> Result<()> {
        let header = LinkHeader { index: link.index, ..LinkHeader::default() };
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        self.change(&header, &[DefaultNla::new(IFLA_IFNAME, text)], &format!("{} name {name}", link.name))
    }

    /// Sets the largest packet in bytes.
    pub fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<()> {
        let header = LinkHeader { index: link.index, ..LinkHeader::default() };
        let attribute = DefaultNla::new(IFLA_MTU, mtu.to_ne_bytes().to_vec());
        self.change(&header, &[attribute], &format!("{} mtu {mtu}", link.name))
    }

    /// Gives a device an address, which is used at once: no search for duplicates.
    pub fn add_ip(&mut self, link: &Link, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.prefix_len = prefix;
        message.header.family = family(ip);
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        if ip.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.add_address(&message, &format!("{} {ip}/{prefix}", link.name))
    }

    /// Sends what no other route leads to, to `gateway`.
    pub fn add_default_route(&mut self, link: &Link, gateway: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(link.index)];
        let flags = flag::ACK | flag::CREATE | flag::EXCL;
        let what = format!("RTM_NEWROUTE, default via {gateway} dev {}", link.name);
        self.0.exchange(RTM_NEWROUTE, flags, &emitted(&message), &what)?;
        Ok(())
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn emitted(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err calls")]
fn undecodable(error: DecodeError) -> Error {
    Error::new(format!("an answer of rtnetlink: {error}"))
}

fn link(message: &[u8]) -> std::result::Result<Link, DecodeError> {
    let header = LinkHeader::parse(message)?;
    let up = header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: header.index, name: String::new(), mtu: 0, up, mac: Vec::new() };
    for attribute in NlasIterator::new(message.get(LINK_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            IFLA_IFNAME => link.name = parse_string(attribute.value())?,
            IFLA_MTU => link.mtu = parse_u32(attribute.value())?,
            IFLA_ADDRESS => link.mac = attribute.value().to_vec(),
            _ => {}
        }
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_bytes() {
        let mut message = emitted(&LinkHeader { index: 7, flags: LinkFlags::Up, ..LinkHeader::default() });
        let attributes = [
            DefaultNla::new(IFLA_IFNAME, b"eth0\0".to_vec()),
            DefaultNla::new(IFLA_MTU, 1400_u32.to_ne_bytes().to_vec()),
            DefaultNla::new(99, vec![1, 2, 3]),
        ];
        message.extend(emitted(&attributes.as_slice()));
        let found = link(&message).unwrap();
        assert_eq!((found.index, found.name.as_str(), found.mtu, found.up), (7, "eth0", 1400, true));
        assert!(link(&message[..15]).is_err());
        // An attribute that is longer than the message.
        assert!(link(&message[..message.len() - 4]).is_err());
    }
}
