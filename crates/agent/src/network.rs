//! The machine's network devices: names, addresses, routes.

use std::net::IpAddr;
use std::path::Path;

use moat_model::agent::InterfaceSpec;
use moat_sandbox::netlink::{Link, Route};
use moat_sandbox::{Context, Error, Result};

/// Brings up loopback and what `interfaces` lists.
pub(crate) fn configure(interfaces: &[InterfaceSpec]) -> Result<()> {
    let mut route = Route::open()?;
    let links = route.links()?;
    for link in links.iter().filter(|link| link.name == "lo" && !link.up) {
        route.set_up(link)?;
    }
    for wanted in interfaces {
        let link = links.iter().find(|link| link.mac == wanted.mac);
        let link = link
            .ok_or_else(|| Error::new(format!("no network device has the address {}", text(wanted.mac))))?;
        configure_one(&mut route, link, wanted)?;
    }
    Ok(())
}

fn configure_one(route: &mut Route, link: &Link, wanted: &InterfaceSpec) -> Result<()> {
    if !wanted.name.is_empty() && wanted.name != link.name {
        route.rename(link, &wanted.name)?;
    }
    if wanted.mtu > 0 && wanted.mtu != link.mtu {
        route.set_mtu(link, wanted.mtu)?;
    }
    // As in a container: an address is there at once, and none comes from whoever advertises.
    let speaks = |family: fn(&IpAddr) -> bool| wanted.addresses.iter().any(|(ip, _)| family(ip));
    let (name, ip6) =
        (if wanted.name.is_empty() { &link.name } else { &wanted.name }, speaks(IpAddr::is_ipv6));
    for (parameter, value) in
        [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", if ip6 { "0" } else { "1" })]
    {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join(parameter);
        match std::fs::write(&path, value) {
            // The kernel has no IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !ip6 => {}
            other => other.context(|| format!("write {value} to {}", path.display()))?,
        }
    }
    for (ip, prefix) in &wanted.addresses {
        route.add_ip(link, *ip, *prefix)?;
    }
    route.set_up(link)?;
    for gateway in &wanted.gateways {
        route.add_default_route(link, *gateway)?;
    }
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
