//! A workload's attachment: made before it starts, changed while it runs, released when it has ended.
//!
//! ```text
//! prepare:  folder, claim file -> addresses, ports -> attachment.json -> namespace, pairs, routes
//!           -> elements of the filter -> endpoint files -> resolver
//! release:  attachment.json becomes leaving.json -> endpoint files -> elements -> devices -> namespace
//!           -> addresses -> folder
//! ```
//!
//! What is about to be made is saved before it is made, and the folder goes last: who is killed anywhere leaves a
//! folder from which `release` goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use moat_model::id::ContainerId;
use moat_model::network::{EndpointState, Mac, NetAttachment, NetworkState};
use moat_model::workload::{EndpointSpec, NetworkMode, NetworkingSpec, PortSpec, Protocol};

use crate::error::Context;
use crate::nft::DEVICE_PREFIX;
use crate::port::{Addresses, Reserved};
use crate::route::{Pair, Route};
use crate::store::{self, Lock, Store};
use crate::{
    Error, ErrorKind, Networks, Result, bridge, firewall, lease, namespace, networks, port, resolver,
};

/// Which wall the workload has, and so what leads through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    /// A container: a pair of devices into its network namespace.
    Container,
    /// A microVM: a tap on the bridge, which the caller opens by the name in [`EndpointState::device`] and then
    /// hands to [`Networks::join_tap`].
    Microvm,
}

/// A port that the image says it serves.
pub type Exposed = (u16, Protocol);

/// The wish of a workload for a place on the network.
#[derive(Clone, Debug)]
pub struct Attach<'a> {
    /// The workload's id.
    pub workload: &'a str,
    /// The names by which others find it: its own, and the beginning of its id.
    pub names: &'a [String],
    /// What the user wished for. Ids of workloads and networks may be names; a workload's must be whole.
    pub networking: &'a NetworkingSpec,
    /// What `publish_all` stands for.
    pub exposed: &'a [Exposed],
    /// What leads to it.
    pub wall: Wall,
}

/// What came of a wish.
#[derive(Debug)]
pub struct Attached {
    /// What the workload has.
    pub attachment: NetAttachment,
    /// Sockets bound to its published ports: as long as somebody holds them, no program of the host can bind one.
    /// They need not be held for the ports to work.
    pub reserved: Vec<OwnedFd>,
}

/// A place that is being made.
struct Place {
    endpoint: EndpointState,
    network: NetworkState,
    bridge: u32,
    /// Keeps the network from being removed meanwhile.
    _lock: Lock,
}

impl Networks {
    /// Makes the place of a workload that is about to start.
    ///
    /// Errors: the workload has one already; an address, a network or a port is not to be had; the host refuses.
    /// Nothing is left then.
    pub fn prepare(&self, wish: &Attach<'_>) -> Result<Attached> {
        let workload = ContainerId::new(wish.workload).map_err(|error| Error::invalid(error.to_string()))?;
        let networking = wish.networking;
        if networking.mode != NetworkMode::Bridge {
            return self.without_place(wish).map(|attachment| Attached { attachment, reserved: Vec::new() });
        }
        let _lock = claim(&self.store, workload.as_str())?;
        let made = self.make_places(wish);
        if made.is_err() {
            // The first error is what the user has to know; what can not be undone is found by the check.
            let _ = self.release_locked(workload.as_str());
        }
        made.context(|| format!("network of workload {}", short(wish.workload)))
    }

    /// The modes that are somebody else's network, or none.
    fn without_place(&self, wish: &Attach<'_>) -> Result<NetAttachment> {
        let networking = wish.networking;
        let mode = networking.mode.name();
        if !networking.ports.is_empty() || networking.publish_all {
            return Err(Error::invalid(format!("ports can not be published in network mode {mode}")));
        }
        if !networking.endpoints.is_empty() {
            return Err(Error::invalid(format!("network mode {mode} goes with no other network")));
        }
        let mut attachment = NetAttachment {
            workload: wish.workload.to_owned(),
            names: wish.names.to_vec(),
            mode: networking.mode.clone(),
            namespace: None,
            endpoints: Vec::new(),
            ports: Vec::new(),
            resolver: None,
        };
        match &networking.mode {
            NetworkMode::Path(path) => {
                let path = PathBuf::from(path);
                namespace::open(&path)?;
                attachment.namespace = Some(path);
            }
            NetworkMode::Container(other) => {
                let found = self.attachment(other)?.ok_or_else(|| {
                    Error::not_found(format!("workload {} has no network that others can join", short(other)))
                })?;
                if found.namespace.is_none() {
                    let sentence =
                        format!("workload {} is a microVM: its network has no room for others", short(other));
                    return Err(Error::invalid(sentence));
                }
                attachment = NetAttachment { workload: attachment.workload, mode: attachment.mode, ..found };
            }
            NetworkMode::Bridge | NetworkMode::Host | NetworkMode::None => {}
        }
        Ok(attachment)
    }

    /// What a workload has; `None` where it has no place of its own.
    pub fn attachment(&self, workload: &str) -> Result<Option<NetAttachment>> {
        self.store.load_attachment(workload)
    }

    fn make_places(&self, wish: &Attach<'_>) -> Result<Attached> {
        let mut route = Route::open()?;
        let default = [EndpointSpec::default()];
        let specs = match wish.networking.endpoints.as_slice() {
            [] => default.as_slice(),
            given => given,
        };
        let mut places: Vec<Place> = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            let place =
                self.place(&mut route, wish.workload, spec, index, wish.names, &wish.networking.dns)?;
            if places.iter().any(|other| other.network.id == place.network.id) {
                return Err(Error::invalid(format!("network {} is named twice", place.network.name)));
            }
            places.push(place);
        }
        let own = self.resolver.is_some().then(|| nameserver(&places)).flatten();
        let mut attachment = NetAttachment {
            workload: wish.workload.to_owned(),
            names: wish.names.to_vec(),
            mode: NetworkMode::Bridge,
            namespace: (wish.wall == Wall::Container).then(|| self.store.namespaces().join(wish.workload)),
            endpoints: places.iter().map(|place| place.endpoint.clone()).collect(),
            ports: Vec::new(),
            resolver: own,
        };
        self.save(&attachment)?;
        if let Some(path) = &attachment.namespace {
            let (opened, mut inside) = namespace::make(path)?;
            for place in &places {
                let Place { endpoint, network, bridge, .. } = place;
                join_container(&mut route, &mut inside, (endpoint, network, *bridge), &opened)?;
            }
            set_ways_out(&mut inside, &attachment)?;
        }
        let reserved = self.publish(&mut attachment, wish, places.first().map(|place| &place.network))?;
        for place in &places {
            self.announce(&place.endpoint, &place.network)?;
        }
        Ok(Attached { attachment, reserved })
    }

    /// Chooses ports and lets all of the workload into the packet filter.
    fn publish(
        &self,
        attachment: &mut NetAttachment,
        wish: &Attach<'_>,
        first: Option<&NetworkState>,
    ) -> Result<Vec<OwnedFd>> {
        let specs = ports(wish);
        let addresses = Addresses {
            default: first.and_then(|network| network.host_ip),
            ipv4: firewall::published_at(attachment, false).is_some(),
            ipv6: firewall::published_at(attachment, true).is_some(),
        };
        // Ports that somebody else published, and does not hold.
        let mut tried = BTreeSet::new();
        loop {
            let Reserved { bindings, sockets } = port::reserve(&specs, &addresses, &tried)?;
            attachment.ports = bindings;
            if !attachment.ports.is_empty() {
                self.save(attachment)?;
            }
            match firewall::add(&self.store, &firewall::of_attachment(attachment)) {
                Err(error) if error.kind() == ErrorKind::Conflict && choice(&specs) => {
                    tried.extend(attachment.ports.iter().map(|binding| binding.host_port));
                }
                Err(error) => {
                    // They are somebody else's: releasing this workload must not take them away.
                    attachment.ports.clear();
                    self.save(attachment)?;
                    return Err(error);
                }
                Ok(()) => return Ok(sockets),
            }
        }
    }

    /// Tells the other workloads of a network.
    fn announce(&self, endpoint: &EndpointState, network: &NetworkState) -> Result<()> {
        let path = self.store.endpoint_file(&network.id, &endpoint.workload);
        store::make_folder(&self.store.endpoints(&network.id))?;
        store::write(&path, endpoint, false)?;
        match &self.resolver {
            Some(command) => resolver::ensure(&self.store, command, network),
            None => Ok(()),
        }
    }

    pub(crate) fn save(&self, attachment: &NetAttachment) -> Result<()> {
        store::write(&self.store.attachment_file(&attachment.workload), attachment, false)
    }

    /// Finds the network, brings its bridge up, and claims addresses.
    fn place(
        &self,
        route: &mut Route,
        workload: &str,
        spec: &EndpointSpec,
        index: usize,
        names: &[String],
        dns: &[IpAddr],
    ) -> Result<Place> {
        let network = self.find_or_default(&spec.network)?;
        if let Some(option) = spec.options.keys().next() {
            return Err(Error::invalid(format!(
                "a place on network {} has no option {option}",
                network.name
            )));
        }
        let (bridge, lock) = bridge::ensure(&self.store, route, &network)?;
        let leases = self.store.leases(&network.id);
        store::make_folder(&leases)?;
        let claim_file = self.store.attachment(workload).join("claim");
        let mut endpoint = EndpointState {
            network_id: network.id.clone(),
            network: network.name.clone(),
            workload: workload.to_owned(),
            interface: format!("eth{index}"),
            device: device()?,
            mac: Mac([0; 6]),
            ip: None,
            ip6: None,
            gateway: None,
            gateway6: None,
            mtu_bytes: network.mtu_bytes,
            names: names.iter().chain(&spec.aliases).cloned().collect(),
            dns: dns.to_vec(),
        };
        for (subnet, wanted) in network.subnets.iter().map(|subnet| {
            let wanted = match subnet.subnet {
                IpNet::V4(_) => spec.ip.map(IpAddr::V4),
                IpNet::V6(_) => spec.ip6.map(IpAddr::V6),
            };
            (subnet, wanted)
        }) {
            let address = lease::claim(&leases, &claim_file, subnet, wanted, &network.name)?;
            let outside = !network.internal;
            match (address, subnet.subnet, subnet.gateway) {
                (IpAddr::V4(ip), IpNet::V4(net), IpAddr::V4(gateway)) => {
                    endpoint.ip = Ipv4Net::new(ip, net.prefix_len()).ok();
                    endpoint.gateway = outside.then_some(gateway);
                }
                (IpAddr::V6(ip), IpNet::V6(net), IpAddr::V6(gateway)) => {
                    endpoint.ip6 = Ipv6Net::new(ip, net.prefix_len()).ok();
                    endpoint.gateway6 = outside.then_some(gateway);
                }
                _ => {}
            }
        }
        if spec.ip6.is_some() && endpoint.ip6.is_none() {
            return Err(Error::invalid(format!("network {} has no IPv6 addresses", network.name)));
        }
        let first = endpoint.ip.map(|net| net.addr().into()).or(endpoint.ip6.map(|net| net.addr().into()));
        endpoint.mac = match &spec.mac {
            Some(mac) => mac.parse().map_err(|error| Error::invalid(format!("{error}")))?,
            None => first.map_or(endpoint.mac, lease::mac),
        };
        Ok(Place { endpoint, network, bridge, _lock: lock })
    }

    /// Lets a workload that runs join a network.
    ///
    /// Errors: it has no place of its own; it is on that network; as for [`Networks::prepare`].
    pub fn connect(&self, workload: &str, spec: &EndpointSpec, names: &[String]) -> Result<EndpointState> {
        let _lock = self.lock_attachment(workload)?;
        let attachment = self.connected(workload)?;
        let Some(path) = attachment.namespace.clone() else {
            let sentence =
                format!("workload {} is a microVM: it can join no network while it runs", short(workload));
            return Err(Error::invalid(sentence));
        };
        let mut route = Route::open()?;
        let used =
            |index: &usize| attachment.endpoints.iter().any(|one| one.interface == format!("eth{index}"));
        let index = (0..).find(|index| !used(index)).unwrap_or_default();
        if spec.network.is_empty() {
            return Err(Error::invalid("a network to connect to must be named"));
        }
        let network = self.find_or_default(&spec.network)?;
        if attachment.endpoints.iter().any(|one| one.network_id == network.id) {
            let sentence = format!("workload {} is on network {} already", short(workload), network.name);
            return Err(Error::conflict(sentence));
        }
        let dns = attachment.endpoints.first().map(|one| one.dns.clone()).unwrap_or_default();
        let mut made_device = None;
        let made = self.place(&mut route, workload, spec, index, names, &dns).and_then(|place| {
            let mut after = attachment.clone();
            after.endpoints.push(place.endpoint.clone());
            made_device = Some(place.endpoint.device.clone());
            self.save(&after)?;
            let opened = namespace::open(&path)?;
            let mut inside = namespace::within(opened.as_fd(), Route::open)?;
            let Place { endpoint, network, bridge, .. } = &place;
            join_container(&mut route, &mut inside, (endpoint, network, *bridge), &opened)?;
            set_ways_out(&mut inside, &after)?;
            self.change_filter(&attachment, &after)?;
            self.announce(&place.endpoint, &place.network)?;
            Ok(place.endpoint)
        });
        if made.is_err() {
            let _ = self.leave(&mut route, &attachment, &network, made_device.as_deref());
        }
        made.context(|| format!("workload {} to network {}", short(workload), network.name))
    }

    /// Gives a workload that runs other names; those that were asked for on one network alone stay.
    ///
    /// Errors: it has no place.
    pub fn rename(&self, workload: &str, names: &[String]) -> Result<()> {
        let _lock = self.lock_attachment(workload)?;
        let mut attachment = self.connected(workload)?;
        let old = attachment.names.clone();
        for endpoint in &mut attachment.endpoints {
            let own = endpoint.names.iter().filter(|name| !old.contains(name));
            endpoint.names = names.iter().chain(own).cloned().collect();
        }
        attachment.names = names.to_vec();
        self.save(&attachment)?;
        for endpoint in &attachment.endpoints {
            store::write(&self.store.endpoint_file(&endpoint.network_id, workload), endpoint, false)?;
        }
        Ok(())
    }

    /// Takes a workload that runs off a network.
    ///
    /// Errors: it is not on it.
    pub fn disconnect(&self, workload: &str, network: &str) -> Result<()> {
        let _lock = self.lock_attachment(workload)?;
        let attachment = self.connected(workload)?;
        let network = self.find(network)?;
        let Some(endpoint) = attachment.endpoints.iter().find(|one| one.network_id == network.id) else {
            let sentence = format!("workload {} is not on network {}", short(workload), network.name);
            return Err(Error::not_found(sentence));
        };
        let mut after = attachment.clone();
        after.endpoints.retain(|one| one.network_id != network.id);
        let mut route = Route::open()?;
        self.change_filter(&attachment, &after)?;
        self.leave(&mut route, &after, &network, Some(&endpoint.device))
            .context(|| format!("workload {} from network {}", short(workload), network.name))
    }

    /// Removes what a workload has on one network; `after` is what remains.
    fn leave(
        &self,
        route: &mut Route,
        after: &NetAttachment,
        network: &NetworkState,
        device: Option<&str>,
    ) -> Result<()> {
        store::remove_file(&self.store.endpoint_file(&network.id, &after.workload))?;
        if let Some(device) = device {
            route.delete(device)?;
        }
        if let Some(path) = &after.namespace {
            let opened = namespace::open(path)?;
            let mut inside = namespace::within(opened.as_fd(), Route::open)?;
            set_ways_out(&mut inside, after)?;
        }
        self.save(after)?;
        self.release_addresses(&after.workload, &network.id)
    }

    /// All addresses of a network that belong to a workload.
    pub(crate) fn release_addresses(&self, workload: &str, network: &str) -> Result<()> {
        let leases = self.store.leases(network);
        for address in store::names(&leases)? {
            if let Ok(address) = address.parse() {
                lease::release(&leases, address, workload)?;
            }
        }
        Ok(())
    }

    /// Changes what the filter knows of a workload.
    fn change_filter(&self, before: &NetAttachment, after: &NetAttachment) -> Result<()> {
        let (old, new) = (firewall::of_attachment(before), firewall::of_attachment(after));
        let only = |one: &[crate::nft::Element], other: &[crate::nft::Element]| {
            let missing =
                |element: &&crate::nft::Element| !other.iter().any(|two| firewall::same(two, element));
            one.iter().filter(missing).cloned().collect::<Vec<_>>()
        };
        firewall::change(&self.store, &only(&new, &old), &only(&old, &new))
    }

    /// Releases all that a workload has. It is no error that it has nothing.
    pub fn release(&self, workload: &str) -> Result<()> {
        let folder = self.store.attachment(workload);
        if !folder.is_dir() {
            return Ok(());
        }
        let _lock = store::lock(&folder, true)?;
        self.release_locked(workload).context(|| format!("network of workload {}", short(workload)))
    }

    /// As `release`, by whoever has the lock of the workload's folder.
    pub(crate) fn release_locked(&self, workload: &str) -> Result<()> {
        let folder = self.store.attachment(workload);
        let leaving = folder.join("leaving.json");
        let saved = self.store.attachment_file(workload);
        // From here on nobody who puts the filter up anew counts it in.
        if saved.exists() {
            std::fs::rename(&saved, &leaving).context(|| format!("rename {}", saved.display()))?;
        }
        let Some(attachment) = store::read::<NetAttachment>(&leaving)? else {
            // It came to claim addresses at most.
            for network in self.list()? {
                self.release_addresses(workload, &network.id)?;
            }
            return store::remove_folder(&folder);
        };
        for endpoint in &attachment.endpoints {
            store::remove_file(&self.store.endpoint_file(&endpoint.network_id, workload))?;
        }
        firewall::forget(&self.store, &firewall::of_attachment(&attachment))?;
        match &attachment.namespace {
            // The pairs go with it, in the kernel's own time; the filter does not let them speak any more.
            Some(path) => namespace::remove(path)?,
            None => {
                let mut route = Route::open()?;
                for endpoint in &attachment.endpoints {
                    route.delete(&endpoint.device)?;
                }
            }
        }
        for endpoint in &attachment.endpoints {
            let leases = self.store.leases(&endpoint.network_id);
            let ips = [endpoint.ip.map(|net| net.addr().into()), endpoint.ip6.map(|net| net.addr().into())];
            for address in ips.into_iter().flatten() {
                lease::release(&leases, address, workload)?;
            }
        }
        store::remove_folder(&folder)
    }

    /// Puts the taps of a microVM on their bridges: devices of the names that its endpoints have, which somebody
    /// holds open.
    ///
    /// Errors: it is no microVM; a tap is not there.
    pub fn join_tap(&self, workload: &str) -> Result<()> {
        let attachment = self.connected(workload)?;
        if attachment.namespace.is_some() {
            return Err(Error::invalid(format!("workload {} is no microVM", short(workload))));
        }
        let mut route = Route::open()?;
        for endpoint in &attachment.endpoints {
            let network = self.find(&endpoint.network_id)?;
            let (bridge, _lock) = bridge::ensure(&self.store, &mut route, &network)?;
            let index = route.index(&endpoint.device)?;
            route.join(index, bridge, endpoint.mtu_bytes, &endpoint.device)?;
            route.set_port(index, !network.inter_container, &endpoint.device)?;
        }
        Ok(())
    }

    fn lock_attachment(&self, workload: &str) -> Result<Lock> {
        let folder = self.store.attachment(workload);
        if ContainerId::new(workload).is_err() || !folder.is_dir() {
            return Err(no_place(workload));
        }
        store::lock(&folder, true)
    }

    fn connected(&self, workload: &str) -> Result<NetAttachment> {
        self.attachment(workload)?.ok_or_else(|| no_place(workload))
    }
}

fn no_place(workload: &str) -> Error {
    Error::not_found(format!("workload {} has no place on any network", short(workload)))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Makes a workload's folder, which is what claims its attachment, and locks it.
pub(crate) fn claim(store: &Store, workload: &str) -> Result<Lock> {
    use std::os::unix::fs::DirBuilderExt;
    store::make_folder(&store.attachments())?;
    let folder = store.attachment(workload);
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let sentence = format!("workload {} has a place on the network already", short(workload));
            return Err(Error::conflict(sentence));
        }
        made => made.context(|| folder.display().to_string())?,
    }
    let lock = store::lock(&folder, true)?;
    let file = folder.join("claim");
    std::fs::write(&file, workload).context(|| file.display().to_string())?;
    Ok(lock)
}

/// A name for the host's device of a place. It is never given twice, as the kernel takes its time to remove the
/// device of a workload that has ended, which may be started again at once.
fn device() -> Result<String> {
    let digits: String = networks::random()?.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{DEVICE_PREFIX}{digits}"))
}

/// The wishes for ports, with those of `publish_all`.
pub(crate) fn ports(wish: &Attach<'_>) -> Vec<PortSpec> {
    let mut specs = wish.networking.ports.clone();
    if wish.networking.publish_all {
        for &(port, protocol) in wish.exposed {
            let published =
                |spec: &PortSpec| spec.protocol == protocol && (spec.ports.0..=spec.ports.1).contains(&port);
            if !specs.iter().any(published) {
                specs.push(PortSpec { host_ip: None, host_ports: None, ports: (port, port), protocol });
            }
        }
    }
    specs
}

/// Whether another choice of ports is possible.
fn choice(specs: &[PortSpec]) -> bool {
    specs
        .iter()
        .any(|spec| spec.host_ports.is_none_or(|(first, last)| last - first > spec.ports.1 - spec.ports.0))
}

/// The resolver of the first network that leads outside, else of the first one.
fn nameserver(places: &[Place]) -> Option<IpAddr> {
    let outside = places.iter().find(|place| !place.network.internal);
    let place = outside.or(places.first())?;
    place.network.subnets.first().map(|subnet| subnet.gateway)
}

/// Makes the pair of a container's place, with its addresses.
fn join_container(
    route: &mut Route,
    inside: &mut Route,
    (endpoint, network, bridge): (&EndpointState, &NetworkState, u32),
    namespace: &OwnedFd,
) -> Result<()> {
    let interface = &endpoint.interface;
    route.add_pair(&Pair {
        device: &endpoint.device,
        bridge,
        interface,
        mac: endpoint.mac,
        mtu_bytes: endpoint.mtu_bytes,
        namespace: namespace.as_fd(),
    })?;
    let port = route.index(&endpoint.device)?;
    route.set_port(port, !network.inter_container, &endpoint.device)?;
    let index = inside.index(interface)?;
    if let Some(net) = endpoint.ip {
        inside.add_address(index, net.into(), interface)?;
    }
    if let Some(net) = endpoint.ip6 {
        let parameter = format!("net/ipv6/conf/{interface}/disable_ipv6");
        namespace::within(namespace.as_fd(), || namespace::sysctl(&parameter, "0"))?;
        inside.add_address(index, net.into(), interface)?;
    }
    inside.set_up(index, interface)
}

/// Makes the pair of a container's place again.
pub(crate) fn rejoin(
    route: &mut Route,
    opened: &OwnedFd,
    network: &NetworkState,
    attachment: &NetAttachment,
    endpoint: &EndpointState,
    bridge: u32,
) -> Result<()> {
    let mut inside = namespace::within(opened.as_fd(), Route::open)?;
    join_container(route, &mut inside, (endpoint, network, bridge), opened)?;
    set_ways_out(&mut inside, attachment)
}

/// Sets the ways out of a container: through the first place that has one.
fn set_ways_out(inside: &mut Route, attachment: &NetAttachment) -> Result<()> {
    let gateways: [fn(&EndpointState) -> Option<IpAddr>; 2] =
        [|one| one.gateway.map(IpAddr::V4), |one| one.gateway6.map(IpAddr::V6)];
    for gateway in gateways {
        let first = attachment.endpoints.iter().find_map(|one| gateway(one).map(|address| (one, address)));
        if let Some((endpoint, address)) = first {
            let index = inside.index(&endpoint.interface)?;
            inside.set_default_route(address, index)?;
        }
    }
    Ok(())
}
