//! Moving a network device of the host into a container (specification, "Network Devices").
//!
//! The kernel takes a device down and drops its addresses when it changes its namespace; what the
//! specification wants kept is given back in the new one. When the container is gone the kernel gives
//! hardware back to the host by itself, and removes virtual devices.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use moat_linux::process::{self as sys, namespace};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use rustix::fs::OFlags;

use crate::netlink::{IFLA_IFNAME, IFLA_MTU, IFLA_NET_NS_FD, Link, Route};
use crate::{Context, Error, Result};

/// Moves `name` into the network namespace of the file `namespace`, where it is called `inside`, or gets a
/// number in place of a `%d` in that.
///
/// Errors name the device, which is then where it was before.
pub(crate) fn move_in(namespace: &Path, name: &str, inside: &str) -> Result<()> {
    let moved = moat_linux::fs::open(namespace, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(Error::from)
        .and_then(|namespace| move_to(namespace.as_fd(), name, inside));
    moved.context(|| format!("linux.netDevices {name}"))
}

fn move_to(namespace: BorrowedFd<'_>, name: &str, inside: &str) -> Result<()> {
    let own = moat_linux::fs::open(Path::new("/proc/self/ns/net"), OFlags::RDONLY)?;
    let mut host = Route::open()?;
    let mut target = open_in(namespace, own.as_fd())?;
    let device = host.links()?.into_iter().find(|link| link.name == name);
    let device = device.ok_or_else(|| Error::new("there is no such network device"))?;
    let addresses = kept(host.addresses(device.index)?);
    let before = target.links()?;
    // The kernel would move the device first and refuse its name after.
    if before.iter().any(|link| link.name == inside) {
        return Err(Error::new(format!("the container has a network device {inside} already")));
    }
    pass(&mut host, device.index, namespace, inside)?;
    let arrived = |link: &Link| match inside.contains("%d") {
        false => link.name == inside,
        true => before.iter().all(|other| other.index != link.index),
    };
    let moved = target.links()?.into_iter().find(arrived);
    let moved = moved.ok_or_else(|| Error::new(format!("{inside} did not arrive in the container")))?;
    let settled = settle(&mut target, &moved, (device.mtu, true), &addresses);
    if settled.is_err() {
        // A virtual device would be lost with the container. The first error is what the user has to know.
        let _ = put_back(&mut host, &mut target, (&moved, &device), own.as_fd(), &addresses);
    }
    settled
}

/// A socket stays in the namespace in which it was opened.
fn open_in(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<Route> {
    sys::join(namespace, namespace::NETWORK)?;
    let opened = Route::open();
    sys::join(own, namespace::NETWORK).context(|| "return to the runtime's own network namespace")?;
    opened
}

/// Hands a device to another namespace.
fn pass(from: &mut Route, index: u32, to: BorrowedFd<'_>, name: &str) -> Result<()> {
    let header = LinkHeader { index, ..LinkHeader::default() };
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let attributes = [
        DefaultNla::new(IFLA_NET_NS_FD, to.as_raw_fd().to_ne_bytes().to_vec()),
        DefaultNla::new(IFLA_IFNAME, text),
    ];
    from.change(&header, &attributes, &format!("index {index} to another namespace as {name}"))
}

/// Gives a device that was moved what it had before.
fn settle(
    route: &mut Route,
    link: &Link,
    (mtu, up): (u32, bool),
    addresses: &[AddressMessage],
) -> Result<()> {
    let name = &link.name;
    let mut header = LinkHeader { index: link.index, ..LinkHeader::default() };
    if link.mtu != mtu {
        let attribute = DefaultNla::new(IFLA_MTU, mtu.to_ne_bytes().to_vec());
        route.change(&header, &[attribute], &format!("{name} mtu {mtu}"))?;
    }
    for address in addresses {
        let mut address = address.clone();
        address.header.index = link.index;
        route.add_address(&address, &format!("{name} {}", text(&address)))?;
    }
    if up {
        (header.flags, header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        route.change(&header, &[], &format!("{name} up"))?;
    }
    Ok(())
}

fn put_back(
    host: &mut Route,
    target: &mut Route,
    (moved, device): (&Link, &Link),
    own: BorrowedFd<'_>,
    addresses: &[AddressMessage],
) -> Result<()> {
    pass(target, moved.index, own, &device.name)?;
    let back = host.links()?.into_iter().find(|link| link.name == device.name);
    let back = back.ok_or_else(|| Error::new("the device did not come back"))?;
    settle(host, &back, (device.mtu, device.up), addresses)
}

/// The permanent addresses of global scope, with what is not the device's own business: its name, and how
/// far the search for duplicates has come.
fn kept(addresses: Vec<AddressMessage>) -> Vec<AddressMessage> {
    addresses.into_iter().filter_map(keep).collect()
}

fn keep(mut address: AddressMessage) -> Option<AddressMessage> {
    let told = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    // Flags beyond the eighth stand in the attribute alone.
    let flags = told.unwrap_or_else(|| AddressFlags::from_bits_retain(address.header.flags.bits().into()));
    if !flags.contains(AddressFlags::Permanent) || address.header.scope != AddressScope::Universe {
        return None;
    }
    let chosen = AddressFlags::Nodad | AddressFlags::Noprefixroute | AddressFlags::Managetempaddr;
    address.header.flags = AddressHeaderFlags::empty();
    address.attributes.retain(|attribute| {
        use AddressAttribute::{Address, Broadcast, Local, RoutePriority};
        matches!(attribute, Address(_) | Local(_) | Broadcast(_) | RoutePriority(_))
    });
    address.attributes.push(AddressAttribute::Flags(flags & chosen));
    Some(address)
}

fn text(address: &AddressMessage) -> String {
    let ip = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(ip.to_string()),
        _ => None,
    });
    format!("{}/{}", ip.unwrap_or_default(), address.header.prefix_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(scope: AddressScope, flags: AddressFlags) -> AddressMessage {
        let mut address = AddressMessage::default();
        address.header.scope = scope;
        address.header.prefix_len = 24;
        address.attributes = vec![
            AddressAttribute::Label("eth0".to_owned()),
            AddressAttribute::Local([10, 0, 0, 1].into()),
            AddressAttribute::Flags(flags),
        ];
        address
    }

    #[test]
    fn permanent_global_addresses_are_kept() {
        let flags = AddressFlags::Permanent | AddressFlags::Noprefixroute | AddressFlags::Tentative;
        let found = keep(address(AddressScope::Universe, flags)).unwrap();
        let wanted = [
            AddressAttribute::Local([10, 0, 0, 1].into()),
            AddressAttribute::Flags(AddressFlags::Noprefixroute),
        ];
        assert_eq!(found.attributes, wanted);
        assert_eq!(text(&found), "10.0.0.1/24");
        assert!(keep(address(AddressScope::Link, flags)).is_none());
        assert!(keep(address(AddressScope::Universe, AddressFlags::Dadfailed)).is_none());
    }
}
