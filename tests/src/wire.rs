//! A host of its own for a test: a network namespace, with a second one behind a wire as the outside, and a mount
//! namespace, so that nothing of this machine is touched.

use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use moat_linux::mount;
use moat_linux::process::{self, namespace};

/// The outside's address.
pub const OUTSIDE: &str = "192.0.2.2";
/// The outside's address.
pub const OUTSIDE6: &str = "2001:db8::2";
/// The host's address towards the outside.
pub const HOST: &str = "192.0.2.1";
/// The host's address towards the outside.
pub const HOST6: &str = "2001:db8::1";

/// The namespaces of a thread that has become a host, and the outside.
#[derive(Debug)]
pub struct Wire {
    outside: OwnedFd,
}

/// A place to run programs in.
#[derive(Clone, Debug)]
pub struct Place(pub PathBuf);

/// A program that goes on, killed when it is dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs a script on the host, which must succeed.
#[track_caller]
pub fn sh(script: &str) -> String {
    Place::host().sh(script)
}

/// The host of this thread has no namespace, device, address, place or rule of any workload; `run` is the folder of what
/// networks keep while the host runs.
#[track_caller]
pub fn nothing_left(run: &std::path::Path) {
    // The kernel removes devices in its own time.
    while sh("ip -o link").contains("moatv") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let files = sh(&format!(
        "cd {}; find attachments netns networks/*/leases networks/*/endpoints -mindepth 1 ! -name .bound",
        run.display()
    ));
    assert_eq!(files, "");
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert_eq!(mounts.lines().filter(|line| line.contains(" nsfs ")).collect::<Vec<_>>(), Vec::<&str>::new());
    let ruleset = sh("nft list ruleset");
    for set in ["allow4", "allow6", "ports4", "ranges4", "ports6", "ranges6"] {
        let text = ruleset.split(&format!("{set} {{")).nth(1).unwrap_or_default();
        let text = text.split('}').next().unwrap_or_default();
        assert!(!text.contains("elements"), "{set}: {text}");
    }
}

impl Wire {
    /// Makes this thread a host of its own, with an outside.
    pub fn lay() -> Self {
        let outside = std::thread::spawn(|| {
            process::unshare(namespace::NETWORK).unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let outside = outside.join().unwrap();
        process::unshare(namespace::NETWORK | namespace::MOUNT).unwrap();
        const RECURSIVE: u64 = 0x4000;
        mount::set_propagation(c"/", RECURSIVE | mount::propagation::SLAVE).unwrap();
        let wire = Self { outside };
        // The search for duplicates takes a second in which an address can not be spoken with.
        let no_search = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up";
        sh(no_search);
        wire.outside().sh(no_search);
        let (up, out) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let outside = wire.outside().0.display().to_string();
        sh(&format!("ip link add up0 address {up} type veth peer name out0 address {out} netns {outside}"));
        // The two know each other: no test waits for a search of neighbours on this wire.
        sh(&format!(
            "ip addr add {HOST}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up; \
             ip neigh add {OUTSIDE} lladdr {out} dev up0; ip neigh add {OUTSIDE6} lladdr {out} dev up0; \
             ip route add default via {OUTSIDE}"
        ));
        wire.outside().sh(&format!(
            "ip addr add {OUTSIDE}/24 dev out0; ip addr add {OUTSIDE6}/64 dev out0 nodad; ip link set out0 up; \
             ip neigh add {HOST} lladdr {up} dev out0; ip neigh add {HOST6} lladdr {up} dev out0"
        ));
        wire
    }

    /// The outside.
    pub fn outside(&self) -> Place {
        Place(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.outside.as_fd().as_raw_fd())))
    }
}

impl Place {
    /// The host itself.
    pub fn host() -> Self {
        Self(PathBuf::from("/proc/thread-self/ns/net"))
    }

    /// Where a process is.
    pub fn of_process(pid: u64) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

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

    /// Runs a program to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a script, which must succeed; gives what it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.run("sh", &["-ec", script]);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a script, which must fail.
    #[track_caller]
    pub fn fails(&self, script: &str) {
        let output = self.run("sh", &["-ec", script]);
        assert!(!output.status.success(), "{script}: {output:?}");
    }

    /// A server of `tcp`, `udp` or `sctp` that answers each connection or packet with the address of who asked; it listens when this returns.
    pub fn serve(&self, kind: &str, address: &str, port: u16) -> Running {
        self.start(SERVER, &[kind, address, &port.to_string()])
    }

    /// A program of Python that says `listening` when it does.
    pub fn start(&self, program: &str, args: &[&str]) -> Running {
        let mut command = self.command("python3", &[&["-c", program], args].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        Running(child)
    }

    /// Asks a server: the address that it saw, or nothing where none answers.
    pub fn ask(&self, kind: &str, address: &str, port: u16) -> Option<String> {
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
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP if kind == "sctp" else 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(64)
    print("listening", flush=True)
    while True:
        c, peer = s.accept()
        c.recv(1)
        c.sendall(peer[0].encode())
        c.close()
"#;

/// A refused or unreachable connection fails at once; what is dropped in silence is given up after a second.
const CLIENT: &str = r#"
import socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
type, number = (socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM), (socket.IPPROTO_SCTP if kind == "sctp" else 0)
s = socket.socket(family, type, number)
s.settimeout(1)
s.connect((address, port))
s.send(b"?")
print(s.recv(2000).decode())
"#;
