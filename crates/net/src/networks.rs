//! Making, finding and removing networks.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use moat_model::network::{DEFAULT_NETWORK, NetworkSpec, NetworkState, Subnet, SubnetSpec};

use crate::error::Context;
use crate::route::Route;
use crate::store::{self, Store};
use crate::{Error, Result, bridge, pools, resolver};

/// The bridge of the default network.
const DEFAULT_DEVICE: &str = "moat0";
/// The smallest packet that IPv6 can do with, and the largest one there is.
const MTU_BYTES: std::ops::RangeInclusive<u32> = 68..=65535;
const MTU_IPV6_BYTES: u32 = 1280;
const MTU_DEFAULT_BYTES: u32 = 1500;

/// All networks below two folders: one of data, and one that is empty after a reboot.
#[derive(Clone, Debug)]
pub struct Networks {
    pub(crate) store: Store,
    pub(crate) resolver: Option<Vec<OsString>>,
}

impl Networks {
    /// The networks below the folders `data` and `run`, which need not exist. Nothing is touched yet.
    pub fn open(data: &Path, run: &Path) -> Self {
        Self { store: Store { data: data.to_owned(), run: run.to_owned() }, resolver: None }
    }

    /// Sets the program and arguments that end in `resolver::serve`. Without it workloads have no names
    /// for each other and ask the host's resolvers.
    #[must_use]
    pub fn with_resolver(mut self, command: Vec<OsString>) -> Self {
        self.resolver = Some(command);
        self
    }

    /// All networks, by name.
    pub fn list(&self) -> Result<Vec<NetworkState>> {
        self.store.list_networks()
    }

    /// The network of a name, an id, or the beginning of one id.
    ///
    /// Errors: there is none; several ids begin so.
    pub fn find(&self, wanted: &str) -> Result<NetworkState> {
        let all = self.list()?;
        if let Some(found) = all.iter().find(|one| one.name == wanted || one.id == wanted) {
            return Ok(found.clone());
        }
        let mut begin = all.into_iter().filter(|one| !wanted.is_empty() && one.id.starts_with(wanted));
        match (begin.next(), begin.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("several networks have ids that begin with {wanted}")))
            }
            (None, _) => Err(Error::not_found(format!("there is no network {wanted}"))),
        }
    }

    /// As [`Networks::find`]; the default network, by whichever of its names, is made where it does not exist.
    pub fn find_or_default(&self, wanted: &str) -> Result<NetworkState> {
        match wanted {
            "" | "default" | DEFAULT_NETWORK => self.default_network(),
            wanted => self.find(wanted),
        }
    }

    /// The folder where network namespaces are bound.
    pub fn namespaces(&self) -> std::path::PathBuf {
        self.store.namespaces()
    }

    /// The default network, made where it does not exist.
    pub fn default_network(&self) -> Result<NetworkState> {
        if let Some(found) = self.list()?.into_iter().find(|one| one.name == DEFAULT_NETWORK) {
            return Ok(found);
        }
        let spec = NetworkSpec { name: DEFAULT_NETWORK.to_owned(), ..NetworkSpec::default() };
        match self.make(&spec) {
            // Somebody else was first.
            Err(error) if error.kind() == crate::ErrorKind::Conflict => self.find(DEFAULT_NETWORK),
            other => other,
        }
    }

    /// Makes a network. Its bridge comes to be when the first workload joins.
    ///
    /// Errors: the name or a range is taken; an option is not supported.
    pub fn create(&self, spec: &NetworkSpec) -> Result<NetworkState> {
        let what = || format!("network {}", spec.name);
        check_name(&spec.name)?;
        self.make(spec).context(what)
    }

    fn make(&self, spec: &NetworkSpec) -> Result<NetworkState> {
        let choices = Choices::parse(spec)?;
        let folder = self.store.networks();
        store::make_folder(&folder)?;
        let _lock = store::lock(&folder, true)?;
        let others = self.list()?;
        if others.iter().any(|other| other.name == spec.name) {
            return Err(Error::conflict(format!("a network named {} exists already", spec.name)));
        }
        let random = random()?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let device = match choices.device {
            Some(device) => device,
            None if spec.name == DEFAULT_NETWORK => DEFAULT_DEVICE.to_owned(),
            None => format!("moat-{}", id.get(..10).unwrap_or_default()),
        };
        if others.iter().any(|other| other.device == device) || Route::open()?.link(&device)?.is_some() {
            return Err(Error::conflict(format!("the host has a network device {device} already")));
        }
        let network = NetworkState {
            name: spec.name.clone(),
            created: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            driver: spec.driver.clone(),
            subnets: subnets(spec, &others, random)?,
            internal: spec.internal,
            mtu_bytes: choices.mtu_bytes,
            device,
            masquerade: choices.masquerade,
            inter_container: choices.inter_container,
            host_ip: choices.host_ip,
            labels: spec.labels.clone(),
            options: spec.options.clone(),
            id,
        };
        if network.ipv6().is_some() && network.mtu_bytes < MTU_IPV6_BYTES {
            return Err(Error::invalid(format!("IPv6 needs packets of at least {MTU_IPV6_BYTES} bytes")));
        }
        store::make_folder(&folder.join(&network.id))?;
        store::write(&self.store.network_file(&network.id), &network, true)?;
        Ok(network)
    }

    /// Removes a network.
    ///
    /// Errors: there is none; it is the default one; workloads are on it.
    pub fn remove(&self, wanted: &str) -> Result<NetworkState> {
        let refused = || Error::invalid("the default network can not be removed");
        if wanted == DEFAULT_NETWORK {
            return Err(refused());
        }
        let network = self.find(wanted)?;
        if network.name == DEFAULT_NETWORK {
            return Err(refused());
        }
        self.remove_unused(&network).context(|| format!("network {}", network.name))?;
        Ok(network)
    }

    pub(crate) fn remove_unused(&self, network: &NetworkState) -> Result<()> {
        let _lock = self.store.lock_network(&network.id, true)?;
        let endpoints = self.store.list_endpoints(&network.id)?;
        if let Some(one) = endpoints.first() {
            let name = one.names.first().unwrap_or(&one.workload);
            return Err(Error::conflict(format!("{} workloads are on it, {name} is one", endpoints.len())));
        }
        if let Some(lease) = store::names(&self.store.leases(&network.id))?.first() {
            return Err(Error::conflict(format!("a workload that is being started has its address {lease}")));
        }
        // First the claim goes: who waits for the lock finds that the network is gone.
        store::remove_file(&self.store.network_file(&network.id))?;
        bridge::tear_down(&self.store, &mut Route::open()?, network)?;
        store::remove_folder(&self.store.networks().join(&network.id))?;
        let resolver = resolver::lock_file(&self.store, &network.id)?;
        store::remove_folder(&self.store.network_run(&network.id))?;
        resolver::wait_for_end(resolver)
    }

    /// Removes all networks that users made, no workload is on, and `wanted` names; gives what has gone.
    pub fn prune(&self, wanted: &dyn Fn(&NetworkState) -> bool) -> Result<Vec<NetworkState>> {
        let mut removed = Vec::new();
        let chosen = |network: &NetworkState| network.name != DEFAULT_NETWORK && wanted(network);
        for network in self.list()?.into_iter().filter(chosen) {
            match self.remove_unused(&network) {
                Ok(()) => removed.push(network),
                Err(error) if error.kind() == crate::ErrorKind::Conflict => {}
                Err(error) => return Err(error).context(|| format!("network {}", network.name)),
            }
        }
        Ok(removed)
    }
}

/// 32 bytes that nobody can guess.
pub(crate) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context(|| "/dev/urandom")?;
    Ok(bytes)
}

fn check_name(name: &str) -> Result<()> {
    const TAKEN: [&str; 4] = [DEFAULT_NETWORK, "host", "none", "default"];
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || !name.bytes().all(legal) || name.len() > 128 {
        return Err(Error::invalid(format!(
            "network name {name:?} must be 1 to 128 of the characters A-Z a-z 0-9 _ . - and begin with one of the first"
        )));
    }
    if TAKEN.contains(&name) {
        return Err(Error::invalid(format!("{name:?} names a network that is always there")));
    }
    Ok(())
}

/// What the options of the driver say.
struct Choices {
    device: Option<String>,
    mtu_bytes: u32,
    masquerade: bool,
    inter_container: bool,
    host_ip: Option<IpAddr>,
}

impl Choices {
    fn parse(spec: &NetworkSpec) -> Result<Self> {
        match spec.driver.as_str() {
            "bridge" => {}
            "macvlan" | "ipvlan" => {
                let hint = "only the driver bridge is there so far";
                return Err(
                    Error::invalid(format!("the driver {} is not supported yet", spec.driver)).hint(hint)
                );
            }
            other => return Err(Error::invalid(format!("there is no network driver {other:?}"))),
        }
        let mut choices = Self {
            device: None,
            mtu_bytes: spec.mtu_bytes.unwrap_or(MTU_DEFAULT_BYTES),
            masquerade: true,
            inter_container: true,
            host_ip: None,
        };
        for (name, value) in &spec.options {
            choices.set(name, value)?;
        }
        if !MTU_BYTES.contains(&choices.mtu_bytes) {
            return Err(Error::invalid(format!("packets of {} bytes are not possible", choices.mtu_bytes)));
        }
        Ok(choices)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |kind: &str| Error::invalid(format!("option {name}: {value:?} is no {kind}"));
        let truth = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong("truth value")),
        };
        match name {
            "com.docker.network.bridge.name" => {
                self.device = Some(device_name(value).ok_or_else(|| wrong("name for a network device"))?);
            }
            "com.docker.network.bridge.enable_ip_masquerade" => self.masquerade = truth()?,
            "com.docker.network.bridge.enable_icc" => self.inter_container = truth()?,
            "com.docker.network.bridge.host_binding_ipv4" => {
                self.host_ip = Some(value.parse().map_err(|_| wrong("address"))?);
            }
            "com.docker.network.driver.mtu" | "mtu" => {
                self.mtu_bytes = value.parse().map_err(|_| wrong("number of bytes"))?;
            }
            _ => {
                return Err(Error::invalid(format!("the driver bridge has no option {name}")));
            }
        }
        Ok(())
    }
}

/// A name that the kernel takes, that no device of a workload can have.
fn device_name(name: &str) -> Option<String> {
    let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':' && byte != b'%';
    let fits = (1..=15).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != "..";
    (fits && !name.starts_with(crate::nft::DEVICE_PREFIX)).then(|| name.to_owned())
}

/// The ranges of a new network: those that were given, and of the pools for a family that has none.
fn subnets(spec: &NetworkSpec, others: &[NetworkState], random: [u8; 32]) -> Result<Vec<Subnet>> {
    let mut taken: Vec<(String, IpNet)> = Vec::new();
    for other in others {
        taken.extend(other.subnets.iter().map(|one| (format!("network {}", other.name), one.subnet)));
    }
    let given: Vec<Subnet> = spec.subnets.iter().map(check_subnet).collect::<Result<_>>()?;
    for subnet in &given {
        let met = taken.iter().find(|(_, other)| pools::overlap(&subnet.subnet, other));
        if let Some((whose, other)) = met {
            return Err(Error::conflict(format!("{} overlaps {other} of {whose}", subnet.subnet)));
        }
    }
    let family = |ipv4: bool| given.iter().filter(move |one| one.subnet.addr().is_ipv4() == ipv4);
    if family(true).count() > 1 || family(false).count() > 1 {
        return Err(Error::invalid("a bridge has at most one range of each family"));
    }
    let whole = |subnet: IpNet| Subnet { subnet, gateway: pools::first_host(&subnet), ip_range: None };
    let ipv4 = match family(true).next() {
        Some(subnet) => subnet.clone(),
        None => {
            let mut used: Vec<IpNet> = taken.into_iter().map(|(_, range)| range).collect();
            used.extend(Route::open()?.destinations()?);
            let hint = "give one with --subnet";
            let none = || Error::conflict("all ranges of the default pools are in use").hint(hint);
            whole(pools::ipv4(&used).ok_or_else(none)?)
        }
    };
    let ipv6 = match family(false).next() {
        Some(subnet) => Some(subnet.clone()),
        None if spec.ipv6 => pools::ipv6(random).map(whole),
        None => None,
    };
    Ok(std::iter::once(ipv4).chain(ipv6).collect())
}

fn check_subnet(spec: &SubnetSpec) -> Result<Subnet> {
    let subnet = spec.subnet.trunc();
    let smallest = if subnet.addr().is_ipv4() { 30 } else { 126 };
    if spec.subnet != subnet {
        return Err(Error::invalid(format!("{} is no range; {subnet} is", spec.subnet)));
    }
    if subnet.prefix_len() > smallest || subnet.prefix_len() == 0 {
        return Err(Error::invalid(format!("{subnet} has no room for a bridge and a workload")));
    }
    let gateway = spec.gateway.unwrap_or_else(|| pools::first_host(&subnet));
    if !crate::lease::is_host(&subnet, gateway) {
        return Err(Error::invalid(format!("gateway {gateway} is no address of {subnet}")));
    }
    if let Some(range) = spec.ip_range.filter(|range| !subnet.contains(range)) {
        return Err(Error::invalid(format!("{range} is no part of {subnet}")));
    }
    Ok(Subnet { subnet, gateway, ip_range: spec.ip_range })
}
