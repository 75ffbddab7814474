//! `--publish` and `--expose`.

use std::net::IpAddr;

use moat_model::workload::{PortSpec, Protocol, parse_exposed, parse_port_range as range};

/// `[IP:][HOST[-END]:]PORT[-END][/PROTOCOL]`, or `target=80,published=8080,protocol=tcp`.
pub(crate) fn publish(text: &str) -> Result<PortSpec, String> {
    if text.contains('=') {
        return publish_long(text);
    }
    let (rest, protocol) = match text.split_once('/') {
        Some((rest, name)) => (rest, Protocol::parse(name)?),
        None => (text, Protocol::Tcp),
    };
    let (front, port) = rest.rsplit_once(':').map_or((None, rest), |(front, port)| (Some(front), port));
    if port.is_empty() {
        return Err(format!("{text:?} names no port of the workload"));
    }
    let ports = range(port)?;
    let (address, host) = match front {
        None => (None, None),
        Some(front) => match front.rsplit_once(':') {
            Some((address, host)) => (host_address(address)?, Some(host)),
            None => (None, Some(front)),
        },
    };
    let host_ports = host_range(host.unwrap_or_default(), ports, text)?;
    Ok(PortSpec { host_ip: address, host_ports, ports, protocol })
}

fn host_address(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or_default(),
        None => text,
    };
    inner.parse().map(Some).map_err(|_| format!("{text:?} is no address of this host"))
}

fn host_range(host: &str, ports: (u16, u16), text: &str) -> Result<Option<(u16, u16)>, String> {
    // Port 0 asks the kernel for a free one, as no port does.
    if host.is_empty() || host == "0" {
        return Ok(None);
    }
    let found = range(host)?;
    let (wide, narrow) = (found.1 - found.0, ports.1 - ports.0);
    if wide != narrow && narrow != 0 {
        return Err(format!("the two ranges of {text:?} have different lengths"));
    }
    Ok(Some(found))
}

fn publish_long(text: &str) -> Result<PortSpec, String> {
    let (mut target, mut published, mut spoken) = (None, "", Protocol::Tcp);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("target", value)) => target = Some(range(value)?),
            Some(("published", value)) => published = value,
            Some(("protocol", value)) => spoken = Protocol::parse(value)?,
            Some((key, _)) => return Err(format!("{key:?} is not one of target, published and protocol")),
            None => return Err(format!("{field:?} should be KEY=VALUE")),
        }
    }
    let ports = target.ok_or_else(|| format!("{text:?} has no target"))?;
    let host_ports = host_range(published, ports, text)?;
    Ok(PortSpec { host_ip: None, host_ports, ports, protocol: spoken })
}

/// `PORT[-END][/PROTOCOL]`, as one line `PORT/PROTOCOL` for each port.
pub(crate) fn expose(text: &str) -> Result<Vec<String>, String> {
    let line = |(port, protocol): (u16, Protocol)| format!("{port}/{}", protocol.name());
    Ok(parse_exposed(text)?.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use moat_model::workload::{PortSpec, Protocol};

    use super::{expose, publish};

    type Given = (&'static str, Option<&'static str>, Option<(u16, u16)>, (u16, u16), Protocol);

    #[test]
    fn what_docker_accepts() {
        let cases: [Given; 16] = [
            ("80", None, None, (80, 80), Protocol::Tcp),
            ("8080:80", None, Some((8080, 8080)), (80, 80), Protocol::Tcp),
            (":80", None, None, (80, 80), Protocol::Tcp),
            ("0:80", None, None, (80, 80), Protocol::Tcp),
            ("53:53/udp", None, Some((53, 53)), (53, 53), Protocol::Udp),
            ("53:53/UDP", None, Some((53, 53)), (53, 53), Protocol::Udp),
            ("1-3:11-13/sctp", None, Some((1, 3)), (11, 13), Protocol::Sctp),
            ("8000-8010:80", None, Some((8000, 8010)), (80, 80), Protocol::Tcp),
            ("127.0.0.1:8080:80", Some("127.0.0.1"), Some((8080, 8080)), (80, 80), Protocol::Tcp),
            ("127.0.0.1::80", Some("127.0.0.1"), None, (80, 80), Protocol::Tcp),
            ("[::1]:8080:80", Some("::1"), Some((8080, 8080)), (80, 80), Protocol::Tcp),
            ("::1:8080:80", Some("::1"), Some((8080, 8080)), (80, 80), Protocol::Tcp),
            ("[2001:db8::1]::80", Some("2001:db8::1"), None, (80, 80), Protocol::Tcp),
            ("11-13", None, None, (11, 13), Protocol::Tcp),
            ("target=80,published=8080", None, Some((8080, 8080)), (80, 80), Protocol::Tcp),
            ("published=53,target=53,protocol=udp", None, Some((53, 53)), (53, 53), Protocol::Udp),
        ];
        for (text, ip, host_ports, ports, protocol) in cases {
            let host_ip = ip.map(|ip| ip.parse().unwrap());
            assert_eq!(publish(text), Ok(PortSpec { host_ip, host_ports, ports, protocol }), "{text}");
        }
    }

    #[test]
    fn what_docker_refuses() {
        for text in [
            "",
            ":",
            "8080:",
            "80/",
            "80/icmp",
            "65536",
            "0",
            "-1",
            "80-70",
            "1-2:1-3",
            "1-3:1-2",
            "host:80:80",
            "1.2.3.4.5:80:80",
            "[::1:80:80",
            "+80",
            "8080:80:90:100",
            "target=80,mode=host",
            "published=80",
            "target=80,x",
        ] {
            assert!(publish(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn exposed_ports() {
        assert_eq!(expose("80"), Ok(vec!["80/tcp".to_owned()]));
        assert_eq!(expose("80-82/udp").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        for text in ["", "80:80", "x", "9-1", "1/x"] {
            assert!(expose(text).is_err(), "{text:?}");
        }
    }
}
