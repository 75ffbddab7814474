//! What each command does.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use moat_initramfs::InitramfsSpec;
use moat_vmm::control::{Server, request};
use moat_vmm::machine::Timeline;
use moat_vmm::machine::stdio::RawTerminal;
use moat_vmm::monitor::Monitor;
use moat_vmm::processor::End;
use moat_vmm::snapshot::{Check, Key, Shelf, read_key};
use moat_vmm::{Context, Error, Result};

use crate::cli::{
    Cli, Command, ControlCommand, InitramfsArgs, LifeArgs, RestoreArgs, RunArgs, ServeArgs, ShelfArgs,
    SnapshotArgs, WalkArgs,
};
use crate::say;

const CODE_RESET: u8 = 121;
const CODE_TRIPLE_FAULT: u8 = 122;

/// Does what was asked for; gives the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(arguments) => run_machine(&arguments),
        Command::Serve(arguments) => serve(&arguments),
        Command::Restore(arguments) => restore(&arguments),
        Command::Initramfs(arguments) => initramfs(arguments),
        Command::Control(command) => control(&command),
    }
}

fn run_machine(arguments: &RunArgs) -> Result<u8> {
    let mut timeline = Timeline::new();
    let mut monitor = monitor(&arguments.shelf, arguments.life.api.as_deref())?;
    monitor.configure(arguments.spec(), &mut timeline)?;
    live(monitor, &arguments.life, timeline)
}

fn restore(arguments: &RestoreArgs) -> Result<u8> {
    let mut timeline = Timeline::new();
    let what = || format!("snapshot {}", arguments.from);
    let folder = moat_vmm::machine::open_folder(&arguments.from).context(what)?;
    let key = key(&arguments.shelf)?;
    let when = if arguments.late_check { Check::Late } else { Check::First };
    let saved = moat_vmm::snapshot::open(&folder, key.as_ref(), when).context(what)?;
    timeline.mark("open the snapshot");
    let mut spec = saved.state.spec().context(what)?;
    spec.kvm.clone_from(&arguments.life.kvm);
    for (number, file) in &arguments.disk {
        let disk = spec.disks.get_mut(*number);
        disk.ok_or_else(|| Error::new(format!("the machine has no disk {number}")))?.file.clone_from(file);
    }
    for (number, tap) in &arguments.net {
        let net = spec.nets.get_mut(*number);
        net.ok_or_else(|| Error::new(format!("the machine has no network card {number}")))?
            .tap
            .clone_from(tap);
    }
    for (number, file) in &arguments.port {
        let port = spec.ports.get_mut(*number);
        port.ok_or_else(|| Error::new(format!("the machine has no port {number}")))?.file.clone_from(file);
    }
    if let Some(socket) = &arguments.vsock {
        let vsock = spec.vsock.as_mut().ok_or_else(|| Error::new("the machine has no vsock"))?;
        vsock.socket.clone_from(socket);
    }
    let mut monitor = monitor(&arguments.shelf, arguments.life.api.as_deref())?;
    monitor.restore(saved, spec, &mut timeline).context(what)?;
    live(monitor, &arguments.life, timeline)
}

fn initramfs(arguments: InitramfsArgs) -> Result<u8> {
    let InitramfsArgs { modules, module, init, file, output } = arguments;
    let bytes = moat_initramfs::build(&InitramfsSpec { modules, further: module, init, files: file })?;
    std::fs::write(&output, bytes).context(|| format!("file {}", output.display()))?;
    Ok(0)
}

fn monitor(shelf: &ShelfArgs, api: Option<&str>) -> Result<Monitor> {
    moat_linux::process::one_arena()?;
    more_descriptors()?;
    let mut monitor = Monitor::new(Box::new(say))?;
    if let Some(folder) = &shelf.snapshots {
        let folder =
            moat_vmm::machine::open_folder(folder).context(|| format!("folder for snapshots {folder}"))?;
        monitor.set_shelf(Shelf::new(folder, key(shelf)?));
    }
    if let Some(api) = api {
        monitor.serve(server(api)?)?;
    }
    Ok(monitor)
}

/// Each connection of vsock is a descriptor, and a guest that opens as many as it may must leave some for the
/// control socket.
fn more_descriptors() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const ENOUGH: u64 = 8192;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .context(|| "the limit of descriptors")
}

fn key(shelf: &ShelfArgs) -> Result<Option<Key>> {
    shelf.key.as_deref().map(read_key).transpose()
}

/// Runs a machine that is there to its end.
fn live(mut monitor: Monitor, life: &LifeArgs, mut timeline: Timeline) -> Result<u8> {
    // A terminal is the guest's from here on, and the caller's again in the end.
    let _terminal = RawTerminal::new()?;
    if !life.paused {
        monitor.resume()?;
        timeline.mark("start");
    }
    if life.timeline {
        print_error(&timeline.to_string());
    }
    let end = monitor.run()?;
    if life.exits {
        print_error(&monitor.machine()?.exits()?.to_string());
    }
    finish(end)
}

fn serve(arguments: &ServeArgs) -> Result<u8> {
    let mut monitor = monitor(&arguments.shelf, Some(&arguments.api))?;
    finish(monitor.run()?)
}

fn server(name: &str) -> Result<Server> {
    match name.strip_prefix("fd:") {
        Some(_) => {
            let socket: OwnedFd = moat_vmm::machine::inherited(name)?;
            Server::inherited(socket)
        }
        None => Server::bind(Path::new(name)),
    }
}

/// The exit code for an end; the sentence for one that nobody wished for.
fn finish(end: End) -> Result<u8> {
    match end {
        End::PowerOff(code) => Ok(code),
        End::Reset => Ok(CODE_RESET),
        End::TripleFault(place) => Err(Error::new(format!(
            "the guest's processor gave up (triple fault): {place}"
        ))
        .hint(
            "the guest has no handler for a fault that it caused: a kernel that is damaged or not for x86-64",
        )
        .with_code(CODE_TRIPLE_FAULT)),
        End::Failed(error) => Err(error),
    }
}

fn control(command: &ControlCommand) -> Result<u8> {
    let mut body = String::new();
    let walk;
    let of = |json: bool, text: &'static str, table: &'static str| if json { text } else { table };
    let (socket, method, target) = match command {
        ControlCommand::Status(socket) => (socket, "GET", "/machine"),
        ControlCommand::Start(socket) => (socket, "POST", "/machine/start"),
        ControlCommand::Pause(socket) => (socket, "POST", "/machine/pause"),
        ControlCommand::Resume(socket) => (socket, "POST", "/machine/resume"),
        ControlCommand::Stop(socket) => (socket, "POST", "/machine/stop"),
        ControlCommand::Snapshot(SnapshotArgs { socket, name }) => {
            body = serde_json::json!({ "name": name }).to_string();
            (socket, "PUT", "/snapshot")
        }
        ControlCommand::Metrics(socket) => (socket, "GET", "/metrics"),
        ControlCommand::Vcpus(vcpus) => {
            (&vcpus.socket, "GET", of(vcpus.json, "/vcpus", "/vcpus?format=text"))
        }
        ControlCommand::Walk(WalkArgs { socket, address, vcpu, json }) => {
            let format = of(*json, "json", "table");
            walk = format!("/walk?address={address}&vcpu={vcpu}&format={format}");
            (socket, "GET", walk.as_str())
        }
        ControlCommand::Exits(exits) => {
            let target = of(exits.json, "/exits", "/exits?format=table");
            if let Some(seconds) = exits.every {
                return every(seconds, &exits.socket.api, target);
            }
            (&exits.socket, "GET", target)
        }
    };
    print(&ask(&socket.api, method, target, &body)?)?;
    Ok(0)
}

/// The answer's body, or the sentence with which the monitor refused.
fn ask(api: &Path, method: &str, target: &str, body: &str) -> Result<String> {
    let answer = request(api, method, target, body)?;
    if (200..300).contains(&answer.status) {
        return Ok(answer.body);
    }
    let message: Option<String> = serde_json::from_str::<serde_json::Value>(&answer.body)
        .ok()
        .and_then(|body| body.get("message")?.as_str().map(str::to_owned));
    Err(Error::new(message.unwrap_or(answer.body)))
}

/// Asks again and again; the end of the monitor is the end of this. On a terminal each answer takes the place of
/// the last.
fn every(seconds: u32, api: &Path, target: &str) -> Result<u8> {
    const CLEAR: &str = "\x1b[H\x1b[2J";
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mut answer = ask(api, "GET", target, "")?;
    loop {
        let clear = if terminal { CLEAR } else { "" };
        print(&format!("{clear}{answer}"))?;
        std::thread::sleep(std::time::Duration::from_secs(seconds.into()));
        answer = match ask(api, "GET", target, "") {
            Ok(answer) => answer,
            Err(_) if !listens(api) => return Ok(0),
            Err(error) => return Err(error),
        };
    }
}

fn listens(api: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(api).is_ok()
}

fn print(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).context(|| "standard output")
}

fn print_error(text: &str) {
    // A closed standard error leaves nowhere to complain.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
