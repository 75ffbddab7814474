//! Finding what is left or lost, and mending it.
//!
//! What is saved of live workloads is what must be: all else that bears our marks is left by a process that was
//! killed, and what is missing was taken away by somebody else, such as a flush of the packet filter.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use moat_model::network::{EndpointState, NetAttachment, NetworkState};

use crate::nft::{DEVICE_PREFIX, Firewall};
use crate::route::{Link, Route};
use crate::{Networks, Result, attach, bridge, firewall, namespace, resolver, store};

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, such as `workload 4f1c` or `network blue`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// Whether it has been mended.
    pub repaired: bool,
    /// What the user can do where it can not be mended.
    pub hint: Option<String>,
}

/// How long the kernel may take to remove the devices of a network namespace that has ended.
const DEVICE_PATIENCE: Duration = Duration::from_secs(2);

/// Whether nobody is at work with the workload of an id: it does not exist, or neither runs nor is being started. As long
/// as the value is held, nobody begins to.
pub type Idle<'a> = dyn Fn(&str) -> Option<Box<dyn std::any::Any>> + 'a;

/// A check that goes on.
struct Check<'a> {
    networks: &'a Networks,
    idle: &'a Idle<'a>,
    repair: bool,
    route: Route,
    findings: Vec<Finding>,
}

impl Networks {
    /// Compares what is with what is saved; `idle` tells which workloads have no need of it. With `repair` what can
    /// be mended is mended.
    pub fn check(&self, idle: &Idle<'_>, repair: bool) -> Result<Vec<Finding>> {
        let mut check = Check { networks: self, idle, repair, route: Route::open()?, findings: Vec::new() };
        check.workloads()?;
        check.leases()?;
        check.namespaces()?;
        check.devices()?;
        check.bridges()?;
        check.filter()?;
        check.resolvers()?;
        check.foreign_filters()?;
        Ok(check.findings)
    }
}

impl Check<'_> {
    fn found(
        &mut self,
        object: String,
        problem: &str,
        mend: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.repair {
            mend(self)?;
        }
        let finding = Finding { object, problem: problem.to_owned(), repaired: self.repair, hint: None };
        self.findings.push(finding);
        Ok(())
    }

    /// Attachments of workloads that are no more.
    fn workloads(&mut self) -> Result<()> {
        for workload in self.networks.store.list_workloads()? {
            let Some(_nobody) = (self.idle)(&workload) else { continue };
            let object = format!("workload {workload}");
            self.found(object, "it does not run, and has a place on the network", |check| {
                check.networks.release(&workload)
            })?;
        }
        Ok(())
    }

    /// Addresses, and places told to others, of workloads without an attachment.
    fn leases(&mut self) -> Result<()> {
        let networks = self.networks;
        let store = &networks.store;
        let known: BTreeSet<String> = store.list_workloads()?.into_iter().collect();
        for network in store.list_networks()? {
            let leases = store.leases(&network.id);
            for address in store::names(&leases)? {
                let path = leases.join(&address);
                let owner = std::fs::read_to_string(&path).unwrap_or_default();
                if !known.contains(&owner) && (self.idle)(&owner).is_some() {
                    let object = format!("address {address} of network {}", network.name);
                    self.found(object, "nobody has it", |_| store::remove_file(&path))?;
                }
            }
            for path in store::cut_off(&store.endpoints(&network.id))? {
                let object = format!("file {}", path.display());
                self.found(object, "it was never written to its end", |_| store::remove_file(&path))?;
            }
            for endpoint in store.list_endpoints(&network.id)? {
                if !known.contains(&endpoint.workload) && (self.idle)(&endpoint.workload).is_some() {
                    let object =
                        format!("name of workload {} on network {}", endpoint.workload, network.name);
                    let path = store.endpoint_file(&network.id, &endpoint.workload);
                    self.found(object, "nobody has it", |_| store::remove_file(&path))?;
                }
            }
        }
        Ok(())
    }

    fn attachments(&self) -> Result<Vec<NetAttachment>> {
        let store = &self.networks.store;
        let mut found = Vec::new();
        for workload in store.list_workloads()? {
            found.extend(store.load_attachment(&workload)?);
        }
        Ok(found)
    }

    /// Files of namespaces that nobody uses, and those of live workloads that are gone.
    fn namespaces(&mut self) -> Result<()> {
        let folder = self.networks.store.namespaces();
        let names = store::names(&folder)?;
        let attachments = self.attachments()?;
        for name in names {
            let path = folder.join(name);
            if !attachments.iter().any(|one| one.namespace.as_ref() == Some(&path)) {
                let object = format!("network namespace {}", path.display());
                self.found(object, "nobody uses it", |_| namespace::remove(&path))?;
            }
        }
        for attachment in attachments {
            let lost = attachment.namespace.filter(|path| !namespace::is_bound(path));
            if let Some(path) = lost {
                self.findings.push(Finding {
                    object: format!("workload {}", attachment.workload),
                    problem: format!("its network namespace {} is gone", path.display()),
                    repaired: false,
                    hint: Some("restart it".to_owned()),
                });
            }
        }
        Ok(())
    }

    /// Devices of places that are no more.
    fn devices(&mut self) -> Result<()> {
        let mut unknown = self.unknown_devices()?;
        let end = Instant::now() + DEVICE_PATIENCE;
        while !unknown.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
            unknown = self.unknown_devices()?;
        }
        for link in unknown {
            let object = format!("network device {}", link.name);
            self.found(object, "no workload has it", |check| check.route.delete(&link.name))?;
        }
        Ok(())
    }

    /// Devices of ours that no workload has, but for those that the kernel is known to be removing.
    fn unknown_devices(&mut self) -> Result<Vec<Link>> {
        // What is saved is looked at last, as it is saved before it is made.
        let mut links = self.route.links()?;
        let known: BTreeSet<String> =
            self.attachments()?.into_iter().flat_map(|one| one.endpoints).map(|one| one.device).collect();
        links.retain(|link| {
            link.name.starts_with(DEVICE_PREFIX) && !known.contains(&link.name) && !link.is_ending
        });
        Ok(links)
    }

    /// Bridges and their ports.
    fn bridges(&mut self) -> Result<()> {
        let attachments = self.attachments()?;
        for network in self.networks.list()? {
            let places: Vec<(&NetAttachment, &EndpointState)> = attachments
                .iter()
                .flat_map(|one| one.endpoints.iter().map(move |endpoint| (one, endpoint)))
                .filter(|(_, endpoint)| endpoint.network_id == network.id)
                .collect();
            if places.is_empty() {
                continue;
            }
            let bridge = self.route.link(&network.device)?;
            if !bridge.as_ref().is_some_and(|link| link.up) {
                self.found(format!("network {}", network.name), "its bridge is gone or down", |check| {
                    let _lock = check.networks.store.lock_network(&network.id, true)?;
                    bridge::set_up(&check.networks.store, &mut check.route, &network)
                })?;
            } else if !network.internal
                && namespace::read_sysctl("net/ipv4/ip_forward").as_deref() != Some("1")
            {
                self.found(format!("network {}", network.name), "the host passes no packets on", |check| {
                    bridge::set_up(&check.networks.store, &mut check.route, &network)
                })?;
            }
            for (attachment, endpoint) in places {
                self.port(&network, attachment, endpoint)?;
            }
        }
        Ok(())
    }

    fn port(
        &mut self,
        network: &NetworkState,
        attachment: &NetAttachment,
        endpoint: &EndpointState,
    ) -> Result<()> {
        let Some(Link { index: bridge, .. }) = self.route.link(&network.device)? else { return Ok(()) };
        // Who is at work with it makes it whole, or takes it away.
        let store = &self.networks.store;
        let Some(_lock) = store.try_lock_attachment(&endpoint.workload)? else { return Ok(()) };
        if store.load_attachment(&endpoint.workload)?.as_ref() != Some(attachment) {
            return Ok(());
        }
        let object = || format!("workload {} on network {}", endpoint.workload, network.name);
        match self.route.link(&endpoint.device)? {
            Some(link) if link.master == bridge && link.up => Ok(()),
            Some(link) => self.found(object(), "its device is not on the bridge", |check| {
                check.route.join(link.index, bridge, endpoint.mtu_bytes, &endpoint.device)?;
                check.route.set_port(link.index, !network.inter_container, &endpoint.device)
            }),
            None => {
                let Some(path) = attachment.namespace.as_ref().filter(|path| namespace::is_bound(path))
                else {
                    return Ok(());
                };
                let opened = namespace::open(path)?;
                self.found(object(), "its device is gone", |check| {
                    attach::rejoin(&mut check.route, &opened, network, attachment, endpoint, bridge)
                })
            }
        }
    }

    fn filter(&mut self) -> Result<()> {
        let store = &self.networks.store;
        let mut firewall = Firewall::open()?;
        let expected = firewall::expected(store)?;
        let plain = |one: &crate::nft::Element| {
            (one.set, one.key.clone(), one.key_end.clone(), one.data.clone(), one.end)
        };
        let wanted: BTreeSet<_> = expected.iter().map(plain).collect();
        let there = firewall.elements()?;
        // A host on which no network has come up has no filter, and needs none.
        let up = self.bridge_is_up()?;
        let problem = match &there {
            None if !up => return Ok(()),
            None => "its tables are not there",
            Some(_) if !firewall.is_whole()? => "some of its rules are not there",
            Some(there) => {
                let there: BTreeSet<_> = there.iter().map(plain).collect();
                let idle = self.idle_networks()?;
                let missing = wanted.difference(&there).any(|one| !idle.contains(one));
                if there.difference(&wanted).next().is_none() && !missing {
                    return Ok(());
                }
                "it does not hold what is saved"
            }
        };
        self.found("packet filter".to_owned(), problem, |_| firewall::rebuild(store, &mut firewall))
    }

    fn resolvers(&mut self) -> Result<()> {
        let networks = self.networks;
        let Some(command) = &networks.resolver else { return Ok(()) };
        for network in networks.list()? {
            let places = networks.store.list_endpoints(&network.id)?;
            if !places.is_empty() && !resolver::is_alive(&networks.store, &network.id)? {
                self.found(format!("network {}", network.name), "its resolver does not run", |check| {
                    let _lock = check.networks.store.lock_network(&network.id, false)?;
                    resolver::ensure(&networks.store, command, &network)
                })?;
            }
        }
        Ok(())
    }

    fn bridge_is_up(&mut self) -> Result<bool> {
        for network in self.networks.list()? {
            if self.route.link(&network.device)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What networks that no workload has joined yet will bring into the filter.
    fn idle_networks(&mut self) -> Result<BTreeSet<PlainElement>> {
        let mut found = BTreeSet::new();
        for network in self.networks.list()? {
            if self.route.link(&network.device)?.is_none() {
                let elements = firewall::of_network(&network);
                found.extend(
                    elements.into_iter().map(|one| (one.set, one.key, one.key_end, one.data, one.end)),
                );
            }
        }
        Ok(found)
    }

    /// A filter of others may drop what ours lets pass: that is theirs to change.
    fn foreign_filters(&mut self) -> Result<()> {
        if !self.bridge_is_up()? {
            return Ok(());
        }
        for foreign in Firewall::open()?.foreign_drops()? {
            let (family, table, chain) = (foreign.family, &foreign.table, &foreign.chain);
            let hint = match foreign.docker {
                true => {
                    "iptables -I DOCKER-USER -i moat+ -j ACCEPT; iptables -I DOCKER-USER -o moat+ -j ACCEPT"
                        .to_owned()
                }
                false => format!(
                    "nft insert rule {family} {table} {chain} iifname \"moat*\" accept; \
                     nft insert rule {family} {table} {chain} oifname \"moat*\" accept"
                ),
            };
            self.findings.push(Finding {
                object: format!("chain {family} {table} {chain}"),
                problem: "it drops what the host passes on, and so what leaves or enters the networks"
                    .to_owned(),
                repaired: false,
                hint: Some(hint),
            });
        }
        Ok(())
    }
}

type PlainElement = (&'static str, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>, bool);
