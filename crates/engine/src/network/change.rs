//! Networks that come and go, and workloads that join and leave them.
//!
//! What a workload joins is written into its record, so that it is there again after a restart; where it runs, it
//! is on the network at once.

use std::collections::BTreeMap;

use moat_model::network::{DEFAULT_NETWORK, EndpointState, NetworkSpec, NetworkState};
use moat_model::workload::{EndpointSpec, NetworkMode, NetworkingSpec};

use super::names;
use crate::events::{self, Action, Event, EventType};
use crate::{Context, Engine, Error, Result, Timestamp, Workload, WorkloadRecord, files};

impl Engine {
    /// Makes a network.
    ///
    /// Errors: its name or its range is taken; what is asked for is not supported.
    pub fn create_network(&self, spec: &NetworkSpec) -> Result<NetworkState> {
        refuse_ordinary_user("an ordinary user can make no networks")?;
        let network = self.networks().create(spec)?;
        self.tell_network(&network, Action::Create, &[])?;
        Ok(network)
    }

    /// Removes a network.
    ///
    /// Errors: there is none; a workload that runs is on it.
    pub fn remove_network(&self, wanted: &str) -> Result<NetworkState> {
        let network = self.networks().remove(wanted)?;
        self.tell_network(&network, Action::Destroy, &[])?;
        Ok(network)
    }

    /// Removes the networks that `wanted` names and no workload names, whether it runs or not.
    pub fn prune_networks(&self, wanted: &dyn Fn(&NetworkState) -> bool) -> Result<Vec<NetworkState>> {
        let workloads = self.list()?;
        let used = |network: &NetworkState| {
            workloads.iter().any(|workload| is_on(&workload.spec().network, network))
        };
        let removed = self.networks().prune(&|network| wanted(network) && !used(network))?;
        for network in &removed {
            self.tell_network(network, Action::Destroy, &[])?;
        }
        Ok(removed)
    }

    fn tell_network(&self, network: &NetworkState, action: Action, more: &[(&str, &str)]) -> Result<()> {
        let mut attributes = BTreeMap::from([
            ("name".to_owned(), network.name.clone()),
            ("type".to_owned(), network.driver.clone()),
        ]);
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let event = Event {
            time: Timestamp::now(),
            kind: EventType::Network,
            action,
            id: network.id.clone(),
            attributes,
        };
        events::append(&self.roots().events(), &event).context(|| format!("event {}", action.name()))
    }
}

impl Workload {
    /// Lets it join a network: now where it runs, and at every start from now on.
    ///
    /// Errors: it has no network of its own to add one to; it is on that network; an address is taken.
    pub fn connect(&self, spec: &EndpointSpec) -> Result<()> {
        refuse_ordinary_user("a workload of an ordinary user can join no network")?;
        let _lock = self.folder().lock()?;
        let mut record = self.fresh_record()?;
        let network = self.engine().networks().find_or_default(&spec.network)?;
        let what = || format!("workload {} to network {}", record.name, network.name);
        let mut endpoints = listed(&record.spec.network)
            .ok_or_else(|| {
                Error::invalid(format!("its network is {}", record.spec.network.mode.name()))
                    .hint("only a workload with networks of its own can join another")
            })
            .context(what)?;
        if endpoints.iter().any(|one| names_network(one, &network)) {
            return Err(Error::conflict("it is on that network already")).context(what);
        }
        if self.is_live()? {
            // Whoever was killed after it joined, before it was written down, has left the place.
            let joined = match self.place_on(&network)? {
                Some(place) => place,
                None => self.engine().networks().connect(self.id().as_str(), spec, &names(&record))?,
            };
            self.write_hosts(&record, &joined, true)?;
        }
        endpoints.push(EndpointSpec { network: network.name.clone(), ..spec.clone() });
        (record.spec.network.mode, record.spec.network.endpoints) = (NetworkMode::Bridge, endpoints);
        self.folder().save_record(&record)?;
        self.engine().tell_network(&network, Action::Connect, &[("container", self.id().as_str())])
    }

    /// Takes it off a network: now where it runs, and at every start from now on. One without any network left starts
    /// with loopback alone.
    ///
    /// Errors: it is not on that network.
    pub fn disconnect(&self, network: &str) -> Result<()> {
        refuse_ordinary_user("a workload of an ordinary user can leave no network")?;
        let _lock = self.folder().lock()?;
        let mut record = self.fresh_record()?;
        let network = self.engine().networks().find_or_default(network)?;
        let what = || format!("workload {} from network {}", record.name, network.name);
        let mut endpoints = listed(&record.spec.network).unwrap_or_default();
        let before = endpoints.len();
        endpoints.retain(|one| !names_network(one, &network));
        let place = if self.is_live()? { self.place_on(&network)? } else { None };
        if endpoints.len() == before && place.is_none() {
            return Err(Error::conflict("it is not on that network")).context(what);
        }
        if let Some(place) = place {
            self.engine().networks().disconnect(self.id().as_str(), &network.id)?;
            self.write_hosts(&record, &place, false)?;
        }
        let alone = endpoints.is_empty();
        record.spec.network.endpoints = endpoints;
        if alone {
            record.spec.network.mode = NetworkMode::None;
        }
        self.folder().save_record(&record)?;
        self.engine().tell_network(&network, Action::Disconnect, &[("container", self.id().as_str())])
    }

    fn is_live(&self) -> Result<bool> {
        let state = self.state()?;
        Ok(state.is_running() && state.process.is_alive())
    }

    /// Its place on a network, as it runs.
    fn place_on(&self, network: &NetworkState) -> Result<Option<EndpointState>> {
        let places = self.attachment()?.into_iter().flat_map(|attachment| attachment.endpoints);
        Ok(places.into_iter().find(|place| place.network_id == network.id))
    }

    /// The record as it is now: whoever held the lock may have changed it.
    fn fresh_record(&self) -> Result<WorkloadRecord> {
        self.folder()
            .record()?
            .ok_or_else(|| Error::not_found(format!("workload {} does not exist any more", self.name())))
    }

    /// Tells its /etc/hosts of an address that it was given, or has lost.
    fn write_hosts(&self, record: &WorkloadRecord, endpoint: &EndpointState, joined: bool) -> Result<()> {
        let addresses = [endpoint.ip.map(|net| net.addr().into()), endpoint.ip6.map(|net| net.addr().into())];
        let name = record.spec.hostname.clone().unwrap_or_else(|| self.id().short().to_owned());
        files::change_hosts(&self.folder().data, &name, record.spec.domainname.as_deref(), addresses, joined)
    }

    /// Lets the others on its networks know it by its new name.
    pub(crate) fn announce_name(&self, record: &WorkloadRecord) -> Result<()> {
        match self.engine().networks().rename(self.id().as_str(), &names(record)) {
            Err(error) if error.kind() == moat_net::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    /// Releases what a monitor that was killed has left. The caller holds the lock, and nothing of the workload runs.
    pub(crate) fn release_network(&self) -> Result<()> {
        Ok(self.engine().networks().release(self.id().as_str())?)
    }
}

/// Bridges are the host's.
fn refuse_ordinary_user(sentence: &str) -> Result<()> {
    if crate::rootless::is_inside() {
        return Err(Error::invalid(sentence)
            .hint("its networks are `bridge`, which leads outside, `host`, `none` and `container:NAME`"));
    }
    Ok(())
}

/// The places that a workload wishes for, the default one by its name; `None` where it has no network of its own.
fn listed(networking: &NetworkingSpec) -> Option<Vec<EndpointSpec>> {
    match networking.mode {
        NetworkMode::Bridge if networking.endpoints.is_empty() => {
            Some(vec![EndpointSpec { network: DEFAULT_NETWORK.to_owned(), ..EndpointSpec::default() }])
        }
        NetworkMode::Bridge => Some(networking.endpoints.clone()),
        // It may have been disconnected from its last one.
        NetworkMode::None => Some(Vec::new()),
        NetworkMode::Host | NetworkMode::Container(_) | NetworkMode::Path(_) => None,
    }
}

/// The names of the networks that a workload wishes to be on.
pub fn network_names(networking: &NetworkingSpec) -> Vec<String> {
    let places = listed(networking).unwrap_or_default();
    places.into_iter().map(|place| place.network).collect()
}

/// Whether a workload wishes to be on a network.
pub fn is_on(networking: &NetworkingSpec, network: &NetworkState) -> bool {
    listed(networking).unwrap_or_default().iter().any(|one| names_network(one, network))
}

fn names_network(place: &EndpointSpec, network: &NetworkState) -> bool {
    let wanted = place.network.as_str();
    let default = network.name == DEFAULT_NETWORK && ["", "default"].contains(&wanted);
    default
        || wanted == network.name
        || network.id == wanted
        || (wanted.len() >= 12 && network.id.starts_with(wanted))
}
