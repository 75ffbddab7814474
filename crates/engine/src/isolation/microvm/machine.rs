//! What a machine is made of: kernel, memory, processors, disks.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use moat_model::agent::{DiskSpec, RootSpec};
use moat_model::network::Mac;
use rustix::fs::OFlags;

use super::jail::SOCKETS;
use crate::guest::SOCKET;
use crate::launch::Launch;
use crate::network::Tap;
use crate::{Context, Error, Result};

/// The guest's memory where the workload has no limit.
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// What the guest's kernel and agent take beside the workload.
const GUEST_BYTES: u64 = 64 << 20;
/// With less no kernel boots.
const LEAST_MEMORY_BYTES: u64 = 128 << 20;
/// What a disk holds where no quota was asked for. It takes what is written to it.
const DEFAULT_DISK_BYTES: u64 = 10 << 30;
/// As many as a monitor makes.
const MAX_PROCESSORS: u64 = 32;
/// The guest's own address on vsock. Each machine has its own sockets, so they may all have the same.
const CID: u32 = 3;
/// Quiet, for every letter on the serial port is an exit; a panic ends the machine; and no network card but those that
/// it is given.
const COMMAND_LINE: &str = "console=ttyS0 rdinit=/init panic=-1 reboot=t quiet loglevel=4 \
    dummy.numdummies=0";

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MachinePlan {
    pub(super) memory_bytes: u64,
    pub(super) processors: u64,
}

impl MachinePlan {
    /// Room for what the workload may use, and the guest's own.
    pub(super) fn new(memory_bytes: Option<u64>, nano_cpus: Option<u64>) -> Self {
        const STEP: u64 = 2 << 20;
        let wanted = memory_bytes.map_or(DEFAULT_MEMORY_BYTES, |limit| limit.saturating_add(GUEST_BYTES));
        Self {
            memory_bytes: wanted.max(LEAST_MEMORY_BYTES).div_ceil(STEP).saturating_mul(STEP),
            processors: nano_cpus.unwrap_or(0).div_ceil(1_000_000_000).clamp(1, MAX_PROCESSORS),
        }
    }
}

/// The files of a machine. The numbers of their descriptors are the same in the monitor.
#[derive(Debug)]
pub(super) struct Files {
    kvm: OwnedFd,
    kernel: OwnedFd,
    initramfs: OwnedFd,
    /// Topmost first.
    layers: Vec<OwnedFd>,
    writable: Option<OwnedFd>,
    /// With the hardware address of each.
    taps: Vec<(OwnedFd, Mac)>,
}

impl Files {
    /// Opens all of them; what is not there yet is made.
    pub(super) fn open(launch: &Launch, taps: &[Tap]) -> Result<Self> {
        let kernels = launch.engine.kernels();
        let boot = kernels.boot_files(&kernels.choose(None)?)?;
        let images = launch.engine.images();
        let layer = |layer| inheritable(images.erofs(layer)?);
        let kvm = moat_linux::fs::open(Path::new("/dev/kvm"), OFlags::RDWR)?;
        Ok(Self {
            kvm: inheritable(File::from(kvm))?,
            kernel: inheritable(boot.kernel)?,
            initramfs: inheritable(boot.initramfs)?,
            layers: launch.image_layers.iter().map(layer).collect::<Result<_>>()?,
            writable: if launch.record.spec.auto_remove {
                None
            } else {
                Some(inheritable(writable(launch)?)?)
            },
            taps: taps.iter().map(card).collect::<Result<_>>()?,
        })
    }

    /// How many descriptors from 3 on the monitor inherits. Others among them close when it is executed.
    pub(super) fn preserved(&self) -> u32 {
        let all =
            [&self.kvm, &self.kernel, &self.initramfs].into_iter().chain(&self.layers).chain(&self.writable);
        let taps = self.taps.iter().map(|(tap, _)| tap);
        let last = all.chain(taps).map(AsRawFd::as_raw_fd).max().unwrap_or(2);
        u32::try_from(last - 2).unwrap_or(0)
    }

    /// The monitor's arguments.
    pub(super) fn arguments(&self, plan: &MachinePlan) -> Vec<String> {
        let fd = |fd: &OwnedFd| format!("fd:{}", fd.as_raw_fd());
        let mut all = vec!["run".to_owned()];
        let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
        add("--memory", plan.memory_bytes.to_string());
        add("--cpus", plan.processors.to_string());
        add("--kvm", fd(&self.kvm));
        add("--kernel", fd(&self.kernel));
        add("--initrd", fd(&self.initramfs));
        add("--cmdline", COMMAND_LINE.to_owned());
        for (number, layer) in self.layers.iter().enumerate() {
            add("--disk", format!("{},ro,id={}", fd(layer), serial(number)));
        }
        if let Some(disk) = &self.writable {
            add("--disk", format!("{},id={WRITABLE}", fd(disk)));
        }
        for (tap, mac) in &self.taps {
            add("--net", format!("{},mac={mac}", fd(tap)));
        }
        add("--vsock", format!("{CID},{SOCKETS}/{SOCKET}"));
        all
    }

    /// The same, as the agent is told.
    pub(super) fn root(&self) -> RootSpec {
        let disk = |serial: String| DiskSpec { serial };
        RootSpec {
            layers: (0..self.layers.len()).map(|number| disk(serial(number))).collect(),
            writable: self.writable.as_ref().map(|_| disk(WRITABLE.to_owned())),
            memory_bytes: 0,
        }
    }
}

const WRITABLE: &str = "writable";

fn serial(layer: usize) -> String {
    format!("layer{layer}")
}

fn card(tap: &Tap) -> Result<(OwnedFd, Mac)> {
    let file = File::from(moat_linux::mount::duplicate(tap.fd.as_fd())?);
    Ok((inheritable(file)?, tap.endpoint.mac))
}

/// A descriptor that a program which is executed keeps.
fn inheritable(file: File) -> Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    moat_linux::process::set_close_on_exec(fd.as_fd(), false)?;
    Ok(fd)
}

/// The disk that the workload writes to: a sparse file with an ext4 file system, which only guests ever mount.
fn writable(launch: &Launch) -> Result<File> {
    let path = launch.folder.disk();
    let open = || File::options().read(true).write(true).open(&path);
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => return other.context(|| path.display().to_string()),
    }
    let unfinished = path.with_extension("new");
    let bytes = launch.record.spec.root_bytes.unwrap_or(DEFAULT_DISK_BYTES);
    let what = || format!("make the disk {}", path.display());
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.write(true).create(true).truncate(true).open(&unfinished).context(what)?;
    file.set_len(bytes).context(what)?;
    let mut command = Command::new("mke2fs");
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ]);
    let path_of_tools = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let made = command.arg(&unfinished).env("PATH", path_of_tools).output();
    let made = made.map_err(|error| {
        Error::new(format!("mke2fs: {error}"))
            .hint("install e2fsprogs, or run it with --rm, which needs no disk")
    });
    let made = made.context(what)?;
    if !made.status.success() {
        let text = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(Error::new(format!("mke2fs: {}: {text}", made.status))).context(what);
    }
    std::fs::rename(&unfinished, &path).context(what)?;
    open().context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_room_for_its_workload() {
        let plan = |memory, cpus| MachinePlan::new(memory, cpus);
        assert_eq!(plan(None, None), MachinePlan { memory_bytes: 512 << 20, processors: 1 });
        assert_eq!(plan(Some(6 << 20), Some(500_000_000)).memory_bytes, 128 << 20);
        let large = plan(Some((1 << 30) + 1), Some(2_500_000_000));
        assert_eq!(large, MachinePlan { memory_bytes: (1 << 30) + (66 << 20), processors: 3 });
        assert_eq!(plan(None, Some(u64::MAX)).processors, 32);
    }
}
