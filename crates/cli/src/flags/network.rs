//! `--network` and what goes with it.

use std::net::IpAddr;

use clap::Args;
use moat_model::workload::{EndpointSpec, NetworkMode, NetworkingSpec, PortSpec};

use super::{mount, pair, port};

/// The flags about networks, ports and names.
#[derive(Args, Debug, Default)]
pub(crate) struct NetworkFlags {
    /// Network: none, host, bridge, container:NAME, or a network's name
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = network)]
    network: Vec<Network>,
    /// Further name on the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Hardware address
    #[arg(long, value_name = "ADDRESS", value_parser = hardware_address)]
    mac_address: Option<String>,
    /// Publish a port: [IP:][HOST:]PORT[/PROTOCOL]
    #[arg(short, long, value_name = "PORT", value_parser = port::publish)]
    publish: Vec<PortSpec>,
    /// Publish all exposed ports at free ones
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Port that the workload serves
    #[arg(long, value_name = "PORT", value_parser = exposed)]
    expose: Vec<Exposed>,
    /// Resolver
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Name in /etc/hosts, as NAME:ADDRESS; the address may be host-gateway
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host_name)]
    add_host: Vec<String>,
    /// Refused: links are Docker's legacy networks
    #[arg(long, hide = true, value_parser = super::refused("links belong to Docker's legacy networks; use --network and --network-alias"))]
    link: Vec<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = super::refused("link-local addresses cannot be chosen"))]
    link_local_ip: Vec<String>,
}

/// Ports of one `--expose`.
#[derive(Clone, Debug)]
struct Exposed(Vec<String>);

fn exposed(text: &str) -> Result<Exposed, String> {
    port::expose(text).map(Exposed)
}

/// One `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Network {
    Mode(NetworkMode),
    Named(EndpointSpec),
}

fn network(text: &str) -> Result<Network, String> {
    if text.contains('=') {
        return long(text).map(Network::Named);
    }
    let rest = |prefix| text.strip_prefix(prefix).filter(|rest: &&str| !rest.is_empty()).map(str::to_owned);
    Ok(match text {
        "" => return Err("a network needs a name".to_owned()),
        "default" | "bridge" => Network::Mode(NetworkMode::Bridge),
        "host" => Network::Mode(NetworkMode::Host),
        "none" => Network::Mode(NetworkMode::None),
        _ if text.starts_with("container:") => Network::Mode(NetworkMode::Container(
            rest("container:").ok_or("container: needs the name of a workload")?,
        )),
        _ if text.starts_with("ns:") => {
            Network::Mode(NetworkMode::Path(rest("ns:").ok_or("ns: needs the path of a namespace")?))
        }
        name => Network::Named(EndpointSpec { network: name.to_owned(), ..EndpointSpec::default() }),
    })
}

/// `name=NETWORK,alias=...,ip=...,ip6=...,mac-address=...,driver-opt=A=B`.
fn long(text: &str) -> Result<EndpointSpec, String> {
    let mut spec = EndpointSpec::default();
    for field in mount::split(text)? {
        let (key, value) = super::assignment(&field)?;
        let address = |kind: &str| format!("{value:?} is no {kind} address");
        match &*key.to_ascii_lowercase() {
            "name" => spec.network.clone_from(&value),
            "alias" => spec.aliases.push(value),
            "ip" => spec.ip = Some(value.parse().map_err(|_| address("IPv4"))?),
            "ip6" => spec.ip6 = Some(value.parse().map_err(|_| address("IPv6"))?),
            "mac-address" => spec.mac = Some(hardware_address(&value)?),
            "driver-opt" => spec.options.extend([pair(&value)?]),
            _ => return Err(format!("{key:?} is no key of a network")),
        }
    }
    if spec.network.is_empty() {
        return Err(format!("{text:?} has no name=NETWORK"));
    }
    Ok(spec)
}

/// Six bytes in hexadecimal between colons.
fn hardware_address(text: &str) -> Result<String, String> {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    let byte = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    if bytes.len() == 6 && bytes.iter().all(byte) {
        return Ok(bytes.join(":").to_ascii_lowercase());
    }
    Err(format!("{text:?} is no hardware address, such as 92:d0:c6:0a:29:33"))
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`.
fn host_name(text: &str) -> Result<String, String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(|| format!("{text:?} should be NAME:ADDRESS"))?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(format!("{text:?} has no name"));
    }
    let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if inner != "host-gateway" && inner.parse::<IpAddr>().is_err() {
        return Err(format!("{address:?} is no address"));
    }
    Ok(format!("{name}:{inner}"))
}

impl NetworkFlags {
    /// The wish of all these flags together.
    pub(super) fn spec(self) -> Result<NetworkingSpec, String> {
        let (mode, mut endpoints) = split_modes(self.network)?;
        let placed = !self.network_alias.is_empty() || self.ip.is_some() || self.ip6.is_some();
        if placed || self.mac_address.is_some() {
            if mode != NetworkMode::Bridge {
                return Err(
                    "--ip, --ip6, --mac-address and --network-alias need a network of one's own".to_owned()
                );
            }
            if endpoints.is_empty() {
                endpoints.push(EndpointSpec { network: "bridge".to_owned(), ..EndpointSpec::default() });
            }
            let [endpoint, ..] = endpoints.as_mut_slice() else { unreachable!("one was put in") };
            let twice = |flag: &str| format!("{flag} is given twice: by itself and within --network");
            if endpoint.ip.is_some() && self.ip.is_some() {
                return Err(twice("--ip"));
            }
            if endpoint.ip6.is_some() && self.ip6.is_some() {
                return Err(twice("--ip6"));
            }
            if endpoint.mac.is_some() && self.mac_address.is_some() {
                return Err(twice("--mac-address"));
            }
            endpoint.ip = endpoint.ip.or(self.ip);
            endpoint.ip6 = endpoint.ip6.or(self.ip6);
            endpoint.mac = endpoint.mac.take().or(self.mac_address);
            endpoint.aliases.extend(self.network_alias);
        }
        Ok(NetworkingSpec {
            mode,
            endpoints,
            ports: self.publish,
            publish_all: self.publish_all,
            expose: self.expose.into_iter().flat_map(|exposed| exposed.0).collect(),
            dns: self.dns,
            dns_search: self.dns_search,
            dns_options: self.dns_option,
            add_hosts: self.add_host,
        })
    }
}

/// A mode stands alone; networks by name may be several, the default one among them.
fn split_modes(networks: Vec<Network>) -> Result<(NetworkMode, Vec<EndpointSpec>), String> {
    let several = networks.len() > 1;
    let (mut mode, mut endpoints) = (NetworkMode::Bridge, Vec::<EndpointSpec>::new());
    for network in networks {
        match network {
            Network::Mode(NetworkMode::Bridge) if !several => {}
            Network::Mode(NetworkMode::Bridge) => {
                endpoints.push(EndpointSpec { network: "bridge".to_owned(), ..EndpointSpec::default() });
            }
            Network::Mode(_) if several => {
                return Err("--network none, host and container:NAME exclude any other --network".to_owned());
            }
            Network::Mode(other) => mode = other,
            Network::Named(endpoint) if endpoints.iter().any(|known| known.network == endpoint.network) => {
                return Err(format!("--network {} is given twice", endpoint.network));
            }
            Network::Named(endpoint) => endpoints.push(endpoint),
        }
    }
    Ok((mode, endpoints))
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};
    use moat_model::workload::{NetworkMode, NetworkingSpec};

    use super::NetworkFlags;

    fn parse(words: &[&str]) -> Result<NetworkingSpec, String> {
        let line = NetworkFlags::augment_args(clap::Command::new("x").no_binary_name(true));
        let mut matches = line.try_get_matches_from(words).map_err(|error| error.to_string())?;
        NetworkFlags::from_arg_matches_mut(&mut matches).map_err(|error| error.to_string())?.spec()
    }

    #[test]
    fn modes_and_networks() {
        assert_eq!(parse(&[]), Ok(NetworkingSpec::default()));
        assert_eq!(parse(&["--network", "default"]), Ok(NetworkingSpec::default()));
        for (text, mode) in [
            ("none", NetworkMode::None),
            ("host", NetworkMode::Host),
            ("container:web", NetworkMode::Container("web".to_owned())),
            ("ns:/run/netns/a", NetworkMode::Path("/run/netns/a".to_owned())),
        ] {
            assert_eq!(parse(&["--net", text]).unwrap().mode, mode, "{text}");
        }
        let spec = parse(&[
            "--network",
            "name=a,ip=10.0.0.2,alias=x,driver-opt=k=v",
            "--network",
            "b",
            "--network-alias",
            "y",
        ])
        .unwrap();
        assert_eq!(spec.endpoints.len(), 2);
        assert_eq!(spec.endpoints[0].aliases, ["x", "y"]);
        assert_eq!(spec.endpoints[0].options["k"], "v");
        assert_eq!(parse(&["--ip", "10.0.0.2"]).unwrap().endpoints[0].network, "bridge");
        let spec = parse(&["--mac-address", "92-D0-c6-0a-29-33", "--network", "a"]).unwrap();
        assert_eq!(spec.endpoints[0].mac.as_deref(), Some("92:d0:c6:0a:29:33"));
    }

    #[test]
    fn names() {
        let spec = parse(&[
            "--add-host",
            "a:1.2.3.4",
            "--add-host",
            "b=[::1]",
            "--add-host",
            "c:host-gateway",
            "--add-host",
            "d:::1",
            "--dns",
            "9.9.9.9",
            "--dns-opt",
            "ndots:1",
            "-p",
            "80",
            "-P",
            "--expose",
            "1-2/udp",
        ])
        .unwrap();
        assert_eq!(spec.add_hosts, ["a:1.2.3.4", "b:::1", "c:host-gateway", "d:::1"]);
        assert_eq!(spec.expose, ["1/udp", "2/udp"]);
        assert!(spec.publish_all && spec.ports.len() == 1);
    }

    #[test]
    fn what_is_refused() {
        for words in [
            &["--network", ""][..],
            &["--network", "container:"],
            &["--network", "host", "--network", "a"],
            &["--network", "a", "--network", "a"],
            &["--network", "ip=10.0.0.1"],
            &["--network", "name=a,ip=x"],
            &["--network", "name=a,foo=x"],
            &["--network", "host", "--ip", "10.0.0.2"],
            &["--network", "name=a,ip=10.0.0.1", "--ip", "10.0.0.2"],
            &["--ip", "::1"],
            &["--mac-address", "1:2:3"],
            &["--add-host", "a"],
            &["--add-host", "a:x"],
            &["--add-host", ":1.2.3.4"],
            &["--dns", "resolver"],
            &["--link", "a"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
