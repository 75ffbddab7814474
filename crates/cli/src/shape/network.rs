//! Networks as `docker network inspect` shows them, and a workload's part in them as `docker inspect` does.

use moat_engine::{Engine, Workload, WorkloadState};
use moat_model::network::{EndpointState, NetAttachment, NetworkState};
use moat_model::workload::{EndpointSpec, Protocol};
use serde_json::{Map, Value, json};

use super::{Document, list_or_null, object, texts};
use crate::failure::Result;

/// The document of a network.
pub(crate) fn document(engine: &Engine, network: &NetworkState) -> Result<Document> {
    let mut containers = Map::new();
    for workload in engine.list()? {
        let places = workload.attachment()?.map(|attachment| attachment.endpoints).unwrap_or_default();
        if let Some(place) = places.iter().find(|place| place.network_id == network.id) {
            let member = json!({
                "Name": workload.name(),
                "EndpointID": place.device,
                "MacAddress": place.mac.to_string(),
                "IPv4Address": place.ip.map(|net| net.to_string()).unwrap_or_default(),
                "IPv6Address": place.ip6.map(|net| net.to_string()).unwrap_or_default(),
            });
            containers.insert(workload.id().to_string(), member);
        }
    }
    let mut options = network.options.clone();
    if !network.device.is_empty() {
        options.insert("com.docker.network.bridge.name".to_owned(), network.device.clone());
        options.insert("com.docker.network.driver.mtu".to_owned(), network.mtu_bytes.to_string());
    }
    let ranges = network.subnets.iter().map(|one| {
        let mut range = json!({"Subnet": one.subnet.to_string(), "Gateway": one.gateway.to_string()});
        if let (Some(fields), Some(part)) = (range.as_object_mut(), one.ip_range) {
            fields.insert("IPRange".to_owned(), part.to_string().into());
        }
        range
    });
    Ok(object! {
        "Name": network.name.as_str(),
        "Id": network.id.as_str(),
        "Created": network.created.as_str(),
        "Scope": "local",
        "Driver": network.driver.as_str(),
        "EnableIPv4": network.ipv4().is_some(),
        "EnableIPv6": network.ipv6().is_some(),
        "IPAM": json!({"Driver": "default", "Options": null, "Config": ranges.collect::<Vec<_>>()}),
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": json!({"Network": ""}),
        "ConfigOnly": false,
        "Containers": Value::Object(containers),
        "Options": texts(&options),
        "Labels": texts(&network.labels),
    })
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Published {
    /// Port of the workload.
    pub(crate) port: u16,
    /// Its protocol.
    pub(crate) protocol: Protocol,
    /// Address of the host.
    pub(crate) host_ip: std::net::IpAddr,
    /// Port of the host.
    pub(crate) host_port: u16,
}

impl Published {
    /// Address and port of the host, as they are written together.
    pub(crate) fn place(&self) -> String {
        std::net::SocketAddr::new(self.host_ip, self.host_port).to_string()
    }
}

/// The published ports of a workload that runs, by their number in it.
pub(crate) fn published(attachment: Option<&NetAttachment>) -> Vec<Published> {
    let bindings = attachment.map_or(&[][..], |attachment| &attachment.ports);
    let each = |binding: &moat_model::network::PortBinding| {
        let (host_ip, protocol) = (binding.host_ip, binding.protocol);
        binding.pairs().map(move |(host_port, port)| Published { port, protocol, host_ip, host_port })
    };
    let mut found: Vec<Published> = bindings.iter().flat_map(each).collect();
    found.sort();
    found
}

/// The part of a workload in networks.
pub(crate) fn settings(workload: &Workload, state: &WorkloadState) -> Result<Document> {
    let attachment = if state.is_running() { workload.attachment()? } else { None };
    let mut ports = Map::new();
    if state.is_running() {
        for port in crate::shape::container::exposed(workload) {
            ports.insert(port, Value::Null);
        }
    }
    for port in published(attachment.as_ref()) {
        let place = ports.entry(format!("{}/{}", port.port, port.protocol.name())).or_insert(Value::Null);
        let here = json!({"HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string()});
        match place {
            Value::Array(places) => places.push(here),
            other => *other = Value::Array(vec![here]),
        }
    }
    let places = attachment.as_ref().map_or(&[][..], |attachment| &attachment.endpoints);
    let mut networks = Map::new();
    let wishes = &workload.spec().network.endpoints;
    for place in places {
        let wish = wishes.iter().find(|wish| wish.network == place.network);
        networks.insert(place.network.clone(), member(wish, Some(place)));
    }
    if places.is_empty() {
        for name in moat_engine::network_names(&workload.spec().network) {
            let wish = wishes.iter().find(|wish| wish.network == name);
            networks.insert(name, member(wish, None));
        }
    }
    let first = places.first().filter(|place| place.network == moat_model::network::DEFAULT_NETWORK);
    let of_first = |name: &str| member(None, first).get(name).cloned().unwrap_or(Value::Null);
    let namespace = attachment.as_ref().and_then(|attachment| attachment.namespace.as_ref());
    Ok(object! {
        "Bridge": "",
        "SandboxID": if namespace.is_some() { workload.id().to_string() } else { String::new() },
        "SandboxKey": namespace.map(|path| path.display().to_string()).unwrap_or_default(),
        "Ports": Value::Object(ports),
        "HairpinMode": false,
        "EndpointID": of_first("EndpointID"),
        "Gateway": of_first("Gateway"),
        "GlobalIPv6Address": of_first("GlobalIPv6Address"),
        "GlobalIPv6PrefixLen": of_first("GlobalIPv6PrefixLen"),
        "IPAddress": of_first("IPAddress"),
        "IPPrefixLen": of_first("IPPrefixLen"),
        "IPv6Gateway": of_first("IPv6Gateway"),
        "MacAddress": of_first("MacAddress"),
        "Networks": Value::Object(networks),
    })
}

/// A place on a network: as it was wished for, and as it is.
fn member(wish: Option<&EndpointSpec>, place: Option<&EndpointState>) -> Value {
    let text = |value: Option<String>| Value::from(value.unwrap_or_default());
    let chosen = wish.filter(|wish| wish.ip.is_some() || wish.ip6.is_some()).map(|wish| {
        let mut chosen = Map::new();
        chosen.extend(wish.ip.map(|ip| ("IPv4Address".to_owned(), ip.to_string().into())));
        chosen.extend(wish.ip6.map(|ip| ("IPv6Address".to_owned(), ip.to_string().into())));
        Value::Object(chosen)
    });
    let ip = place.and_then(|place| place.ip);
    let ip6 = place.and_then(|place| place.ip6);
    json!({
        "IPAMConfig": chosen,
        "Links": null,
        "Aliases": list_or_null(wish.map(|wish| wish.aliases.clone()).unwrap_or_default()),
        "MacAddress": text(place.map(|place| place.mac.to_string())),
        "DriverOpts": null,
        "NetworkID": text(place.map(|place| place.network_id.clone())),
        "EndpointID": text(place.map(|place| place.device.clone())),
        "Gateway": text(place.and_then(|place| place.gateway).map(|ip| ip.to_string())),
        "IPAddress": text(ip.map(|net| net.addr().to_string())),
        "IPPrefixLen": ip.map_or(0, |net| net.prefix_len()),
        "IPv6Gateway": text(place.and_then(|place| place.gateway6).map(|ip| ip.to_string())),
        "GlobalIPv6Address": text(ip6.map(|net| net.addr().to_string())),
        "GlobalIPv6PrefixLen": ip6.map_or(0, |net| net.prefix_len()),
        "DNSNames": list_or_null(place.map(|place| place.names.clone()).unwrap_or_default()),
    })
}

/// Ports as `ps` shows them: neighbours that lead to neighbours in one. `silent` are ports that are only named.
pub(crate) fn ports_text(published: &[Published], silent: &[(u16, Protocol)]) -> String {
    let mut shown: Vec<(u16, String)> = Vec::new();
    let mut addresses: Vec<(Protocol, std::net::IpAddr)> =
        published.iter().map(|port| (port.protocol, port.host_ip)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    for (protocol, host_ip) in addresses {
        let of_both = |port: &&Published| port.protocol == protocol && port.host_ip == host_ip;
        let mut runs: Vec<(u16, u16, u16)> = Vec::new();
        for port in published.iter().filter(of_both) {
            match runs.last_mut() {
                Some((first, host, last))
                    if port.port.checked_sub(*last) == Some(1)
                        && port.host_port.checked_sub(*host) == port.port.checked_sub(*first) =>
                {
                    *last = port.port;
                }
                _ => runs.push((port.port, port.host_port, port.port)),
            }
        }
        for (first, host, last) in runs {
            let outside = std::net::SocketAddr::new(host_ip, host).to_string();
            let outside = range(&outside, last - first, host);
            let inside = range(&first.to_string(), last - first, first);
            shown.push((first, format!("{outside}->{inside}/{}", protocol.name())));
        }
    }
    for &(port, protocol) in silent {
        shown.push((port, format!("{port}/{}", protocol.name())));
    }
    shown.sort_by_key(|(port, _)| *port);
    shown.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

/// `8000-8002` where there is more than one.
fn range(first: &str, more: u16, number: u16) -> String {
    if more == 0 { first.to_owned() } else { format!("{first}-{}", number.saturating_add(more)) }
}

#[cfg(test)]
mod tests {
    use moat_model::workload::Protocol::{Tcp, Udp};

    use super::{Published, ports_text};

    #[test]
    fn ports_as_docker_shows_them() {
        let port = |host_ip: &str, host_port, port, protocol| Published {
            port,
            protocol,
            host_ip: host_ip.parse().unwrap(),
            host_port,
        };
        let all = [
            port("0.0.0.0", 8000, 80, Tcp),
            port("::", 8000, 80, Tcp),
            port("0.0.0.0", 8001, 81, Tcp),
            port("127.0.0.1", 9000, 90, Udp),
            port("127.0.0.1", 9002, 91, Udp),
        ];
        assert_eq!(
            ports_text(&all, &[(443, Tcp)]),
            "0.0.0.0:8000-8001->80-81/tcp, [::]:8000->80/tcp, 127.0.0.1:9000->90/udp, \
             127.0.0.1:9002->91/udp, 443/tcp"
        );
    }
}
