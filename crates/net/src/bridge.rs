//! The host's side of a network: its bridge, with addresses, kernel parameters, and its part of the filter.
//!
//! A bridge that is up is whole: that is the last step, so who finds it up need not look further.

use ipnet::IpNet;
use moat_model::network::{Mac, NetworkState};

use crate::error::Context;
use crate::namespace::{read_sysctl, sysctl, sysctl_if_there};
use crate::route::Route;
use crate::store::{Lock, Store};
use crate::{Error, Result, firewall};

/// Brings a network's bridge up where it is not, and gives its index. The network stays locked against its
/// removal as long as the lock is held.
///
/// Errors: the network was removed meanwhile; the host refuses.
pub(crate) fn ensure(store: &Store, route: &mut Route, network: &NetworkState) -> Result<(u32, Lock)> {
    loop {
        let lock = store.lock_network(&network.id, false)?;
        if !store.network_file(&network.id).exists() {
            return Err(Error::not_found(format!("network {} was removed", network.name)));
        }
        if let Some(link) = route.link(&network.device)?.filter(|link| link.up) {
            return Ok((link.index, lock));
        }
        drop(lock);
        let _lock = store.lock_network(&network.id, true)?;
        if store.network_file(&network.id).exists() {
            set_up(store, route, network).context(|| format!("network {}", network.name))?;
        }
    }
}

/// Makes the bridge, or makes it whole. The caller has the network's lock.
pub(crate) fn set_up(store: &Store, route: &mut Route, network: &NetworkState) -> Result<()> {
    let name = &network.device;
    if route.link(name)?.is_none() {
        route.add_bridge(name, hardware_address(&network.id), network.mtu_bytes)?;
    }
    let index = route.index(name)?;
    let ipv6 = network.ipv6().is_some();
    for (parameter, value) in [
        ("disable_ipv6", if ipv6 { "0" } else { "1" }),
        // No workload tells the host where its routers are.
        ("accept_ra", "0"),
        ("accept_dad", "0"),
    ] {
        sysctl_if_there(&format!("net/ipv6/conf/{name}/{parameter}"), value)?;
    }
    if !network.internal {
        forward(ipv6)?;
        if network.ipv4().is_some() {
            // Lets the host reach published ports at 127.0.0.1; the rule loopback-guard keeps others out.
            sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        }
    }
    for subnet in &network.subnets {
        let address = IpNet::new(subnet.gateway, subnet.subnet.prefix_len())
            .map_err(|error| Error::host(format!("{}: {error}", subnet.subnet)))?;
        route.add_address(index, address, name)?;
    }
    firewall::add(store, &[firewall::of_host(), firewall::of_network(network)].concat())?;
    route.set_up(index, name)?;
    if ipv6 && !network.internal {
        // Only a device that is up has routes.
        route.let_loopback_in(index, name)?;
    }
    Ok(())
}

/// Lets the host pass packets on, as a network that leads outside needs.
fn forward(ipv6: bool) -> Result<()> {
    let turn_on = |name: &str| match read_sysctl(name).as_deref() {
        Some("1") => Ok(()),
        _ => sysctl(name, "1"),
    };
    turn_on("net/ipv4/ip_forward")?;
    if ipv6 && read_sysctl("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        keep_learning_routes()?;
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A host that passes IPv6 packets on stops to learn its own way out from routers, unless told to go on.
fn keep_learning_routes() -> Result<()> {
    for device in crate::store::names(std::path::Path::new("/proc/sys/net/ipv6/conf"))? {
        let name = format!("net/ipv6/conf/{device}/accept_ra");
        if !["all", "lo"].contains(&device.as_str()) && read_sysctl(&name).as_deref() == Some("1") {
            sysctl(&name, "2")?;
        }
    }
    Ok(())
}

/// The bridge's own hardware address, which follows from the network's id.
fn hardware_address(id: &str) -> Mac {
    let byte = |at: usize| {
        let digits = id.get(at * 2..at * 2 + 2).unwrap_or_default();
        u8::from_str_radix(digits, 16).unwrap_or_default()
    };
    Mac([0x02, byte(0), byte(1), byte(2), byte(3), byte(4)])
}

/// Takes the network off the host. The caller has the network's exclusive lock.
pub(crate) fn tear_down(store: &Store, route: &mut Route, network: &NetworkState) -> Result<()> {
    firewall::forget(store, &firewall::of_network(network))?;
    route.delete(&network.device)
}
