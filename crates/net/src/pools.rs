//! Ranges of addresses for networks that were not given one: Docker's default pools, so that people find
//! what they know, without those that the host has a way to already.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/20 and so on.
fn candidates() -> impl Iterator<Item = IpNet> {
    let large = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part| (Ipv4Addr::new(192, 168, part * 16, 0), 20));
    large.chain(small).filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map(IpNet::V4)
}

/// The first range that overlaps none of `taken`.
pub(crate) fn ipv4(taken: &[IpNet]) -> Option<IpNet> {
    candidates().find(|candidate| !taken.iter().any(|other| overlap(candidate, other)))
}

/// A unique local range (RFC 4193) that follows from the network's id.
pub(crate) fn ipv6(id: [u8; 32]) -> Option<IpNet> {
    let mut octets = [0_u8; 16];
    octets[0] = 0xfd;
    for (place, byte) in octets.iter_mut().skip(1).take(7).zip(id) {
        *place = byte;
    }
    Ipv6Net::new(Ipv6Addr::from(octets), 64).ok().map(IpNet::V6)
}

/// Whether two ranges share an address.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The first address for a host: the gateway unless told.
pub(crate) fn first_host(subnet: &IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).wrapping_add(1))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).wrapping_add(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_host_uses_is_left_out() {
        assert_eq!(ipv4(&[]), Some(net("172.17.0.0/16")));
        assert_eq!(ipv4(&[net("172.17.0.0/16"), net("172.18.5.0/24")]), Some(net("172.19.0.0/16")));
        assert_eq!(ipv4(&[net("172.16.0.0/12")]), Some(net("192.168.0.0/20")));
        assert_eq!(ipv4(&[net("172.16.0.0/12"), net("192.168.20.1/32")]), Some(net("192.168.0.0/20")));
        assert_eq!(ipv4(&[net("172.16.0.0/12"), net("192.168.0.1/32")]), Some(net("192.168.16.0/20")));
        assert_eq!(ipv4(&[net("0.0.0.0/0")]), None);
    }

    #[test]
    fn local_ranges_differ_by_network() {
        assert_eq!(ipv6([1; 32]), Some(net("fd01:101:101:101::/64")));
        assert_ne!(ipv6([1; 32]), ipv6([2; 32]));
        assert_eq!(first_host(&net("fd01::/64")).to_string(), "fd01::1");
        assert_eq!(first_host(&net("10.1.2.0/24")).to_string(), "10.1.2.1");
    }
}
