//! The network of an ordinary user's workload, by pasta(1).
//!
//! A bridge, addresses and the packet filter are the host's, and an ordinary user may change none of them. pasta is
//! one process for each workload: it holds a tap in the workload's network namespace, and speaks to the outside by
//! ordinary sockets of the user, as which it also listens at published ports.
//!
//! ```text
//! namespace, made by a child and bound to a file -> pasta, a child of the monitor -> it writes its number: ready
//! ```
//!
//! It ends with the monitor, however that ends: the kernel kills it then. It is told to leave the host's
//! loopback alone: what listens there alone is out of a workload's reach, as behind a bridge.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat_linux::mount;
use moat_linux::process::{self, Clone3, Forked, namespace};
use moat_linux::{fs, net};
use moat_model::network::{DEFAULT_NETWORK, NetAttachment, PortBinding};
use moat_model::workload::{EndpointSpec, NetworkMode, NetworkingSpec, Protocol};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::attach::{claim, ports};
use crate::error::Context;
use crate::port::{self, Addresses};
use crate::route::Route;
use crate::{Attach, Error, Networks, Result, Wall, namespace as netns};

const PROGRAM: &str = "pasta";
/// What the workload has: an address that is nobody's outside, the way out, and where it asks for names.
const ADDRESS: &str = "10.0.2.100";
const GATEWAY: &str = "10.0.2.2";
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// How long pasta may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pasta that runs; it is killed when this is dropped.
#[derive(Debug)]
pub struct Pasta {
    process: OwnedFd,
    pid: i32,
    /// The file that the network namespace is bound to, in the mount namespace of this process.
    pub namespace: PathBuf,
}

/// Refuses what pasta can not give.
pub fn check(networking: &NetworkingSpec) -> Result<()> {
    let refused = |what: &str| {
        let hint = "the network of an ordinary user is a way to the outside, and published ports; root can have more";
        Err(Error::invalid(what.to_owned()).hint(hint))
    };
    for endpoint in &networking.endpoints {
        if !["", "default", DEFAULT_NETWORK].contains(&endpoint.network.as_str()) {
            return refused(&format!(
                "network {}: an ordinary user has but the default network",
                endpoint.network
            ));
        }
        if *endpoint != (EndpointSpec { network: endpoint.network.clone(), ..EndpointSpec::default() }) {
            return refused("an ordinary user can not choose addresses or names on a network");
        }
    }
    if networking.ports.iter().any(|port| port.protocol == Protocol::Sctp) {
        return refused("an ordinary user can publish no port of SCTP");
    }
    Ok(())
}

impl Networks {
    /// Makes the place of a workload of an ordinary user, whose monitor is this process; `folder` is its own for as
    /// long as it runs.
    ///
    /// Errors: pasta is missing or does not start; a port is taken. Nothing is left then.
    pub fn prepare_by_pasta(&self, wish: &Attach<'_>, folder: &Path) -> Result<(NetAttachment, Pasta)> {
        let what = || format!("network of workload {}", wish.workload.get(..12).unwrap_or(wish.workload));
        check(wish.networking).context(what)?;
        if wish.wall == Wall::Microvm {
            return Err(Error::invalid("a microVM of an ordinary user has no network")
                .hint("run it with `--network none`"));
        }
        let program = find().context(what)?;
        let _lock = claim(&self.store, wish.workload)?;
        let made = self.start_pasta(wish, &program, folder);
        if made.is_err() {
            // The first error is what the user has to know; what can not be undone the next start undoes.
            let _ = self.release_locked(wish.workload);
        }
        made.context(what)
    }

    fn start_pasta(
        &self,
        wish: &Attach<'_>,
        program: &Path,
        folder: &Path,
    ) -> Result<(NetAttachment, Pasta)> {
        let any = Some(Ipv4Addr::UNSPECIFIED.into());
        let addresses = Addresses { default: any, ipv4: true, ipv6: true };
        // The sockets go at once: pasta binds its own.
        let bindings = port::reserve(&ports(wish), &addresses, &std::collections::BTreeSet::new())?.bindings;
        let host_servers = crate::resolv_conf::servers_of_host();
        let forwards = wish.networking.dns.is_empty() && host_servers.iter().any(IpAddr::is_ipv4);
        let attachment = NetAttachment {
            workload: wish.workload.to_owned(),
            names: wish.names.to_vec(),
            mode: NetworkMode::Bridge,
            namespace: None,
            endpoints: Vec::new(),
            ports: bindings,
            resolver: forwards.then_some(RESOLVER.into()),
        };
        self.save(&attachment)?;
        let bound = folder.join("netns");
        bind(&new_namespace()?, &bound)?;
        let ready = folder.join("pasta.pid");
        let log = folder.join("pasta.log");
        match start(program, &arguments(&attachment, &ready, &bound), &ready, &log) {
            Ok((process, pid)) => Ok((attachment, Pasta { process, pid, namespace: bound })),
            Err(error) => {
                let _ = netns::remove(&bound);
                Err(error)
            }
        }
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        // It may have ended; its number is taken until it is waited for.
        let _ = process::signal(self.process.as_fd(), KILL);
        let _ = process::wait(self.pid, true);
        let _ = netns::remove(&self.namespace);
    }
}

const KILL: i32 = rustix::process::Signal::KILL.as_raw();

fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(PROGRAM)).find(|file| file.is_file()).ok_or_else(|| {
        Error::host("there is no program pasta, which is the network of an ordinary user").hint(
            "install it (the package passt of Debian), or run the workload with `--network none` or `--network host`",
        )
    })
}

/// A new network namespace with loopback up. Nobody comes back from one to that of the host, which is not the user's:
/// a child goes there, and hands it over.
fn new_namespace() -> Result<OwnedFd> {
    let (ours, theirs) = net::packet_pair()?;
    match process::fork(Clone3::default())? {
        Forked::Child => {
            let made = || -> Result<OwnedFd> {
                process::unshare(namespace::NETWORK)?;
                Route::open()?.set_up(1, "lo")?;
                netns::own()
            };
            // Who is not there any more needs no answer.
            let _ = match made() {
                Ok(opened) => net::send(theirs.as_fd(), b"made", &[opened.as_fd()]),
                Err(error) => net::send(theirs.as_fd(), error.to_string().as_bytes(), &[]),
            };
            process::exit_now(0)
        }
        Forked::Parent(child, _) => {
            drop(theirs);
            let mut answer = [0; 512];
            let heard = net::receive(ours.as_fd(), &mut answer);
            process::wait(child, true)?;
            let (length, mut fds) = heard?;
            match fds.pop() {
                Some(opened) => Ok(opened),
                None if length == 0 => {
                    Err(Error::host("the process that makes a network namespace was killed"))
                }
                None => {
                    let text = answer.get(..length).unwrap_or_default();
                    Err(Error::host(String::from_utf8_lossy(text)))
                }
            }
        }
    }
}

/// Shows the namespace as a file: pasta may not look into the descriptors of others.
fn bind(opened: &OwnedFd, path: &Path) -> Result<()> {
    let what = || format!("network namespace {}", path.display());
    netns::remove(path)?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).context(what)?;
    let tree = mount::clone_tree(opened.as_fd(), Path::new(""), false).context(what)?;
    mount::attach(tree.as_fd(), file.as_fd()).context(what)?;
    Ok(())
}

fn arguments(attachment: &NetAttachment, ready: &Path, bound: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    for word in [
        PROGRAM,
        "--foreground",
        "--quiet",
        "--config-net",
        "--ns-ifname",
        "eth0",
        "--address",
        ADDRESS,
        "--netmask",
        "24",
        "--gateway",
        GATEWAY,
        // What listens on the host's loopback alone stays there.
        "--no-map-gw",
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
    ] {
        words.push(word.into());
    }
    if let Some(resolver) = attachment.resolver {
        words.extend(["--dns-forward".into(), resolver.to_string().into()]);
    }
    for (flag, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
        let before = words.len();
        for binding in attachment.ports.iter().filter(|binding| binding.protocol == protocol) {
            words.extend([flag.into(), port_words(binding).into()]);
        }
        if words.len() == before {
            words.extend([flag.into(), "none".into()]);
        }
    }
    words.extend(["--pid".into(), ready.into(), "--netns".into(), bound.into()]);
    words
}

fn port_words(binding: &PortBinding) -> String {
    let last = |first: u16| first.saturating_add(binding.count - 1);
    let (host, own) = (binding.host_port, binding.port);
    match binding.count {
        1 => format!("{}/{host}:{own}", binding.host_ip),
        _ => format!("{}/{host}-{}:{own}-{}", binding.host_ip, last(host), last(own)),
    }
}

/// Starts it, and waits until it has written its number: then all is set up.
fn start(program: &Path, words: &[OsString], ready: &Path, log: &Path) -> Result<(OwnedFd, i32)> {
    let _ = std::fs::remove_file(ready);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, ready, FileType::Fifo, mode, 0)
        .map_err(std::io::Error::from)
        .context(|| ready.display().to_string())?;
    let ours = fs::open(ready, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut options = std::fs::OpenOptions::new();
    let said = options.write(true).create(true).truncate(true).mode(0o600).open(log);
    let said = said.context(|| log.display().to_string())?;
    let parent = std::process::id();
    match process::fork(Clone3::default())? {
        Forked::Child => {
            let Err(error) = become_pasta(program, words, parent, &said);
            let _ = std::io::Write::write_all(&mut &said, error.to_string().as_bytes());
            process::exit_now(127)
        }
        Forked::Parent(pid, child) => match wait_until_ready(&ours, &child, log) {
            Ok(()) => Ok((child, pid)),
            Err(error) => {
                let _ = process::signal(child.as_fd(), KILL);
                process::wait(pid, true)?;
                Err(error)
            }
        },
    }
}

fn become_pasta(program: &Path, words: &[OsString], parent: u32, log: &File) -> Result<Infallible> {
    process::set_parent_death_signal(KILL)?;
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if now.cast_unsigned() != parent {
        return Err(Error::host("the monitor has ended"));
    }
    process::reset_signals()?;
    process::duplicate_to(log.as_fd(), 2)?;
    process::close_on_exec_from(3)?;
    let text = |word: &OsString| {
        CString::new(word.clone().into_vec()).map_err(|_| Error::invalid("a path that holds a zero byte"))
    };
    let path = text(&program.as_os_str().to_owned())?;
    let words = words.iter().map(text).collect::<Result<Vec<_>>>()?;
    Err(process::execute(None, &path, &words, &[]).into())
}

fn wait_until_ready(ready: &OwnedFd, child: &OwnedFd, log: &Path) -> Result<()> {
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut polled = [PollFd::new(ready, PollFlags::IN), PollFd::new(child, PollFlags::IN)];
    let count = poll(&mut polled, Some(&patience)).map_err(std::io::Error::from)?;
    if polled.first().is_some_and(|one| one.revents().contains(PollFlags::IN)) {
        return Ok(());
    }
    if count == 0 {
        return Err(Error::host(format!("pasta was not ready after {} seconds", PATIENCE.as_secs())));
    }
    let mut said = String::new();
    File::open(log)
        .and_then(|file| file.take(4096).read_to_string(&mut said))
        .context(|| log.display().to_string())?;
    let said: Vec<&str> = said.lines().filter(|line| !line.contains("syslog")).collect();
    let error = Error::host(format!("pasta ended at once: {}", said.join("; ")));
    Err(match said.iter().any(|line| line.contains("tun socket")) {
        true => error.hint("/dev/net/tun must be open to all users, as udev makes it"),
        false => error,
    })
}
