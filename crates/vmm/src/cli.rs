//! The command line as clap sees it. A machine's flags say what `MachineSpec` says.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use moat_model::vmm::{DiskSpec, FlatMode, LimitSpec, MachineSpec, NetSpec, PortSpec, VsockSpec};

/// A monitor for one microVM.
#[derive(Debug, Parser)]
#[command(name = "moat-vmm", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a machine and run its guest.
    Run(Box<RunArgs>),
    /// Wait for a machine to be configured and started by the control socket.
    Serve(ServeArgs),
    /// Make a machine from a snapshot and let its guest go on.
    Restore(RestoreArgs),
    /// Build an initial file system for a distribution's kernel.
    Initramfs(InitramfsArgs),
    /// Ask a monitor, or tell it what to do, over its control socket.
    #[command(flatten)]
    Control(ControlCommand),
}

#[derive(Debug, Args)]
pub(crate) struct InitramfsArgs {
    /// The kernel's folder of modules, lib/modules/VERSION of its package: what a workload needs of it becomes
    /// /modules/NNN-name.ko, in the order of loading.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) modules: Option<PathBuf>,
    /// A further module, by its name. May be repeated.
    #[arg(long, value_name = "NAME", requires = "modules")]
    pub(crate) module: Vec<String>,
    /// A static program that becomes /init.
    #[arg(long, value_name = "FILE")]
    pub(crate) init: PathBuf,
    /// A further file: SOURCE=TARGET. May be repeated.
    #[arg(long, value_name = "SOURCE=TARGET", value_parser = copied)]
    pub(crate) file: Vec<(PathBuf, String)>,
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// What goes over the control socket.
#[derive(Debug, Subcommand)]
pub(crate) enum ControlCommand {
    /// Where the machine stands, as JSON.
    Status(Socket),
    /// Let the guest begin.
    Start(Socket),
    /// Stop the guest between two instructions.
    Pause(Socket),
    /// Let the guest go on.
    Resume(Socket),
    /// End the machine and its monitor.
    Stop(Socket),
    /// Write a snapshot of the paused machine.
    Snapshot(SnapshotArgs),
    /// Every exit of the guest, with what it cost.
    Exits(ExitsArgs),
    /// Counters, as JSON.
    Metrics(Socket),
    /// The registers of each processor.
    Vcpus(VcpusArgs),
    /// The way of an address of a paused guest: page tables, memory slot, the host's addresses.
    Walk(WalkArgs),
}

/// Which monitor.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The monitor's control socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) api: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ExitsArgs {
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// Print JSON, one report a line, instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print it again every so many seconds, until the machine ends.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) every: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct VcpusArgs {
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// Print JSON instead of text for a person.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// What to call it.
    #[arg(long)]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct WalkArgs {
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// The address that the guest's program uses, such as 0xffffffff81000000.
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub(crate) address: u64,
    /// Which processor's tables.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) vcpu: u8,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where to make the control socket, or `fd:N` for a listening one that is inherited.
    #[arg(long, value_name = "PATH")]
    pub(crate) api: String,
    #[command(flatten)]
    pub(crate) shelf: ShelfArgs,
}

/// Where snapshots go.
#[derive(Debug, Args)]
pub(crate) struct ShelfArgs {
    /// A folder for snapshots, or `fd:N`.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) snapshots: Option<String>,
    /// A file of 32 bytes with which snapshots are authenticated, or `fd:N`.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The snapshot's folder, or `fd:N`.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) from: String,
    /// Check the memory's sums while the guest runs already. For snapshots that nobody else can write to.
    #[arg(long)]
    pub(crate) late_check: bool,
    /// Another file for disk N: N=FILE. May be repeated.
    #[arg(long, value_name = "N=FILE", value_parser = numbered)]
    pub(crate) disk: Vec<(usize, String)>,
    /// Another tap device for network card N: N=TAP. May be repeated.
    #[arg(long, value_name = "N=TAP", value_parser = numbered)]
    pub(crate) net: Vec<(usize, String)>,
    /// Another file for port N of the console, not counting the terminal: N=FILE. May be repeated.
    #[arg(long, value_name = "N=FILE", value_parser = numbered)]
    pub(crate) port: Vec<(usize, String)>,
    /// Another unix socket for the guest's sockets.
    #[arg(long, value_name = "PATH")]
    pub(crate) vsock: Option<String>,
    #[command(flatten)]
    pub(crate) shelf: ShelfArgs,
    #[command(flatten)]
    pub(crate) life: LifeArgs,
}

/// What a machine has beside its specification.
#[derive(Debug, Args)]
pub(crate) struct LifeArgs {
    /// Where to make the control socket, or `fd:N` for a listening one that is inherited.
    #[arg(long, value_name = "PATH")]
    pub(crate) api: Option<String>,
    /// /dev/kvm as an inherited descriptor, `fd:N`, where the path is out of reach.
    #[arg(long, value_name = "FD")]
    pub(crate) kvm: Option<String>,
    /// Make the machine, and wait for the control socket to start it.
    #[arg(long, requires = "api")]
    pub(crate) paused: bool,
    /// In the end, print every exit with what it cost, to standard error.
    #[arg(long)]
    pub(crate) exits: bool,
    /// Print where the time of the start went, to standard error.
    #[arg(long)]
    pub(crate) timeline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The kernel: a vmlinux or a bzImage. Each file here is a path, or `fd:N` for an inherited descriptor.
    #[arg(long, value_name = "FILE", required_unless_present = "flat", conflicts_with = "flat")]
    kernel: Option<String>,
    /// A flat image in place of a kernel: bytes that are code from the first on.
    #[arg(long, value_name = "FILE")]
    flat: Option<String>,
    /// How the flat image starts: `real` at 0x1000, `long` at 1 MiB.
    #[arg(long, value_enum, default_value = "real", requires = "flat")]
    flat_mode: Flat,
    /// The initial file system.
    #[arg(long, value_name = "FILE", conflicts_with = "flat")]
    initrd: Option<String>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "flat")]
    cmdline: String,
    /// The guest's memory, such as 128M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = size)]
    memory: u64,
    /// Take memory from the host's reserved pages of 2 MiB.
    #[arg(long)]
    hugepages: bool,
    /// How many virtual processors, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Show VMX and SVM, so that the guest can run guests.
    #[arg(long)]
    nested: bool,
    /// A disk: FILE[,ro][,plain][,id=ID][,queues=N][,bytes=N][,ops=N], limits per second. May be repeated.
    #[arg(long, value_name = "FILE[,OPTION]", value_parser = disk)]
    disk: Vec<DiskSpec>,
    /// A network card: TAP[,mac=MAC][,queues=N][,bytes=N][,ops=N]. May be repeated.
    #[arg(long, value_name = "TAP[,OPTION]", value_parser = net)]
    net: Vec<NetSpec>,
    /// Sockets between guest and host: CID,PATH.
    #[arg(long, value_name = "CID,PATH", value_parser = vsock)]
    vsock: Option<VsockSpec>,
    /// No serial port.
    #[arg(long)]
    no_serial: bool,
    /// No source of random bytes.
    #[arg(long)]
    no_rng: bool,
    /// A virtio console on standard input and output.
    #[arg(long, requires = "no_serial")]
    console: bool,
    /// A port of the virtio console beside that: NAME=FILE, a terminal, a FIFO or a unix socket that somebody listens
    /// at. May be repeated.
    #[arg(long, value_name = "NAME=FILE", value_parser = port)]
    port: Vec<PortSpec>,
    /// Notifications are exits to the monitor; to see what that costs.
    #[arg(long)]
    no_doorbells: bool,
    /// The kernel's System.map: exits are counted by the guest's function, too.
    #[arg(long, value_name = "FILE")]
    symbols: Option<String>,
    #[command(flatten)]
    pub(crate) shelf: ShelfArgs,
    #[command(flatten)]
    pub(crate) life: LifeArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Flat {
    Real,
    Long,
}

pub(crate) fn parse() -> Result<Cli, clap::Error> {
    Cli::try_parse()
}

impl RunArgs {
    /// The machine that was asked for.
    pub(crate) fn spec(&self) -> MachineSpec {
        let flat = match (&self.flat, self.flat_mode) {
            (None, _) => None,
            (Some(_), Flat::Real) => Some(FlatMode::Real),
            (Some(_), Flat::Long) => Some(FlatMode::Long),
        };
        MachineSpec {
            cpus: self.cpus,
            memory_bytes: self.memory,
            hugepages: self.hugepages,
            nested: self.nested,
            kvm: self.life.kvm.clone(),
            kernel: self.kernel.clone().or_else(|| self.flat.clone()).unwrap_or_default(),
            flat,
            initrd: self.initrd.clone(),
            command_line: self.cmdline.clone(),
            serial: !self.no_serial,
            rng: !self.no_rng,
            disks: self.disk.clone(),
            nets: self.net.clone(),
            vsock: self.vsock.clone(),
            console: self.console,
            ports: self.port.clone(),
            doorbells: !self.no_doorbells,
            symbols: self.symbols.clone(),
        }
    }
}

/// An address, decimal or hexadecimal.
fn address(text: &str) -> Result<u64, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    u64::from_str_radix(digits, radix).map_err(|_| format!("{text:?} is no address, such as 0x1000"))
}

/// A size with an optional suffix K, M or G, in units of 1024.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; a size is a number with K, M or G behind it");
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1).unwrap_or_default(), 10),
        Some(b'M' | b'm') => (text.get(..text.len() - 1).unwrap_or_default(), 20),
        Some(b'G' | b'g') => (text.get(..text.len() - 1).unwrap_or_default(), 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The first part, and the options behind it.
fn options(text: &str) -> (&str, impl Iterator<Item = (&str, Option<&str>)>) {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let pairs = parts.map(|part| match part.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (part, None),
    });
    (first, pairs)
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{key}={value}: {value:?} is no number in its range"))
}

/// What disks and cards share; false when the key is another.
fn common(key: &str, value: Option<&str>, queues: &mut u16, limit: &mut LimitSpec) -> Result<bool, String> {
    match (key, value) {
        ("queues", Some(value)) => *queues = number(key, value)?,
        ("bytes", Some(value)) => limit.bytes_per_second = size(value)?,
        ("ops", Some(value)) => limit.operations_per_second = number(key, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn copied(text: &str) -> Result<(PathBuf, String), String> {
    let (source, target) = text.split_once('=').ok_or("it is SOURCE=TARGET, such as busybox=/bin/sh")?;
    Ok((PathBuf::from(source), target.to_owned()))
}

fn numbered(text: &str) -> Result<(usize, String), String> {
    let (number, file) = text.split_once('=').ok_or("it is N=FILE, such as 0=copy.img")?;
    let number = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    Ok((number, file.to_owned()))
}

fn unknown(key: &str, value: Option<&str>, of: &str) -> String {
    let given = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
    format!("{given:?} is no option of {of}")
}

fn disk(text: &str) -> Result<DiskSpec, String> {
    let (file, pairs) = options(text);
    let mut spec = DiskSpec {
        file: file.to_owned(),
        read_only: false,
        id: String::new(),
        queues: 1,
        plain: false,
        limit: LimitSpec::default(),
    };
    for (key, value) in pairs {
        match (key, value) {
            ("ro", None) => spec.read_only = true,
            ("plain", None) => spec.plain = true,
            ("id", Some(id)) => id.clone_into(&mut spec.id),
            _ if common(key, value, &mut spec.queues, &mut spec.limit)? => {}
            _ => return Err(unknown(key, value, "a disk")),
        }
    }
    Ok(spec)
}

fn net(text: &str) -> Result<NetSpec, String> {
    let (tap, pairs) = options(text);
    let mut spec = NetSpec { tap: tap.to_owned(), mac: None, queue_pairs: 1, limit: LimitSpec::default() };
    for (key, value) in pairs {
        match (key, value) {
            ("mac", Some(mac)) => {
                spec.mac = Some(mac.parse().map_err(|error| format!("mac={mac}: {error}"))?);
            }
            _ if common(key, value, &mut spec.queue_pairs, &mut spec.limit)? => {}
            _ => return Err(unknown(key, value, "a network card")),
        }
    }
    Ok(spec)
}

fn port(text: &str) -> Result<PortSpec, String> {
    let (name, file) = text.split_once('=').ok_or("a port is NAME=FILE, such as agent=/run/agent.sock")?;
    Ok(PortSpec { name: name.to_owned(), file: file.to_owned() })
}

fn vsock(text: &str) -> Result<VsockSpec, String> {
    let (cid, socket) = text.split_once(',').ok_or("sockets are CID,PATH, such as 3,/run/vsock")?;
    Ok(VsockSpec { cid: number("cid", cid)?, socket: socket.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<MachineSpec, String> {
        let all = ["moat-vmm", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Run(arguments) => Ok(arguments.spec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_specification() {
        let spec = run(&[
            "--kernel",
            "k",
            "--memory",
            "2G",
            "--cpus",
            "4",
            "--disk",
            "a.img,ro,id=root,queues=2,bytes=1M",
            "--net",
            "tap0,mac=02:00:00:00:00:01",
            "--vsock",
            "3,/run/v",
        ])
        .unwrap();
        assert_eq!((spec.memory_bytes, spec.cpus), (2 << 30, 4));
        let disk = &spec.disks[0];
        assert_eq!(
            (disk.file.as_str(), disk.read_only, disk.id.as_str(), disk.queues),
            ("a.img", true, "root", 2)
        );
        assert_eq!(disk.limit.bytes_per_second, 1 << 20);
        assert_eq!(spec.nets[0].mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(spec.vsock, Some(VsockSpec { cid: 3, socket: "/run/v".to_owned() }));
        assert_eq!(run(&["--kernel", "k"]).unwrap(), MachineSpec::new("k"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (arguments, sentence) in [
            (vec!["--kernel", "k", "--disk", "a,rw"], "\"rw\" is no option of a disk"),
            (vec!["--kernel", "k", "--net", "t,mac=1"], "mac=1"),
            (vec!["--kernel", "k", "--memory", "1T"], "is no size"),
            (vec!["--kernel", "k", "--vsock", "3"], "CID,PATH"),
            (vec!["--kernel", "k", "--flat", "f"], "cannot be used with"),
            (vec![], "required"),
        ] {
            let error = run(&arguments).unwrap_err();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
