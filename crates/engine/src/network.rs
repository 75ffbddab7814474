//! The place of a workload on the network: made before its wall is built, and given back after it fell.
//!
//! The monitor makes it, in the mount namespace of whoever started it: a network namespace is bound to a file there, so
//! that others can join it, and the resolvers that are started on the way have no part in the monitor's mounts.

mod change;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_image::RunConfig;
use moat_linux::fs;
use moat_linux::mount::{self, Attributes, propagation};
use moat_linux::process::{self as sys, namespace};
use moat_linux::tap;
use moat_model::network::{EndpointState, NetAttachment};
use moat_model::workload::{Isolation, NetworkMode, Protocol, WorkloadSpec, parse_exposed};
use moat_net::{Attach, Networks, Pasta, Wall, pasta};
use rustix::fs::OFlags;

use crate::workload::Folder;
use crate::{Context, Engine, Error, Result, Workload, WorkloadRecord};

pub use change::{is_on, network_names};

/// The mount namespace that the monitor was started in.
#[derive(Debug)]
pub(crate) struct HostMounts(OwnedFd);

impl HostMounts {
    /// That of this process.
    pub(crate) fn own() -> Result<Self> {
        Ok(Self(fs::open(Path::new("/proc/self/ns/mnt"), OFlags::RDONLY)?))
    }

    /// Does something there, and comes back. The process must have a single thread.
    fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = Self::own()?;
        sys::join(self.0.as_fd(), namespace::MOUNT).context(|| "enter the host's mount namespace")?;
        let done = work();
        sys::join(own.0.as_fd(), namespace::MOUNT).context(|| "return from the host's mount namespace")?;
        done
    }
}

/// Lets go of the network namespaces of other workloads in the mount namespace of this process: a copy here would keep
/// each of them for as long as this one lives.
pub(crate) fn let_go_of_others(engine: &Engine) -> Result<()> {
    let folder = engine.networks().namespaces();
    if !folder.exists() {
        return Ok(());
    }
    let opened = fs::open(&folder, OFlags::PATH | OFlags::DIRECTORY)?;
    let private = Attributes { propagation: propagation::PRIVATE, ..Attributes::default() };
    match mount::set_attributes(opened.as_fd(), private, true) {
        // Not a mount: nobody has bound anything yet.
        Err(error) if error.errno() == moat_linux::Errno::INVAL => return Ok(()),
        other => other?,
    }
    drop(opened);
    Ok(mount::unmount(&folder)?)
}

/// A network card of a machine: the host's side of it.
#[derive(Debug)]
pub(crate) struct Tap {
    /// The place that it leads to.
    pub(crate) endpoint: EndpointState,
    /// The frames, each with [`HEADER_BYTES`] in front.
    pub(crate) fd: OwnedFd,
}

/// The header of virtio's network devices (virtio 1.2, 5.1.6), which the kernel puts in front of a tap's frames.
const HEADER_BYTES: u8 = 12;

/// The network of a workload that runs.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// The namespace that it joins; `None` is one of its own with nothing but loopback, or the host's.
    pub(crate) namespace: Option<PathBuf>,
    /// Its own place, where it has one.
    pub(crate) attachment: Option<NetAttachment>,
    /// What leads into its machine, in the order of its networks, where it has one.
    pub(crate) taps: Vec<Tap>,
    /// What an ordinary user has in place of a bridge.
    pasta: Option<Pasta>,
    /// Whose files of names it has: those of the workload whose network it shares.
    pub(crate) names_of: Option<Folder>,
    /// The namespace, and sockets that keep other programs of the host from its published ports.
    held: Vec<OwnedFd>,
}

impl Network {
    /// Makes what the workload asked for.
    ///
    /// Errors: a network that does not exist, or that can not be had. Nothing is left then.
    pub(crate) fn prepare(
        engine: &Engine,
        folder: &Folder,
        (record, image): (&WorkloadRecord, &RunConfig),
        host: &HostMounts,
    ) -> Result<Self> {
        match &record.spec.network.mode {
            NetworkMode::None | NetworkMode::Host => Ok(Self::default()),
            NetworkMode::Path(path) => Ok(Self { namespace: Some(PathBuf::from(path)), ..Self::default() }),
            NetworkMode::Container(other) => Self::shared(engine, other),
            NetworkMode::Bridge if crate::rootless::is_inside() => {
                Self::by_pasta(engine, folder, (record, image))
            }
            NetworkMode::Bridge => {
                let networks = engine.networks();
                host.within(|| {
                    // Of a start that was killed.
                    networks.release(&record.id)?;
                    let attached = wish(record, image, |wish| Ok(networks.prepare(wish)?))?;
                    let taps = match record.spec.isolation {
                        Isolation::Container => Ok(Vec::new()),
                        Isolation::Microvm => taps(&networks, &attached.attachment),
                    };
                    if taps.is_err() {
                        // The first error is what the user has to know; `system check` mends what this leaves.
                        let _ = networks.release(&record.id);
                    }
                    let taps = taps?;
                    let file = attached.attachment.namespace.as_deref();
                    let opened = file.map(|path| fs::open(path, OFlags::RDONLY)).transpose()?;
                    // The file is out of sight in the monitor's own mounts.
                    let name = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
                    Ok(Self {
                        namespace: opened.as_ref().map(|fd| PathBuf::from(name(fd))),
                        attachment: Some(attached.attachment),
                        taps,
                        pasta: None,
                        names_of: None,
                        held: opened.into_iter().chain(attached.reserved).collect(),
                    })
                })
            }
        }
    }

    /// The network of an ordinary user's workload: bridges are the host's.
    fn by_pasta(
        engine: &Engine,
        folder: &Folder,
        (record, image): (&WorkloadRecord, &RunConfig),
    ) -> Result<Self> {
        let networks = engine.networks();
        // Of a start that was killed.
        networks.release(&record.id)?;
        let (attachment, pasta) =
            wish(record, image, |wish| Ok(networks.prepare_by_pasta(wish, &folder.run)?))?;
        Ok(Self {
            namespace: Some(pasta.namespace.clone()),
            attachment: Some(attachment),
            pasta: Some(pasta),
            ..Self::default()
        })
    }

    /// The network of another workload that runs, which may itself share that of a third.
    fn shared(engine: &Engine, other: &str) -> Result<Self> {
        // More than one can type by hand; who joins in a circle runs into it.
        const DEPTH: usize = 32;
        let first = engine.find(other)?;
        if first.spec().isolation == Isolation::Microvm {
            return Err(Error::invalid(format!(
                "workload {} is a microVM: its network has no room for others",
                first.name()
            )));
        }
        let namespace = Some(first.namespace("net")?);
        let mut owner = first;
        for _ in 0..DEPTH {
            let NetworkMode::Container(next) = &owner.spec().network.mode else {
                return Ok(Self { namespace, names_of: Some(owner.folder().clone()), ..Self::default() });
            };
            owner = engine.find(next)?;
        }
        Err(Error::invalid(format!("the network of workload {other} is shared in a circle")))
    }

    /// Its addresses, in the order of its networks.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let places = self.attachment.iter().flat_map(|attachment| &attachment.endpoints);
        let both = |place: &EndpointState| {
            [place.ip.map(|net| net.addr().into()), place.ip6.map(|net| net.addr().into())]
        };
        places.flat_map(both).flatten().collect()
    }

    /// The address by which it reaches the host; `None` where there is none.
    pub(crate) fn gateway(&self, mode: &NetworkMode) -> Option<IpAddr> {
        if *mode == NetworkMode::Host {
            return Some(Ipv4Addr::LOCALHOST.into());
        }
        let places = self.attachment.iter().flat_map(|attachment| &attachment.endpoints);
        let of = |place: &EndpointState| place.gateway.map(IpAddr::from).or(place.gateway6.map(IpAddr::from));
        places.filter_map(of).next()
    }

    /// Gives back what was made.
    pub(crate) fn release(self, engine: &Engine, host: &HostMounts) -> Result<()> {
        drop((self.held, self.taps));
        match self.attachment {
            Some(attachment) if self.pasta.is_some() => {
                drop(self.pasta);
                Ok(engine.networks().release(&attachment.workload)?)
            }
            Some(attachment) => host.within(|| Ok(engine.networks().release(&attachment.workload)?)),
            None => Ok(()),
        }
    }
}

/// Opens what leads into a machine, and puts it on the networks.
fn taps(networks: &Networks, attachment: &NetAttachment) -> Result<Vec<Tap>> {
    let open = |endpoint: &EndpointState| {
        let fd = tap::open(&endpoint.device, false, HEADER_BYTES)?;
        Ok(Tap { endpoint: endpoint.clone(), fd })
    };
    let taps = attachment.endpoints.iter().map(open).collect::<Result<Vec<_>>>()?;
    networks.join_tap(&attachment.workload)?;
    Ok(taps)
}

/// Does something with what a workload wishes for.
fn wish<T>(
    record: &WorkloadRecord,
    image: &RunConfig,
    work: impl FnOnce(&Attach<'_>) -> Result<T>,
) -> Result<T> {
    let networking = &record.spec.network;
    let exposed: Vec<(u16, Protocol)> = match networking.publish_all {
        true => exposed(&record.spec, image)?,
        false => Vec::new(),
    };
    let names = names(record);
    let wall = match record.spec.isolation {
        Isolation::Container => Wall::Container,
        Isolation::Microvm => Wall::Microvm,
    };
    work(&Attach { workload: &record.id, names: &names, networking, exposed: &exposed, wall })
}

/// By what others find it: its name, the beginning of its id, and the host name that it was given.
fn names(record: &WorkloadRecord) -> Vec<String> {
    let short = record.id.get(..12).unwrap_or(&record.id).to_owned();
    let mut names = vec![record.name.clone(), short];
    names.extend(record.spec.hostname.clone().filter(|name| !names.contains(name)));
    names
}

/// The ports that a workload serves, as its image and its user say.
fn exposed(spec: &WorkloadSpec, image: &RunConfig) -> Result<Vec<(u16, Protocol)>> {
    let mut found = Vec::new();
    for text in image.exposed_ports.iter().chain(&spec.network.expose) {
        let ports = parse_exposed(text).map_err(|error| {
            Error::invalid(format!("exposed port {text:?} of image {}: {error}", spec.image))
        })?;
        found.extend(ports);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Refuses at once what no start could give.
pub(crate) fn check(spec: &WorkloadSpec) -> Result<()> {
    let network = &spec.network;
    if network.mode == NetworkMode::Bridge {
        return if crate::rootless::is_inside() { Ok(pasta::check(network)?) } else { Ok(()) };
    }
    let mode = network.mode.name();
    if !network.ports.is_empty() || network.publish_all {
        return Err(Error::invalid(format!("ports can not be published in network mode {mode}"))
            .hint("leave out --publish, or name a network"));
    }
    if !network.endpoints.is_empty() {
        return Err(Error::invalid(format!("network mode {mode} goes with no other network")));
    }
    let shared = matches!(network.mode, NetworkMode::Container(_));
    let named = !network.dns.is_empty() || !network.dns_search.is_empty() || !network.dns_options.is_empty();
    if shared && (named || !network.add_hosts.is_empty()) {
        return Err(Error::invalid("names and resolvers are those of the workload whose network is shared")
            .hint("leave out --add-host and --dns, or give them to that workload"));
    }
    Ok(())
}

impl Workload {
    /// What it has on the network now; `None` where it has no place of its own, or does not run.
    pub fn attachment(&self) -> Result<Option<NetAttachment>> {
        Ok(self.engine().networks().attachment(self.id().as_str())?)
    }
}
