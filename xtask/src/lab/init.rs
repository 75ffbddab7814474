//! The emulated machine, seen from inside: its first process, and its modprobe.
//!
//! No shell and no other program is started before the command: a fork and an exec cost more than
//! a tenth of a second here.

use std::fs::{self, File};
use std::io::{PipeReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move};
use rustix::process::{Resource, Rlimit, WaitOptions, setrlimit, umask, wait};
use serde_json::Value;

use super::{ORDER, modules};

/// What the command's host keeps for itself; a tmpfs.
const OWN: &str = "/run/lab";

/// PID 1: never returns to its caller, for the kernel would panic.
pub(crate) fn run() -> ! {
    if let Err(error) = live() {
        eprintln!("lab: the init failed: {error:#}");
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

fn live() -> Result<()> {
    make("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), c"")?;
    make("proc", "/proc", "proc", MountFlags::empty(), c"")?;
    load_modules()?;
    let mut status = port(3)?;
    say(&mut status, "modules are loaded");
    let order = fs::read_to_string(format!("/{ORDER}")).context("cannot read the order")?;
    let order: Value = serde_json::from_str(&order).context("the order is not JSON")?;
    mount_host()?;
    say(&mut status, "the root is mounted");
    furnish(&order)?;
    say(&mut status, "the host is up");
    let code = command(&order)?;
    say(&mut status, &format!("exit {code}"));
    // The machine is switched off from outside as soon as the status is read.
    loop {
        std::thread::park();
    }
}

fn say(status: &mut File, line: &str) {
    // Without a listener there is nobody to tell.
    let _ = writeln!(status, "{line}");
}

fn make(source: &str, target: &str, kind: &str, flags: MountFlags, data: &std::ffi::CStr) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    mount(source, target, kind, flags, data).with_context(|| format!("cannot mount {kind} on {target}"))
}

/// Those of the archive, in the order of their names.
fn load_modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir("/modules")
        .context("the archive has no modules")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // Some serve processors that are not this one, and say so.
        if let Err(error) = modules::load(&bytes) {
            eprintln!("lab: {} was not loaded: {error}", file.display());
        }
    }
    Ok(())
}

/// Opens one of the ports to the outside; the kernel announces them a moment after the driver.
fn port(number: u32) -> Result<File> {
    // The middle of the name counts the buses, which depends on how QEMU placed the devices.
    let ours = |name: &str| name.starts_with("vport") && name.ends_with(&format!("p{number}"));
    for _ in 0..5000 {
        let names = fs::read_dir("/dev").context("cannot list /dev")?;
        let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        if let Some(name) = names.find(|name| ours(name)) {
            let path = format!("/dev/{name}");
            return File::options()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {path}"));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    bail!("port {number} to the outside did not appear in /dev")
}

/// The machine's root, read-only, and above it an overlay that forgets.
fn mount_host() -> Result<()> {
    make("tmpfs", "/own", "tmpfs", MountFlags::empty(), c"mode=755")?;
    let options = c"trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any";
    make("host", "/own/host", "9p", MountFlags::RDONLY, options)?;
    for folder in ["/own/upper", "/own/work"] {
        fs::create_dir(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let options = c"lowerdir=/own/host,upperdir=/own/upper,workdir=/own/work";
    make("root", "/new", "overlay", MountFlags::empty(), options)
}

/// Turns the bare root into a host.
fn furnish(order: &Value) -> Result<()> {
    file_systems()?;
    device_nodes()?;
    tools(order)?;
    copies()?;
    switch()?;
    settle()
}

/// What every host mounts, and memory wherever programs like to write much.
fn file_systems() -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let strict = plain | MountFlags::NOEXEC;
    make("proc", "/new/proc", "proc", strict, c"")?;
    make("sysfs", "/new/sys", "sysfs", strict, c"")?;
    make("devtmpfs", "/new/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755")?;
    make("devpts", "/new/dev/pts", "devpts", MountFlags::NOSUID, c"gid=5,mode=620,ptmxmode=666")?;
    make("tmpfs", "/new/dev/shm", "tmpfs", plain, c"mode=1777")?;
    make("mqueue", "/new/dev/mqueue", "mqueue", strict, c"")?;
    make("tmpfs", "/new/run", "tmpfs", plain, c"mode=755")?;
    make("tmpfs", "/new/tmp", "tmpfs", MountFlags::empty(), c"mode=1777")?;
    make("tmpfs", "/new/var/tmp", "tmpfs", MountFlags::empty(), c"mode=1777")?;
    // Layers of containers need an upper directory that is not itself an overlay.
    make("tmpfs", "/new/var/lib/containers", "tmpfs", MountFlags::empty(), c"mode=755")?;
    make("tmpfs", "/new/var/lib/containerd", "tmpfs", MountFlags::empty(), c"mode=755")?;
    make("cgroup2", "/new/sys/fs/cgroup", "cgroup2", strict, c"nsdelegate,memory_recursiveprot")?;
    make("bpf", "/new/sys/fs/bpf", "bpf", strict, c"mode=700")
}

/// What the lab itself needs later: the machine's bare root, and a modprobe.
fn tools(order: &Value) -> Result<()> {
    let own = format!("/new{OWN}");
    fs::create_dir_all(format!("{own}/host")).context("cannot make the lab's own folder")?;
    mount("/own/host", format!("{own}/host"), "", MountFlags::BIND, c"")
        .context("cannot bind the machine's root")?;
    fs::copy("/init", format!("{own}/modprobe")).context("cannot copy this program")?;
    fs::copy("/modules.index", format!("{own}/modules.index")).context("cannot copy the index")?;
    let modules = order["modules"].as_str().context("the order names no modules")?;
    fs::write(format!("{own}/modules.folder"), format!("{OWN}/host{modules}"))
        .context("cannot write where the modules are")?;
    Ok(())
}

/// Nodes whose drivers are loaded when they are first opened.
fn device_nodes() -> Result<()> {
    fs::create_dir_all("/new/dev/net").context("cannot make /dev/net")?;
    // The modes are meant as they stand.
    let before = umask(Mode::empty());
    for (name, minor) in
        [("net/tun", 200), ("fuse", 229), ("kvm", 232), ("loop-control", 237), ("vhost-net", 238)]
    {
        let mode = Mode::from_raw_mode(0o666);
        let path = format!("/new/dev/{name}");
        match mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(10, minor)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {path}")),
        }
    }
    umask(before);
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, format!("/new/dev/{link}"))
            .with_context(|| format!("cannot make /dev/{link}"))?;
    }
    Ok(())
}

fn copies() -> Result<()> {
    fs::create_dir("/new/tmp/lab").context("cannot make /tmp/lab")?;
    for entry in fs::read_dir("/copies").context("the archive has no copies")? {
        let from = entry.context("cannot list the copies")?.path();
        let to = Path::new("/new/tmp/lab").join(from.file_name().unwrap_or_default());
        fs::copy(&from, &to).with_context(|| format!("cannot copy to {}", to.display()))?;
        // Both are memory.
        fs::remove_file(&from).with_context(|| format!("cannot remove {}", from.display()))?;
    }
    Ok(())
}

/// A real change of root: user namespaces cannot be made in a mere chroot. PID 1 shares its root
/// with the kernel's threads, so the kernel finds modprobe in the new root as well.
fn switch() -> Result<()> {
    std::env::set_current_dir("/new").context("cannot enter the new root")?;
    mount_move(".", "/").context("cannot move the new root")?;
    std::os::unix::fs::chroot(".").context("cannot change root")?;
    std::env::set_current_dir("/").context("cannot enter the new root")?;
    // As on a host that systemd has set up.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("cannot share the root")
}

fn settle() -> Result<()> {
    let write = |path: &str, text: &str| {
        fs::write(path, text).with_context(|| format!("cannot write {text:?} to {path}"))
    };
    write("/proc/sys/kernel/modprobe", &format!("{OWN}/modprobe"))?;
    write("/proc/sys/kernel/hostname", "lab")?;
    let controllers =
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("cannot read the controllers")?;
    for controller in controllers.split_whitespace() {
        write("/sys/fs/cgroup/cgroup.subtree_control", &format!("+{controller}"))?;
    }
    loopback_up()?;
    // The kernel's default is meant for the first process only.
    let limit = Rlimit { current: Some(1024), maximum: Some(1 << 20) };
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// `ip link set lo up`, as one netlink message.
fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, send, socket};
    // The protocol of routes is the family's first. Length 32, RTM_NEWLINK, request; then the link: index 1, flag and mask "up".
    let words: [u32; 8] = [32, (1 << 16) | 16, 1, 0, 0, 1, 1, 1];
    let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let socket =
        socket(AddressFamily::NETLINK, SocketType::RAW, None).context("cannot open a netlink socket")?;
    send(&socket, &message, SendFlags::empty()).context("cannot bring up the loopback")?;
    Ok(())
}

/// Runs the command, passes on what it writes, and returns its code.
fn command(order: &Value) -> Result<i32> {
    let words = order["command"].as_array().context("the order has no command")?;
    let mut words = words.iter().filter_map(Value::as_str);
    let program = words.next().context("the command is empty")?;
    let (out, out_writer) = std::io::pipe().context("cannot make a pipe")?;
    let (err, err_writer) = std::io::pipe().context("cannot make a pipe")?;
    let (finished, finish) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.args(words).env_clear().env("MOAT_LAB", "1");
    for (name, value) in order["environment"].as_object().into_iter().flatten() {
        command.env(name, value.as_str().unwrap_or_default());
    }
    let folder = order["folder"].as_str().unwrap_or("/");
    // The caller's folder may stand where the lab has memory of its own.
    fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    command.current_dir(folder).process_group(0);
    command.stdin(File::open("/dev/null").context("cannot open /dev/null")?);
    command.stdout(out_writer).stderr(err_writer);
    let (out_port, mut err_port) = (port(1)?, port(2)?);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            say(&mut err_port, &format!("lab: cannot start {program:?}: {error}"));
            return Ok(127);
        }
    };
    // The writing ends must be the command's alone, or their end is never seen.
    drop(command);
    std::thread::scope(|scope| {
        let finished = &finished;
        scope.spawn(move || pump(out, out_port, finished));
        scope.spawn(move || pump(err, err_port, finished));
        let code = reap(child.id());
        drop(finish);
        code
    })
}

/// Copies until the writers are gone, or until the command has ended and the pipe is empty: what
/// it left in the background may hold the pipe for ever.
fn pump(mut from: PipeReader, mut to: File, finished: &PipeReader) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut fds = [PollFd::new(&from, PollFlags::IN), PollFd::new(finished, PollFlags::IN)];
        if poll(&mut fds, None).is_err_and(|error| error != rustix::io::Errno::INTR) {
            return;
        }
        if fds[0].revents().is_empty() {
            if fds[1].revents().is_empty() {
                continue;
            }
            return;
        }
        match from.read(&mut buffer) {
            Ok(size @ 1..) => {
                if to.write_all(&buffer[..size]).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Waits for the command, and buries what else ends meanwhile: that is PID 1's duty.
fn reap(child: u32) -> Result<i32> {
    loop {
        let ended = match wait(WaitOptions::empty()) {
            Ok(ended) => ended,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the command"),
        };
        let Some((pid, status)) = ended else { continue };
        if pid.as_raw_nonzero().get().unsigned_abs() == child {
            let status = ExitStatus::from_raw(status.as_raw());
            return Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1));
        }
    }
}

/// What the kernel calls when it lacks something: `modprobe -q -- NAME`.
pub(crate) fn modprobe(arguments: &[String]) -> Result<()> {
    let name = arguments.last().context("modprobe needs a name")?;
    let read = |file: &str| {
        let path = format!("{OWN}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let index = moat_initramfs::Index::parse(&read("modules.index")?, Path::new(&read("modules.folder")?))?;
    for module in index.closure(&[name]) {
        // A variant for another processor refuses; who asked finds out whether one has come.
        let _ = modules::load(&module.read()?);
    }
    Ok(())
}
