//! The files of /etc that depend on where a workload runs: hostname, hosts, resolv.conf.
//!
//! They lie in the workload's folder and are mounted over the image's. What they say is pure; a change while the
//! workload runs is written into the file that is mounted, since a new file would not be seen.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use moat_model::workload::{NetworkMode, NetworkingSpec};

use crate::oci::{ReadyMount, Source, same_place};
use crate::{Context, Error, Result};

/// The files by their name in the workload's folder, and where they are mounted.
const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")];

/// How long resolv.conf(5) and hosts(5) of the host may be.
const MAX_BYTES: usize = 1 << 20;

/// What the files say.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The workload's host name.
    pub host_name: &'a str,
    /// Its domain, where it has one.
    pub domain: Option<&'a str>,
    /// What was asked for.
    pub network: &'a NetworkingSpec,
    /// Its addresses on networks.
    pub addresses: &'a [IpAddr],
    /// What `host-gateway` stands for; none where the workload can not reach the host.
    pub gateway: Option<IpAddr>,
    /// The resolver of its networks, which knows the other workloads' names and asks those that the user named.
    pub resolver: Option<IpAddr>,
}

/// Writes the three files into `folder`. `owner` is who owns them outside: the root of the workload's inside.
pub fn write(folder: &Path, names: &Names<'_>, owner: (u32, u32)) -> Result<()> {
    let shared = names.network.mode == NetworkMode::Host;
    let host_file = |path: &str| read_host(Path::new(path));
    let base = if shared { host_file("/etc/hosts")? } else { String::new() };
    let resolv = host_resolv_conf(&host_file)?;
    let texts = [
        ("hostname", format!("{}\n", names.host_name)),
        ("hosts", hosts(names, &base)?),
        ("resolv.conf", resolv_conf(names, &resolv)),
    ];
    for (name, text) in texts {
        put(&folder.join(name), &text, owner)?;
    }
    Ok(())
}

/// Writes into the file that is there, which may be mounted.
fn put(path: &Path, text: &str, owner: (u32, u32)) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path).context(what)?;
    file.write_all(text.as_bytes()).context(what)?;
    // The mask of whoever calls must not make it unreadable.
    file.set_permissions(PermissionsExt::from_mode(0o644)).context(what)?;
    if owner != (0, 0) {
        std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1)).context(what)?;
    }
    Ok(())
}

/// Writes down in a workload's hosts that it has further addresses, or has them no more. What the workload itself wrote
/// into the file stays.
pub(crate) fn change_hosts(
    folder: &Path,
    name: &str,
    domain: Option<&str>,
    addresses: [Option<IpAddr>; 2],
    given: bool,
) -> Result<()> {
    let path = folder.join("hosts");
    let text = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    for address in addresses.into_iter().flatten() {
        let line = own_line(address, name, domain);
        if given {
            if !text.split_inclusive('\n').any(|other| other == line) {
                text.push_str(&line);
            }
        } else {
            text = text.split_inclusive('\n').filter(|other| *other != line).collect();
        }
    }
    let owner = std::fs::metadata(&path).context(|| path.display().to_string())?;
    put(&path, &text, (owner.uid(), owner.gid()))
}

/// The line of hosts(5) for an address of the workload itself.
fn own_line(address: IpAddr, name: &str, domain: Option<&str>) -> String {
    let full = domain.map(|domain| format!("{name}.{domain} ")).unwrap_or_default();
    format!("{address}\t{full}{name}\n")
}

/// The files as mounts, but for those in whose place the user mounts something else. `shared` is the folder of the
/// workload whose network this one shares, and so its names. With `read_only` they can not be written, as nothing of the
/// root file system can.
pub fn mounts(
    folder: &Path,
    shared: Option<&Path>,
    others: &[ReadyMount],
    read_only: bool,
) -> Vec<ReadyMount> {
    let free = |target: &str| !others.iter().any(|mount| same_place(&mount.target, target));
    let folder_of = |name: &str| if name == "hostname" { folder } else { shared.unwrap_or(folder) };
    let mount = |(name, target): &(&str, &str)| ReadyMount {
        target: (*target).to_owned(),
        source: Source::Bind {
            source: folder_of(name).join(name),
            recursive: true,
            propagation: "rprivate".to_owned(),
        },
        read_only,
        idmap: None,
    };
    FILES.iter().filter(|(_, target)| free(target)).map(mount).collect()
}

fn read_host(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.len() <= MAX_BYTES => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(_) => Err(Error::new(format!("{} has more than {MAX_BYTES} bytes", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context(|| path.display().to_string()),
    }
}

/// The host's resolv.conf; where systemd-resolved answers on the host's loopback only, the one that it was told.
fn host_resolv_conf(read: &dyn Fn(&str) -> Result<String>) -> Result<String> {
    let text = read("/etc/resolv.conf")?;
    let stub = |address: &str| address == "127.0.0.53";
    if !nameservers(&text).is_empty() && nameservers(&text).into_iter().all(stub) {
        let told = read("/run/systemd/resolve/resolv.conf")?;
        if !told.is_empty() {
            return Ok(told);
        }
    }
    Ok(text)
}

fn nameservers(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .collect()
}

/// hosts(5): loopback, IPv6's fixed names, what the user added, and the workload itself. With the host's network it is
/// the host's own file, `base`, and what the user added.
pub fn hosts(names: &Names<'_>, base: &str) -> Result<String> {
    let mut text = if base.is_empty() {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned()
    } else {
        format!("{}\n", base.trim_end())
    };
    for entry in &names.network.add_hosts {
        let (name, address) = extra_host(entry, names)?;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{address}\t{name}");
    }
    if base.is_empty() {
        text.extend(names.addresses.iter().map(|address| own_line(*address, names.host_name, names.domain)));
    }
    Ok(text)
}

/// Parses `NAME:ADDRESS` or `NAME=ADDRESS`.
fn extra_host<'a>(entry: &'a str, names: &Names<'_>) -> Result<(&'a str, IpAddr)> {
    let bad = || {
        Error::invalid(format!("--add-host {entry:?} is not of the form NAME:ADDRESS"))
            .hint("as in db:10.0.0.7 or host.internal:host-gateway")
    };
    let (name, address) = entry.split_once([':', '=']).ok_or_else(bad)?;
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(bad());
    }
    if address == "host-gateway" {
        let gateway = names.gateway.ok_or_else(|| {
            Error::invalid(format!("--add-host {entry}: the workload's network does not lead to the host"))
        })?;
        return Ok((name, gateway));
    }
    let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    plain.parse().map(|address| (name, address)).map_err(|_| bad())
}

/// resolv.conf(5): the resolver of the workload's networks, else what the user said, else the host's without servers on the
/// host's loopback, which the workload can not reach (unless it shares the host's network).
pub fn resolv_conf(names: &Names<'_>, host: &str) -> String {
    let network = names.network;
    let shared = network.mode == NetworkMode::Host;
    let mut servers: Vec<String> = match names.resolver {
        Some(own) => vec![own.to_string()],
        None => network.dns.iter().map(IpAddr::to_string).collect(),
    };
    if servers.is_empty() {
        let reachable = |address: &&str| {
            let plain = address.split('%').next().and_then(|plain| plain.parse::<IpAddr>().ok());
            shared || plain.is_some_and(|address| !address.is_loopback())
        };
        servers = nameservers(host).into_iter().filter(reachable).map(str::to_owned).collect();
    }
    let of_host = |keyword: &str| {
        let words = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some(keyword)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        };
        // The last line of a kind counts.
        host.lines().filter_map(words).next_back().unwrap_or_default()
    };
    // `.` means none at all, as with Docker.
    let search = if network.dns_search.is_empty() { of_host("search") } else { network.dns_search.clone() };
    let mut options =
        if network.dns_options.is_empty() { of_host("options") } else { network.dns_options.clone() };
    if names.resolver.is_some() && !options.iter().any(|option| option.starts_with("ndots:")) {
        // Names of one word are what networks are for.
        options.push("ndots:0".to_owned());
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<'a>(network: &'a NetworkingSpec, addresses: &'a [IpAddr]) -> Names<'a> {
        Names {
            host_name: "web",
            domain: None,
            network,
            addresses,
            gateway: "172.17.0.1".parse().ok(),
            resolver: None,
        }
    }

    const HOST: &str = "# a comment\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver ::1\nsearch a b\n\
        search example.org\noptions ndots:2\n";

    #[test]
    fn hosts_as_docker_writes_it() {
        let network = NetworkingSpec {
            add_hosts: vec![
                "db:10.0.0.7".to_owned(),
                "up=host-gateway".to_owned(),
                "six:[fd00::1]".to_owned(),
            ],
            ..NetworkingSpec::default()
        };
        let addresses = ["172.17.0.2".parse().unwrap()];
        let text = hosts(&Names { domain: Some("example.org"), ..names(&network, &addresses) }, "").unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"));
        assert!(
            text.ends_with("10.0.0.7\tdb\n172.17.0.1\tup\nfd00::1\tsix\n172.17.0.2\tweb.example.org web\n")
        );
        let own = hosts(&names(&network, &addresses), "127.0.0.1 localhost\n\n").unwrap();
        assert_eq!(own, "127.0.0.1 localhost\n10.0.0.7\tdb\n172.17.0.1\tup\nfd00::1\tsix\n");
    }

    #[test]
    fn a_name_can_not_bring_lines_of_its_own() {
        for bad in ["db", ":1.2.3.4", "a b:1.2.3.4", "a\n6.6.6.6 b:1.2.3.4", "a:1.2.3", "#a:1.2.3.4", "a:"] {
            let network = NetworkingSpec { add_hosts: vec![bad.to_owned()], ..NetworkingSpec::default() };
            assert!(hosts(&names(&network, &[]), "").is_err(), "{bad:?}");
        }
        let network =
            NetworkingSpec { add_hosts: vec!["a:host-gateway".to_owned()], ..NetworkingSpec::default() };
        let alone = Names { gateway: None, ..names(&network, &[]) };
        assert!(hosts(&alone, "").unwrap_err().to_string().contains("does not lead to the host"));
    }

    #[test]
    fn resolvers_that_the_workload_can_reach() {
        let mut network = NetworkingSpec::default();
        assert_eq!(
            resolv_conf(&names(&network, &[]), HOST),
            "nameserver 10.0.0.1\nsearch example.org\noptions ndots:2\n"
        );
        let with = Names { resolver: "10.89.0.1".parse().ok(), ..names(&network, &[]) };
        let text = "nameserver 10.89.0.1\nsearch example.org\noptions ndots:2\n";
        assert_eq!(resolv_conf(&with, HOST), text);
        let text = "nameserver 10.89.0.1\nsearch example.org\noptions ndots:0\n";
        assert_eq!(resolv_conf(&with, "search example.org\n"), text);
        network.mode = NetworkMode::Host;
        assert!(
            resolv_conf(&names(&network, &[]), HOST)
                .starts_with("nameserver 127.0.0.1\nnameserver 10.0.0.1\n")
        );
        network.dns = vec!["9.9.9.9".parse().unwrap()];
        network.dns_search = vec![".".to_owned()];
        network.dns_options = vec!["edns0".to_owned()];
        assert_eq!(resolv_conf(&names(&network, &[]), HOST), "nameserver 9.9.9.9\noptions edns0\n");
    }

    #[test]
    fn behind_a_stub_is_what_it_was_told() {
        let read = |path: &str| {
            Ok(match path {
                "/etc/resolv.conf" => "nameserver 127.0.0.53\noptions edns0\n".to_owned(),
                _ => "nameserver 192.0.2.1\n".to_owned(),
            })
        };
        assert_eq!(host_resolv_conf(&read).unwrap(), "nameserver 192.0.2.1\n");
        let plain = |_: &str| Ok("nameserver 10.0.0.1\n".to_owned());
        assert_eq!(host_resolv_conf(&plain).unwrap(), "nameserver 10.0.0.1\n");
    }

    #[test]
    fn written_in_place_and_mounted_unless_replaced() {
        let folder = std::env::temp_dir().join(format!("moat-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let network = NetworkingSpec::default();
        write(&folder, &names(&network, &[]), (0, 0)).unwrap();
        let before = std::fs::metadata(folder.join("hosts")).unwrap();
        write(&folder, &Names { host_name: "other", ..names(&network, &[]) }, (3, 4)).unwrap();
        let after = std::fs::metadata(folder.join("hosts")).unwrap();
        assert_eq!(before.ino(), after.ino());
        assert_eq!((after.uid(), after.gid(), after.mode() & 0o7777), (3, 4, 0o644));
        assert_eq!(std::fs::read_to_string(folder.join("hostname")).unwrap(), "other\n");
        let all = mounts(&folder, None, &[], false);
        assert_eq!(all.len(), 3);
        let own = ReadyMount { target: "/etc//hosts".to_owned(), ..all[0].clone() };
        let left = mounts(&folder, None, &[own], true);
        assert!(left.len() == 2 && left.iter().all(|mount| mount.target != "/etc/hosts"));
        assert!(left.iter().all(|mount| mount.read_only) && !all.iter().any(|mount| mount.read_only));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
