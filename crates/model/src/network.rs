//! Networks, and the places that workloads have on them, as plain values.
//!
//! `NetworkSpec` is what the user wished for, `NetworkState` what is saved of a network, `EndpointState` what
//! is saved of a place on it, and `NetAttachment` what a workload that is about to start is told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::workload::{NetworkMode, Protocol};

/// The name under which users know the default network.
pub const DEFAULT_NETWORK: &str = "bridge";

/// A range of addresses of a network, as it is wished for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// The addresses of the network.
    pub subnet: IpNet,
    /// The host's address on it; the first one where absent.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The part from which addresses are given; all of it where absent.
    #[serde(default)]
    pub ip_range: Option<IpNet>,
}

/// A network, as it is wished for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// What carries it; `bridge` is what there is.
    pub driver: String,
    /// At most one range of each family; one is taken from the pools for a family that has none.
    pub subnets: Vec<SubnetSpec>,
    /// Whether it has IPv6 addresses, too.
    pub ipv6: bool,
    /// Whether nothing leads out of it, nor in.
    pub internal: bool,
    /// Largest packet in bytes; the interface's default where absent.
    pub mtu_bytes: Option<u32>,
    /// The user's own notes.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, by Docker's names.
    pub options: BTreeMap<String, String>,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            driver: "bridge".to_owned(),
            subnets: Vec::new(),
            ipv6: false,
            internal: false,
            mtu_bytes: None,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
        }
    }
}

/// A range of addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The addresses of the network.
    pub subnet: IpNet,
    /// The host's address on it.
    pub gateway: IpAddr,
    /// The part from which addresses are given, where it is not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<IpNet>,
}

/// What is saved of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// `bridge`.
    pub driver: String,
    /// Its addresses, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// Whether nothing leads out of it, nor in.
    pub internal: bool,
    /// Largest packet in bytes.
    pub mtu_bytes: u32,
    /// The bridge device of the host.
    pub device: String,
    /// Whether workloads speak to the outside with the host's address.
    pub masquerade: bool,
    /// Whether workloads of this network reach each other.
    pub inter_container: bool,
    /// The host's address at which ports are published unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The user's own notes.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    pub options: BTreeMap<String, String>,
}

impl NetworkState {
    /// The IPv4 range.
    pub fn ipv4(&self) -> Option<(Ipv4Net, Ipv4Addr, Option<Ipv4Net>)> {
        self.subnets.iter().find_map(|one| match (one.subnet, one.gateway) {
            (IpNet::V4(subnet), IpAddr::V4(gateway)) => {
                let range = one.ip_range.and_then(|range| match range {
                    IpNet::V4(range) => Some(range),
                    IpNet::V6(_) => None,
                });
                Some((subnet, gateway, range))
            }
            _ => None,
        })
    }

    /// The IPv6 range.
    pub fn ipv6(&self) -> Option<(Ipv6Net, Ipv6Addr, Option<Ipv6Net>)> {
        self.subnets.iter().find_map(|one| match (one.subnet, one.gateway) {
            (IpNet::V6(subnet), IpAddr::V6(gateway)) => {
                let range = one.ip_range.and_then(|range| match range {
                    IpNet::V6(range) => Some(range),
                    IpNet::V4(_) => None,
                });
                Some((subnet, gateway, range))
            }
            _ => None,
        })
    }
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why a string is no hardware address of a single device.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidMac(String);

impl fmt::Display for InvalidMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no hardware address of one device, such as 02:42:ac:11:00:02", self.0)
    }
}

impl std::error::Error for InvalidMac {}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let wrong = || InvalidMac(text.to_owned());
        let mut bytes = [0_u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(wrong)?;
        }
        // The first bit marks an address of many devices.
        let single = bytes.first().is_some_and(|first| first & 1 == 0) && bytes != [0; 6];
        if parts.next().is_none() && single { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is saved of a workload's place on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// The network's id.
    pub network_id: String,
    /// The network's name.
    pub network: String,
    /// The workload's id.
    pub workload: String,
    /// The interface in the workload, `eth0`.
    pub interface: String,
    /// The device of the host: the other end of the pair, or a tap.
    pub device: String,
    /// The hardware address in the workload.
    pub mac: Mac,
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Net>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Net>,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The way out by IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Largest packet in bytes.
    pub mtu_bytes: u32,
    /// The names by which other workloads of the network find it.
    pub names: Vec<String>,
    /// Resolvers that the user named for this workload; the host's where empty.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
}

/// Ports of the host that lead to a workload: `count` of them, from the two given ones on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBinding {
    /// Address of the host; unspecified (`0.0.0.0` or `::`) for all of its family.
    pub host_ip: IpAddr,
    /// First port of the host.
    pub host_port: u16,
    /// First port of the workload.
    pub port: u16,
    /// How many.
    pub count: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl PortBinding {
    /// Each pair of a host's port and a workload's.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (host, own) = (self.host_port, self.port);
        (0..self.count).map(move |offset| (host.saturating_add(offset), own.saturating_add(offset)))
    }
}

/// What is saved of all that a workload has on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetAttachment {
    /// The workload's id.
    pub workload: String,
    /// The names by which it is known on all of its networks.
    #[serde(default)]
    pub names: Vec<String>,
    /// Where its network namespace comes from.
    pub mode: NetworkMode,
    /// The file of its network namespace. None for the host's, for one with loopback alone that whoever
    /// starts it makes (mode none), and for a microVM, whose taps are on the bridges.
    pub namespace: Option<PathBuf>,
    /// Its places, the one that leads outside first.
    pub endpoints: Vec<EndpointState>,
    /// Its published ports, as they came to be.
    pub ports: Vec<PortBinding>,
    /// The resolver of its networks, which knows the other workloads' names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_of_one_device() {
        let mac: Mac = "02:42:ac:11:00:0F".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:ac:11:00:0f");
        assert_eq!("02-42-ac-11-00-0f".parse(), Ok(mac));
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "2:42:ac:11:0:2",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!("+2:42:ac:11:00:02".parse::<Mac>().is_err());
    }

    #[test]
    fn pairs_of_a_binding() {
        let binding = PortBinding {
            host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_port: 8080,
            port: 80,
            count: 2,
            protocol: Protocol::Tcp,
        };
        assert_eq!(binding.pairs().collect::<Vec<_>>(), [(8080, 80), (8081, 81)]);
    }
}
