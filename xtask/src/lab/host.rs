//! The emulated machine, seen from outside: starting QEMU, passing on what the command writes.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{Options, kernel::Kernel};

/// How a boot ended.
pub(super) enum End {
    /// The command ran and ended with this code.
    Status(u8),
    /// QEMU ended before that; these are the console's last lines.
    Died(String),
}

/// The scratch disk, which the lab sees as /dev/vda.
const DISK_BYTES: u64 = 64 << 20;

/// The lab's memory where nothing is said.
const MEMORY_MIB: u32 = 2048;

/// Kernel: quiet, because each byte on the serial line is an exit; a panic resets the machine,
/// which ends QEMU; PSI is off by default in Debian; mitigations only cost time here.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1 psi=1 mitigations=off nokaslr \
                           rdinit=/init";

/// A QEMU that does not outlive this value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It is gone already, or it is ended here; there is no third way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots, runs the command, passes its output through.
pub(super) fn boot(options: &Options, kernel: &Kernel, archive: &[u8]) -> Result<End> {
    let initrd = memory("initrd", archive)?;
    let disk = memory("scratch", &[])?;
    ftruncate(&disk, DISK_BYTES).context("cannot size the scratch disk")?;

    let mut qemu = Command::new("setpriv");
    // The kernel ends QEMU when this program ends, however it does.
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    machine(&mut qemu, options.icount, options.memory_mib.unwrap_or(MEMORY_MIB));
    qemu.arg("-kernel").arg(kernel.image());
    qemu.args(["-append", KERNEL_LINE, "-initrd", &inherited(&initrd)?]);
    let drive = format!("if=none,id=scratch,format=raw,file.locking=off,file={}", inherited(&disk)?);
    qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=scratch"]);
    qemu.args([
        "-virtfs",
        "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-device",
        "virtio-serial-pci",
    ]);
    let mut ends = Vec::new();
    let mut port = |name: &str| channel(&mut qemu, &mut ends, name);
    let (console, out, err, mut status) = (port("console")?, port("out")?, port("err")?, port("status")?);
    for (number, name) in ["out", "err", "status"].iter().enumerate() {
        let device = format!("virtserialport,nr={},chardev={name}", number + 1);
        qemu.args(["-device", &device]);
    }
    qemu.args(["-serial", "chardev:console"]);
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut machine = Machine(child.context("cannot start qemu-system-x86_64 by setpriv")?);
    // Only QEMU holds the other ends now, so its end is seen as the end of each stream.
    drop((ends, initrd, disk));

    let verbose = options.verbose;
    let out = std::thread::spawn(move || pass(out, std::io::stdout()));
    let err = std::thread::spawn(move || pass(err, std::io::stderr()));
    let console = std::thread::spawn(move || last_words(console, verbose));
    let code = read_status(&mut status, verbose);
    // All output was taken from the guest before it told its status; no need to wait for it to
    // power off.
    let _ = machine.0.kill();
    machine.0.wait().context("cannot wait for QEMU")?;
    join(out);
    join(err);
    let words = join(console).unwrap_or_default();
    Ok(code.map_or(End::Died(words), End::Status))
}

/// The machine itself: no device that nobody uses, since each costs the firmware time.
fn machine(qemu: &mut Command, icount: bool, memory_mib: u32) {
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]);
    qemu.args(["-cpu", "max,+svm", "-m", &memory_mib.to_string()]);
    if icount {
        qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=1,sleep=off"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-smp", "2"]);
    }
}

/// A file that is only memory.
fn memory(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC)
        .with_context(|| format!("cannot make a memory file for the {name}"))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content).with_context(|| format!("cannot fill the memory file {name}"))?;
    Ok(OwnedFd::from(file))
}

/// Lets the child inherit a file; returns the path by which it opens it.
fn inherited(fd: &OwnedFd) -> Result<String> {
    fcntl_setfd(fd.as_fd(), FdFlags::empty()).context("cannot pass a file to QEMU")?;
    Ok(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A stream to QEMU: one end is returned, the other is inherited as a character device.
fn channel(qemu: &mut Command, ends: &mut Vec<OwnedFd>, name: &str) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let theirs = OwnedFd::from(theirs);
    inherited(&theirs)?;
    qemu.arg("-chardev").arg(format!("socket,id={name},fd={}", theirs.as_raw_fd()));
    ends.push(theirs);
    Ok(ours)
}

/// Copies until the end. Goes on reading when nobody listens, so that the guest does not stall.
fn pass(mut from: UnixStream, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    let mut open = true;
    while let Ok(size @ 1..) = from.read(&mut buffer) {
        open = open && to.write_all(&buffer[..size]).and_then(|()| to.flush()).is_ok();
    }
}

/// Keeps the end of what the kernel says.
fn last_words(mut from: UnixStream, verbose: bool) -> String {
    const KEPT: usize = 4096;
    let (mut buffer, mut kept) = (vec![0; 4096], Vec::new());
    while let Ok(size @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..size]);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        if verbose {
            let _ = std::io::stderr().write_all(&buffer[..size]);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Waits for `exit CODE`; lines before it tell the times of the boot.
fn read_status(from: &mut UnixStream, verbose: bool) -> Option<u8> {
    use std::io::BufRead;
    let start = std::time::Instant::now();
    for line in std::io::BufReader::new(from).lines() {
        let line = line.ok()?;
        if let Some(code) = line.strip_prefix("exit ") {
            return code.parse().ok();
        }
        if verbose {
            eprintln!("lab: {:.2} s: {line}", start.elapsed().as_secs_f64());
        }
    }
    None
}

fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    thread.join().ok()
}
