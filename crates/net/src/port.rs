//! Published ports: from what was wished for to ports of the host that are free.
//!
//! Whether a port is free is told twice: by binding it, which keeps off other programs of the host at this
//! moment, and by the packet filter, whose map takes no element that overlaps another. The sockets go to
//! whoever supervises the workload: as long as one is open, no program of the host can take the port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use moat_linux::{Errno, net};
use moat_model::network::PortBinding;
use moat_model::workload::{PortSpec, Protocol};

use crate::{Error, Result, firewall};

/// Ports that have been bound for a workload.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    pub(crate) bindings: Vec<PortBinding>,
    pub(crate) sockets: Vec<OwnedFd>,
}

/// The addresses of the host that a wish stands for.
pub(crate) struct Addresses {
    /// Where ports are published when the wish names no address.
    pub(crate) default: Option<IpAddr>,
    /// Whether the workload can be reached by IPv4 and by IPv6.
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

impl Addresses {
    fn of(&self, spec: &PortSpec) -> Result<Vec<IpAddr>> {
        let wanted = spec.host_ip.or(self.default);
        let all = match wanted {
            Some(one) => vec![one],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let reached: Vec<IpAddr> =
            all.into_iter().filter(|ip| if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }).collect();
        if reached.is_empty() {
            let port = format!("{}/{}", spec.ports.0, spec.protocol.name());
            let what = match wanted {
                Some(ip) => format!(
                    "port {port} can not be published at {ip}: the workload has no network with {} that leads outside",
                    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
                ),
                None => format!(
                    "port {port} can not be published: the workload has no network that leads outside"
                ),
            };
            return Err(Error::invalid(what));
        }
        Ok(reached)
    }
}

/// Finds free ports of the host for all wishes; where there is a choice, none of `tried`.
///
/// Errors: a port is taken by a program of the host; the ranges do not fit each other.
pub(crate) fn reserve(specs: &[PortSpec], addresses: &Addresses, tried: &BTreeSet<u16>) -> Result<Reserved> {
    let mut reserved = Reserved::default();
    for spec in specs {
        let ips = addresses.of(spec)?;
        let count = length(spec.ports, "of the workload")?;
        match spec.host_ports {
            Some(host) if length(host, "of the host")? == count => {
                reserved.fixed(spec, &ips, host.0, count)?;
            }
            Some(host) if count == 1 => reserved.any_of(spec, &ips, host, tried)?,
            Some(host) => {
                return Err(Error::invalid(format!(
                    "ports {}-{} of the host and {}-{} of the workload are not as many",
                    host.0, host.1, spec.ports.0, spec.ports.1
                )));
            }
            None => {
                for port in spec.ports.0..=spec.ports.1 {
                    let one = PortSpec { ports: (port, port), ..spec.clone() };
                    reserved.free(&one, &ips, tried)?;
                }
            }
        }
    }
    Ok(reserved)
}

fn length((first, last): (u16, u16), whose: &str) -> Result<u16> {
    match last.checked_sub(first) {
        Some(more) if first > 0 => Ok(more.saturating_add(1)),
        _ => Err(Error::invalid(format!("{first}-{last} is no range of ports {whose}"))),
    }
}

impl Reserved {
    fn fixed(&mut self, spec: &PortSpec, ips: &[IpAddr], host: u16, count: u16) -> Result<()> {
        for &ip in ips {
            for port in host..=host.saturating_add(count - 1) {
                self.sockets.extend(bind(ip, port, spec.protocol)?);
            }
            self.bindings.push(PortBinding {
                host_ip: ip,
                host_port: host,
                port: spec.ports.0,
                count,
                protocol: spec.protocol,
            });
        }
        Ok(())
    }

    /// Any port of the range that is free at all addresses.
    fn any_of(
        &mut self,
        spec: &PortSpec,
        ips: &[IpAddr],
        (first, last): (u16, u16),
        tried: &BTreeSet<u16>,
    ) -> Result<()> {
        for port in (first..=last).filter(|port| !tried.contains(port)) {
            let (sockets, bindings) = (self.sockets.len(), self.bindings.len());
            match self.fixed(spec, ips, port, 1) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == crate::ErrorKind::Conflict => {
                    self.sockets.truncate(sockets);
                    self.bindings.truncate(bindings);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::conflict(format!("none of the ports {first}-{last} of the host is free")))
    }

    /// A port that the kernel chooses, the same at all addresses.
    fn free(&mut self, spec: &PortSpec, ips: &[IpAddr], tried: &BTreeSet<u16>) -> Result<()> {
        let (first, last) = ephemeral();
        let size = u32::from(last - first) + 1;
        let start = crate::networks::random()?;
        let start = start.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        for step in 0..size {
            let port = u32::from(first) + (start.wrapping_add(step) % size);
            let port = u16::try_from(port).unwrap_or(first);
            match self.any_of(spec, ips, (port, port), tried) {
                Err(error) if error.kind() == crate::ErrorKind::Conflict => {}
                other => return other,
            }
        }
        Err(Error::conflict(format!("none of the ports {first}-{last} of the host is free")))
    }
}

/// The range from which the host gives ports.
fn ephemeral() -> (u16, u16) {
    let text = crate::namespace::read_sysctl("net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last && first > 0 => (first, last),
        _ => (32768, 60999),
    }
}

/// Binds a port; `None` for a protocol that the host has no sockets of.
fn bind(ip: IpAddr, port: u16, protocol: Protocol) -> Result<Option<OwnedFd>> {
    let number = firewall::protocol_number(protocol);
    match net::bind(SocketAddr::new(ip, port), number) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.errno() == Errno::PROTONOSUPPORT => Ok(None),
        Err(error) if error.errno() == Errno::ADDRINUSE => {
            let name = protocol.name();
            Err(Error::conflict(format!("port {}/{name} of the host is in use", SocketAddr::new(ip, port))))
        }
        Err(error) if error.errno() == Errno::ADDRNOTAVAIL => {
            Err(Error::invalid(format!("{ip} is no address of the host")))
        }
        Err(error) => Err(error.into()),
    }
}
