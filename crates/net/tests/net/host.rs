//! A host of its own for each test: a network namespace, with a second one behind a wire as the outside, and a
//! mount namespace, so that nothing of this machine is touched.

use std::ffi::OsString;

use moat_linux::mount;
use moat_model::network::{NetAttachment, NetworkSpec, NetworkState};
use moat_model::workload::{EndpointSpec, NetworkingSpec, PortSpec, Protocol};
use moat_net::{Attach, Attached, Networks, Result, Wall};
use tempfile::TempDir;

use crate::wire::Wire;
pub(crate) use crate::wire::{HOST, HOST6, OUTSIDE, OUTSIDE6, Place, Running, sh};

pub(crate) struct Host {
    pub(crate) networks: Networks,
    folder: TempDir,
    wire: Wire,
}

impl Drop for Host {
    fn drop(&mut self) {
        // A folder that is a mount, with all that a test left running, can not be removed with the others.
        let _ = mount::unmount(&self.folder.path().join("run/netns"));
    }
}

impl Host {
    /// Makes the host the namespaces of this thread.
    pub(crate) fn new() -> Self {
        Self::make(false)
    }

    /// With a resolver for each network.
    pub(crate) fn with_names() -> Self {
        Self::make(true)
    }

    fn make(names: bool) -> Self {
        let wire = Wire::lay();
        let folder = tempfile::Builder::new().prefix("moat-net-").tempdir().unwrap();
        let networks = Networks::open(&folder.path().join("data"), &folder.path().join("run"));
        let networks = match names {
            true => networks.with_resolver(helper("names::resolver_process")),
            false => networks,
        };
        Self { networks, folder, wire }
    }

    /// The host itself.
    pub(crate) fn own() -> Place {
        Place::host()
    }

    pub(crate) fn outside(&self) -> Place {
        self.wire.outside()
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(crate) fn network(&self, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkState {
        let mut spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
        change(&mut spec);
        self.networks.create(&spec).unwrap()
    }

    /// Prepares a workload on networks, with ports.
    pub(crate) fn try_start(&self, id: &str, networks: &[&str], ports: &[PortSpec]) -> Result<Attached> {
        let endpoints = networks
            .iter()
            .map(|name| EndpointSpec { network: (*name).to_owned(), ..EndpointSpec::default() });
        let networking = NetworkingSpec {
            endpoints: endpoints.collect(),
            ports: ports.to_vec(),
            ..NetworkingSpec::default()
        };
        self.try_attach(id, &networking)
    }

    pub(crate) fn try_attach(&self, id: &str, networking: &NetworkingSpec) -> Result<Attached> {
        let names = [id.to_owned()];
        let wish = Attach { workload: id, names: &names, networking, exposed: &[], wall: Wall::Container };
        self.networks.prepare(&wish)
    }

    pub(crate) fn start(&self, id: &str, networks: &[&str], ports: &[PortSpec]) -> NetAttachment {
        self.try_start(id, networks, ports).unwrap().attachment
    }

    pub(crate) fn attach(&self, id: &str, networking: &NetworkingSpec) -> NetAttachment {
        self.try_attach(id, networking).unwrap().attachment
    }
}

/// For a check: all workloads but these are idle.
pub(crate) fn live(workloads: &'static [&'static str]) -> impl Fn(&str) -> Option<Box<dyn std::any::Any>> {
    move |id| (!workloads.contains(&id)).then(|| Box::new(()) as Box<dyn std::any::Any>)
}

/// This program again, as one of its helpers.
pub(crate) fn helper(test: &str) -> Vec<OsString> {
    let own = std::env::current_exe().unwrap().into_os_string();
    let flags = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
    std::iter::once(own).chain(flags.map(OsString::from)).collect()
}

/// The place of a workload.
pub(crate) fn place(attachment: &NetAttachment) -> Place {
    Place(attachment.namespace.clone().unwrap())
}

/// The address of a workload on its n-th network.
pub(crate) fn ip(attachment: &NetAttachment, index: usize) -> String {
    attachment.endpoints[index].ip.unwrap().addr().to_string()
}

pub(crate) fn ip6(attachment: &NetAttachment, index: usize) -> String {
    attachment.endpoints[index].ip6.unwrap().addr().to_string()
}

/// `-p` in short: a port of the host at all addresses, and one of the workload.
pub(crate) fn publish(host: u16, port: u16, protocol: Protocol) -> PortSpec {
    PortSpec { host_ip: None, host_ports: Some((host, host)), ports: (port, port), protocol }
}
