//! A host of its own for each test: a network namespace, with a second one behind a wire as the outside, and a
//! mount namespace, so that nothing of this machine is touched.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use moat_linux::mount;
use moat_linux::process::{self, namespace};
use moat_model::network::{NetAttachment, NetworkSpec, NetworkState};
use moat_model::workload::{EndpointSpec, NetworkingSpec, PortSpec, Protocol};
use moat_net::{Attach, Attached, Networks, Result, Wall};
use tempfile::TempDir;

/// The outside's addresses, and the host's towards it.
pub(crate) const OUTSIDE: &str = "192.0.2.2";
pub(crate) const OUTSIDE6: &str = "2001:db8::2";
pub(crate) const HOST: &str = "192.0.2.1";
pub(crate) const HOST6: &str = "2001:db8::1";

pub(crate) struct Host {
    pub(crate) networks: Networks,
    folder: TempDir,
    outside: OwnedFd,
}

/// A place to run programs in.
#[derive(Clone)]
pub(crate) struct Place(PathBuf);

/// A program that goes on, killed when it is dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
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
        let outside = std::thread::spawn(|| {
            process::unshare(namespace::NETWORK).unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let outside = outside.join().unwrap();
        process::unshare(namespace::NETWORK | namespace::MOUNT).unwrap();
        const RECURSIVE: u64 = 0x4000;
        mount::set_propagation(c"/", RECURSIVE | mount::propagation::SLAVE).unwrap();
        let folder = tempfile::Builder::new().prefix("moat-net-").tempdir().unwrap();
        let networks = Networks::open(&folder.path().join("data"), &folder.path().join("run"));
        let networks = match names {
            true => networks.with_resolver(helper("names::resolver_process")),
            false => networks,
        };
        let host = Self { networks, folder, outside };
        // The search for duplicates takes a second in which an address can not be spoken with.
        let no_search = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up";
        sh(no_search);
        host.outside().sh(no_search);
        let (up, out) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let outside = host.outside().0.display().to_string();
        sh(&format!("ip link add up0 address {up} type veth peer name out0 address {out} netns {outside}"));
        // The two know each other: no test waits for a search of neighbours on this wire.
        sh(&format!(
            "ip addr add {HOST}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up; \
             ip neigh add {OUTSIDE} lladdr {out} dev up0; ip neigh add {OUTSIDE6} lladdr {out} dev up0; \
             ip route add default via {OUTSIDE}"
        ));
        host.outside().sh(&format!(
            "ip addr add {OUTSIDE}/24 dev out0; ip addr add {OUTSIDE6}/64 dev out0 nodad; ip link set out0 up; \
             ip neigh add {HOST} lladdr {up} dev out0; ip neigh add {HOST6} lladdr {up} dev out0"
        ));
        host
    }

    /// The host itself.
    pub(crate) fn own() -> Place {
        Place(PathBuf::from("/proc/thread-self/ns/net"))
    }

    pub(crate) fn outside(&self) -> Place {
        Place(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.outside.as_fd().as_raw_fd())))
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

/// Runs a script on the host, which must succeed.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    Host::own().sh(script)
}

impl Place {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        // The thread's own namespace is the one that its children have anyhow.
        let path = match self.0.starts_with("/proc/thread-self") {
            true => PathBuf::from("/proc/self/ns/net"),
            false => self.0.clone(),
        };
        command.arg(format!("--net={}", path.display())).arg("--").arg(program).args(args);
        command
    }

    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.run("sh", &["-ec", script]);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[track_caller]
    pub(crate) fn fails(&self, script: &str) {
        let output = self.run("sh", &["-ec", script]);
        assert!(!output.status.success(), "{script}: {output:?}");
    }

    /// A server that answers each connection or packet with the address of who asked; it listens when this returns.
    pub(crate) fn serve(&self, kind: &str, address: &str, port: u16) -> Running {
        self.start(SERVER, &[kind, address, &port.to_string()])
    }

    /// A program of Python that says `listening` when it does.
    pub(crate) fn start(&self, program: &str, args: &[&str]) -> Running {
        let mut command = self.command("python3", &[&["-c", program], args].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        use std::io::BufRead;
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        Running(child)
    }

    /// Asks a server: the address that it saw, or nothing where none answers.
    pub(crate) fn ask(&self, kind: &str, address: &str, port: u16) -> Option<String> {
        let output = self.run("python3", &["-c", CLIENT, kind, address, &port.to_string()]);
        let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(text)
    }
}

const SERVER: &str = r#"
import socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
if kind == "udp":
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind((address, port))
    print("listening", flush=True)
    while True:
        data, peer = s.recvfrom(2000)
        s.sendto(peer[0].encode(), peer)
else:
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(64)
    print("listening", flush=True)
    while True:
        c, peer = s.accept()
        c.sendall(peer[0].encode())
        c.close()
"#;

/// A refused or unreachable connection fails at once; what is dropped in silence is given up after a second.
const CLIENT: &str = r#"
import socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
s.settimeout(1)
s.connect((address, port))
if kind == "udp":
    s.send(b"?")
print(s.recv(2000).decode())
"#;
