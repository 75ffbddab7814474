//! The place of a workload on the network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Where the network namespace of a workload comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode", content = "value")]
pub enum NetworkMode {
    /// The default bridge network, else as `endpoints` says.
    #[default]
    Bridge,
    /// The host's.
    Host,
    /// Its own, with nothing in it but loopback.
    None,
    /// That of another workload, by name or id.
    Container(String),
    /// That of a namespace file.
    Path(String),
}

impl NetworkMode {
    /// Its kind in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
            Self::Container(_) => "container",
            Self::Path(_) => "ns",
        }
    }
}

/// A place on one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    /// Name or id of the network.
    pub network: String,
    /// A fixed address.
    pub ip: Option<Ipv4Addr>,
    /// A fixed address.
    pub ip6: Option<Ipv6Addr>,
    /// A fixed hardware address, as in `02:42:ac:11:00:02`.
    pub mac: Option<String>,
    /// Names beside the workload's own.
    pub aliases: Vec<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol of a name, in whatever case.
    pub fn parse(name: &str) -> Result<Self, String> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| name.eq_ignore_ascii_case(protocol.name()))
            .ok_or_else(|| format!("{name:?} is not one of the protocols tcp, udp and sctp"))
    }
}

/// First and last port of `PORT[-END]`.
pub fn parse_port_range(text: &str) -> Result<(u16, u16), String> {
    let one = |part: &str| match part.parse::<u16>() {
        Ok(port) if port > 0 && part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{part:?} is no port; ports are 1 to 65535")),
    };
    match text.split_once('-') {
        None => one(text).map(|port| (port, port)),
        Some((first, last)) => match (one(first)?, one(last)?) {
            (first, last) if first <= last => Ok((first, last)),
            _ => Err(format!("the range {text} goes down")),
        },
    }
}

/// The ports of `PORT[-END][/PROTOCOL]`, as an image and `--expose` name what a workload serves.
pub fn parse_exposed(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    let (ports, name) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = Protocol::parse(name)?;
    let (first, last) = parse_port_range(ports)?;
    Ok((first..=last).map(|port| (port, protocol)).collect())
}

/// Ports of the host that lead to ports of the workload; the two ranges are of one length, or the
/// host's is longer and the workload's is one port (any free one is taken).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Address of the host; all where absent.
    pub host_ip: Option<IpAddr>,
    /// First and last port of the host; any free ones where absent.
    pub host_ports: Option<(u16, u16)>,
    /// First and last port of the workload.
    pub ports: (u16, u16),
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Networks, ports and names of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkingSpec {
    /// Where the namespace comes from.
    pub mode: NetworkMode,
    /// Places on networks; the default network's where empty and the mode is bridge.
    pub endpoints: Vec<EndpointSpec>,
    /// Published ports.
    pub ports: Vec<PortSpec>,
    /// Publish all exposed ports at free ones.
    pub publish_all: bool,
    /// Ports that it serves beside those of the image, as in `80/tcp`.
    pub expose: Vec<String>,
    /// Resolvers in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains in place of the host's.
    pub dns_search: Vec<String>,
    /// Lines of resolv.conf(5)'s `options`.
    pub dns_options: Vec<String>,
    /// `NAME:ADDRESS` beside its own in /etc/hosts; the address `host-gateway` is the host's.
    pub add_hosts: Vec<String>,
}
