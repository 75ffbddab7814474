//! `moat network ...`.

use clap::Args;
use ipnet::IpNet;
use moat_engine::{Engine, ErrorKind, Timestamp};
use moat_model::network::{DEFAULT_NETWORK, NetworkSpec, NetworkState, SubnetSpec};
use moat_model::workload::EndpointSpec;

use super::{each, each_line, inspect};
use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::flags;
use crate::flags::list::{ListFlags, PruneFlags};
use crate::format::{self, Column, Row};
use crate::line::Verb;
use crate::session::{Session, print};
use crate::shape::network::document;

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Driver: bridge
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// The host's address on the network, one for each range
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<std::net::IpAddr>,
    /// Nothing leads out of it, nor in
    #[arg(long)]
    internal: bool,
    /// Part of a range from which addresses are given
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<IpNet>,
    /// IPv6 addresses, too
    #[arg(long)]
    ipv6: bool,
    /// Label, as NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", value_parser = flags::pair)]
    label: Vec<(String, String)>,
    /// Option of the driver, as in com.docker.network.driver.mtu=1400
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = flags::assignment)]
    opt: Vec<(String, String)>,
    /// Range of addresses, at most one of each family
    #[arg(long, value_name = "RANGE")]
    subnet: Vec<IpNet>,
    /// Refused
    #[arg(long, hide = true, value_parser = flags::refused("addresses cannot be set aside; give addresses from a part of the range with --ip-range"))]
    aux_address: Vec<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = flags::refused("networks of several hosts are not supported"))]
    scope: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = flags::refused("a network is made in one piece: configurations without a network are not supported"))]
    config_from: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = flags::refused("addresses are given by Moat itself"))]
    ipam_opt: Vec<String>,
    /// Only default
    #[arg(long, hide = true, value_parser = ["default"])]
    ipam_driver: Option<String>,
    /// Name
    name: String,
}

impl Verb for Create {
    const NAME: &'static str = "create";
    const ABOUT: &'static str = "Create a network";

    fn run(self, session: &Session) -> Result<u8> {
        let spec = NetworkSpec {
            subnets: subnets(&self.subnet, &self.gateway, &self.ip_range)?,
            name: self.name,
            driver: self.driver,
            ipv6: self.ipv6,
            internal: self.internal,
            mtu_bytes: None,
            labels: self.label.into_iter().collect(),
            options: self.opt.into_iter().collect(),
        };
        let network = session.engine()?.create_network(&spec)?;
        print(&format!("{}\n", network.id))?;
        Ok(0)
    }
}

/// Each gateway and each part belongs to the range that it lies in.
fn subnets(
    ranges: &[IpNet],
    gateways: &[std::net::IpAddr],
    parts: &[IpNet],
) -> std::result::Result<Vec<SubnetSpec>, Failure> {
    let mut found: Vec<SubnetSpec> = ranges
        .iter()
        .map(|&subnet| SubnetSpec { subnet: subnet.trunc(), gateway: None, ip_range: None })
        .collect();
    for &gateway in gateways {
        let subnet = found.iter_mut().find(|one| one.subnet.contains(&gateway) && one.gateway.is_none());
        let none = || Failure::new(format!("--gateway {gateway} lies in no --subnet that lacks one"));
        subnet.ok_or_else(none)?.gateway = Some(gateway);
    }
    for &part in parts {
        let subnet = found.iter_mut().find(|one| one.subnet.contains(&part) && one.ip_range.is_none());
        let none = || Failure::new(format!("--ip-range {part} lies in no --subnet that lacks one"));
        subnet.ok_or_else(none)?.ip_range = Some(part);
    }
    Ok(found)
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    list: ListFlags,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
}

const COLUMNS: [Column; 9] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Verb for List {
    const NAME: &'static str = "ls";
    const ABOUT: &'static str = "List networks";

    fn run(self, session: &Session) -> Result<u8> {
        const KEYS: [&str; 8] = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];
        let format = self.list.format()?;
        let filters = self.list.filters(&KEYS)?;
        if let Some(kind) =
            filters.of("type").iter().find(|kind| !["builtin", "custom"].contains(&kind.as_str()))
        {
            return Err(Failure::new(format!("--filter type={kind} is neither builtin nor custom")));
        }
        let dangling = filters.truth("dangling")?;
        let engine = session.engine()?;
        let workloads = engine.list()?;
        let used = |network: &NetworkState| {
            workloads.iter().any(|workload| moat_engine::is_on(&workload.spec().network, network))
        };
        let id = |network: &NetworkState| match self.no_trunc {
            true => network.id.clone(),
            false => network.id.chars().take(12).collect(),
        };
        let mut found = networks(&engine)?;
        found.retain(|network| {
            dangling.is_none_or(|dangling| dangling != (used(network) || is_builtin(network)))
                && filters.any("driver", |driver| driver == network.driver)
                && filters.any("id", |id| network.id.starts_with(id))
                && filters.any("name", |name| network.name.contains(name))
                && filters.any("scope", |scope| scope == "local")
                && filters.any("type", |kind| (kind == "builtin") == is_builtin(network))
                && filters.labels(&network.labels)
        });
        if self.list.is_quiet() {
            print(&each_line(&found.iter().map(id).collect::<Vec<_>>()))?;
            return Ok(0);
        }
        let row = |network: &NetworkState| {
            let mut row = Row::default();
            row.set("ID", id(network))
                .set("Name", network.name.as_str())
                .set("Driver", network.driver.as_str())
                .set("Scope", "local")
                .set("IPv4", network.ipv4().is_some().to_string())
                .set("IPv6", network.ipv6().is_some().to_string())
                .set("Internal", network.internal.to_string())
                .set("CreatedAt", network.created.as_str());
            row.labels(&network.labels);
            row
        };
        let rows = found.iter().map(row).collect();
        print(&format::rows(&format, &["ID", "Name", "Driver", "Scope"], &COLUMNS, rows)?)?;
        Ok(0)
    }
}

/// All networks by name, with the two that are none.
fn networks(engine: &Engine) -> Result<Vec<NetworkState>> {
    let networks = engine.networks();
    networks.default_network().map_err(moat_engine::Error::from)?;
    let mut found = networks.list().map_err(moat_engine::Error::from)?;
    found.extend([builtin("host", "host"), builtin("none", "null")]);
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// What stands for the host's network, or for none. The id is the name in hexadecimal.
fn builtin(name: &str, driver: &str) -> NetworkState {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    NetworkState {
        id: format!("{digits:0<64}"),
        name: name.to_owned(),
        created: crate::shape::container::NEVER.to_owned(),
        driver: driver.to_owned(),
        subnets: Vec::new(),
        internal: false,
        mtu_bytes: 0,
        device: String::new(),
        masquerade: false,
        inter_container: false,
        host_ip: None,
        labels: std::collections::BTreeMap::new(),
        options: std::collections::BTreeMap::new(),
    }
}

fn is_builtin(network: &NetworkState) -> bool {
    network.name == DEFAULT_NETWORK || network.driver != "bridge"
}

/// The network of a name or an id, with the two that are none.
pub(super) fn find(engine: &Engine, name: &str) -> Result<NetworkState> {
    match name {
        "host" => Ok(builtin("host", "host")),
        "none" => Ok(builtin("none", "null")),
        name => Ok(engine.networks().find_or_default(name).map_err(moat_engine::Error::from)?),
    }
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Draw the way of a packet between a workload and the outside, with live counters
    #[arg(long, value_name = "WORKLOAD")]
    explain: Option<String>,
    /// Form of the answer: json, or a Go template
    #[arg(short, long, conflicts_with = "explain")]
    format: Option<String>,
    /// Network
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

impl Verb for Inspect {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Print all about networks, or the way of a packet";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let Some(workload) = &self.explain else {
            return inspect::documents(&self.names, self.format.as_deref(), |name| {
                document(&engine, &find(&engine, name)?)
            });
        };
        let workload = engine.find(workload)?;
        for name in &self.names {
            let drawn = engine.networks().explain(&find(&engine, name)?.id, workload.id().as_str());
            print(&drawn.map_err(moat_engine::Error::from)?)?;
        }
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// A network that is not there is no fault
    #[arg(short, long)]
    force: bool,
    /// Network
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

impl Verb for Remove {
    const NAME: &'static str = "rm";
    const ABOUT: &'static str = "Remove networks";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        each(&self.names, |name| {
            if ["host", "none"].contains(&name) {
                return Err(Failure::new(format!("network {name} is always there and can not be removed")));
            }
            match engine.remove_network(name) {
                Err(error) if self.force && error.kind() == ErrorKind::NotFound => Ok(None),
                other => other.map(|_| Some(name.to_owned())).map_err(Failure::from),
            }
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Connect {
    /// Further name on this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Option of the driver
    #[arg(long, value_name = "NAME=VALUE", value_parser = flags::pair)]
    driver_opt: Vec<(String, String)>,
    /// Refused: links are Docker's legacy networks
    #[arg(long, hide = true, value_parser = flags::refused("links belong to Docker's legacy networks; use --alias"))]
    link: Vec<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = flags::refused("link-local addresses cannot be chosen"))]
    link_local_ip: Vec<String>,
    /// Network
    network: String,
    /// Workload
    workload: String,
}

impl Verb for Connect {
    const NAME: &'static str = "connect";
    const ABOUT: &'static str = "Let a workload join a network";

    fn run(self, session: &Session) -> Result<u8> {
        let spec = EndpointSpec {
            network: self.network,
            ip: self.ip,
            ip6: self.ip6,
            mac: None,
            aliases: self.alias,
            options: self.driver_opt.into_iter().collect(),
        };
        session.engine()?.find(&self.workload)?.connect(&spec)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Disconnect {
    /// A workload that is not on the network, or not there, is no fault
    #[arg(short, long)]
    force: bool,
    /// Network
    network: String,
    /// Workload
    workload: String,
}

impl Verb for Disconnect {
    const NAME: &'static str = "disconnect";
    const ABOUT: &'static str = "Take a workload off a network";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let done = engine.find(&self.workload).and_then(|workload| workload.disconnect(&self.network));
        match done {
            Err(error)
                if self.force && [ErrorKind::NotFound, ErrorKind::Conflict].contains(&error.kind()) =>
            {
                Ok(0)
            }
            other => Ok(other.map(|()| 0)?),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Prune {
    #[command(flatten)]
    prune: PruneFlags,
}

impl Verb for Prune {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Remove networks that no workload uses";

    fn run(self, session: &Session) -> Result<u8> {
        let (filters, until) = self.prune.chosen(&["until", "label", "label!"])?;
        if !self.prune.agreed("all networks that no workload uses")? {
            return Ok(0);
        }
        print(&prune(&session.engine()?, &filters, until)?)?;
        Ok(0)
    }
}

/// Removes what fits, and says what has gone.
pub(super) fn prune(engine: &Engine, filters: &Filters, until: Option<Timestamp>) -> Result<String> {
    let old = |network: &NetworkState| {
        let created = Timestamp::parse(&network.created);
        until.is_none_or(|until| created.is_none_or(|created| created < until))
    };
    let removed = engine.prune_networks(&|network| old(network) && filters.labels(&network.labels))?;
    let names: Vec<String> = removed.into_iter().map(|network| network.name).collect();
    Ok(match names.as_slice() {
        [] => String::new(),
        names => format!("Deleted Networks:\n{}\n", each_line(names)),
    })
}

#[cfg(test)]
mod tests {
    use super::subnets;

    #[test]
    fn gateways_and_parts_find_their_range() {
        let net = |text: &str| text.parse().unwrap();
        let ranges = [net("10.1.0.0/24"), net("fd00:1::/64")];
        let found = subnets(&ranges, &["fd00:1::9".parse().unwrap()], &[net("10.1.0.128/25")]).unwrap();
        assert_eq!(found[0].ip_range, Some(net("10.1.0.128/25")));
        assert_eq!((found[0].gateway, found[1].gateway), (None, "fd00:1::9".parse().ok()));
        assert!(subnets(&ranges, &["10.2.0.1".parse().unwrap()], &[]).is_err());
        assert!(subnets(&[], &[], &[net("10.1.0.128/25")]).is_err());
    }
}
