//! Addresses for workloads: each is claimed by making a file of its name, which can be done once.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use moat_model::network::{Mac, Subnet};

use crate::error::Context;
use crate::store;
use crate::{Error, Result};

/// Claims an address of `subnet` for the workload that `claim`, a file with its id, speaks for; `wanted` or none.
///
/// Errors: `wanted` lies outside, is the gateway's, or belongs to another; no address is left.
pub(crate) fn claim(
    leases: &Path,
    claim: &Path,
    subnet: &Subnet,
    wanted: Option<IpAddr>,
    network: &str,
) -> Result<IpAddr> {
    if let Some(address) = wanted {
        check(subnet, address, network)?;
        return match take(leases, claim, address)? {
            true => Ok(address),
            false => {
                let owner = std::fs::read_to_string(leases.join(address.to_string())).unwrap_or_default();
                let owner = owner.get(..12).unwrap_or(&owner);
                Err(Error::conflict(format!("address {address} of network {network} belongs to {owner}")))
            }
        };
    }
    let taken: BTreeSet<String> = store::names(leases)?.into_iter().collect();
    for address in candidates(subnet) {
        if address != subnet.gateway && !taken.contains(&address.to_string()) && take(leases, claim, address)?
        {
            return Ok(address);
        }
    }
    let range = subnet.ip_range.unwrap_or(subnet.subnet);
    Err(Error::conflict(format!("network {network} has no address left in {range}")))
}

/// Gives an address back, if it is the workload's own.
pub(crate) fn release(leases: &Path, address: IpAddr, workload: &str) -> Result<()> {
    let path = leases.join(address.to_string());
    match std::fs::read_to_string(&path) {
        Ok(owner) if owner == workload => store::remove_file(&path),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// A link is made whole or not at all, and never over another: who looks finds the owner's id in it.
fn take(leases: &Path, claim: &Path, address: IpAddr) -> Result<bool> {
    let path = leases.join(address.to_string());
    match std::fs::hard_link(claim, &path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).context(|| format!("claim {}", path.display())),
    }
}

fn check(subnet: &Subnet, address: IpAddr, network: &str) -> Result<()> {
    if !is_host(&subnet.subnet, address) {
        let range = subnet.subnet;
        return Err(Error::invalid(format!(
            "{address} is no address for a workload of network {network}, {range}"
        )));
    }
    if address == subnet.gateway {
        return Err(Error::conflict(format!("{address} is the gateway of network {network}")));
    }
    Ok(())
}

/// Whether a device of the range can have this address.
pub(crate) fn is_host(subnet: &IpNet, address: IpAddr) -> bool {
    match subnet {
        // The two ends of a range name the range itself and all of its devices; RFC 3021 lifts that for /31.
        IpNet::V4(net) if net.prefix_len() < 31 => {
            subnet.contains(&address) && address != net.network() && address != net.broadcast()
        }
        // The first one names any router.
        IpNet::V6(net) if net.prefix_len() < 127 => subnet.contains(&address) && address != net.network(),
        _ => subnet.contains(&address),
    }
}

/// All addresses that may be given, from the lowest one on.
fn candidates(subnet: &Subnet) -> impl Iterator<Item = IpAddr> + use<> {
    let range = subnet.ip_range.unwrap_or(subnet.subnet);
    let whole = subnet.subnet;
    let (first, last) = match range {
        IpNet::V4(net) => (u32::from(net.network()).into(), u32::from(net.broadcast()).into()),
        IpNet::V6(net) => (u128::from(net.network()), u128::from(net.broadcast())),
    };
    (first..=last)
        .map(move |number| match range {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        })
        .filter(move |address| is_host(&whole, *address))
}

/// The hardware address of a device that has this address, as Docker makes it: who knew the one knows the other, also
/// when the address is given to the next.
pub(crate) fn mac(address: IpAddr) -> Mac {
    let tail = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let part = |index: usize| octets.iter().skip(index).step_by(4).fold(0, |all, byte| all ^ byte);
            [part(0), part(1), part(2), part(3)]
        }
    };
    let [a, b, c, d] = tail;
    Mac([0x02, 0x42, a, b, c, d])
}

/// The link-local address that the kernel makes of a hardware address (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(range: &str, part: Option<&str>) -> Subnet {
        let subnet: IpNet = range.parse().unwrap();
        let gateway = crate::pools::first_host(&subnet);
        Subnet { subnet, gateway, ip_range: part.map(|part| part.parse().unwrap()) }
    }

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("moat-lease-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("leases")).unwrap();
            std::fs::write(path.join("claim"), "one").unwrap();
            Self(path)
        }

        fn claim(&self, subnet: &Subnet, wanted: Option<&str>) -> Result<String> {
            let wanted = wanted.map(|text| text.parse().unwrap());
            let found = claim(&self.0.join("leases"), &self.0.join("claim"), subnet, wanted, "blue")?;
            Ok(found.to_string())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn every_address_once() {
        let folder = Folder::new("once");
        let small = subnet("10.1.2.0/29", None);
        let all: Vec<String> = std::iter::from_fn(|| folder.claim(&small, None).ok()).collect();
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        let error = folder.claim(&small, None).unwrap_err();
        assert_eq!(error.to_string(), "network blue has no address left in 10.1.2.0/29");
        release(&folder.0.join("leases"), "10.1.2.4".parse().unwrap(), "other").unwrap();
        assert!(folder.claim(&small, None).is_err());
        release(&folder.0.join("leases"), "10.1.2.4".parse().unwrap(), "one").unwrap();
        assert_eq!(folder.claim(&small, None).unwrap(), "10.1.2.4");
    }

    #[test]
    fn addresses_that_can_not_be_given() {
        let folder = Folder::new("fixed");
        let blue = subnet("10.1.2.0/24", Some("10.1.2.128/30"));
        assert_eq!(folder.claim(&blue, None).unwrap(), "10.1.2.128");
        assert_eq!(folder.claim(&blue, Some("10.1.2.9")).unwrap(), "10.1.2.9");
        for (address, said) in [
            ("10.1.2.9", "address 10.1.2.9 of network blue belongs to one"),
            ("10.1.2.1", "10.1.2.1 is the gateway of network blue"),
            ("10.1.2.0", "10.1.2.0 is no address for a workload of network blue, 10.1.2.0/24"),
            ("10.1.2.255", "10.1.2.255 is no address for a workload of network blue, 10.1.2.0/24"),
            ("10.1.3.1", "10.1.3.1 is no address for a workload of network blue, 10.1.2.0/24"),
            ("fd00::1", "fd00::1 is no address for a workload of network blue, 10.1.2.0/24"),
        ] {
            assert_eq!(folder.claim(&blue, Some(address)).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn claims_side_by_side_never_meet() {
        let folder = Folder::new("side");
        let large = subnet("10.8.0.0/16", None);
        let found: Vec<String> = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| (0..50).map(|_| folder.claim(&large, None).unwrap()).collect::<Vec<_>>())
                })
                .collect();
            claims.into_iter().flat_map(|claim| claim.join().unwrap()).collect()
        });
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 400);
    }

    #[test]
    fn hardware_addresses_follow() {
        assert_eq!(mac("172.17.0.2".parse().unwrap()).to_string(), "02:42:ac:11:00:02");
        assert_eq!(link_local("02:42:ac:11:00:02".parse().unwrap()).to_string(), "fe80::42:acff:fe11:2");
    }
}
