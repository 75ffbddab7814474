//! What a kernel leaves to its first process.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use moat_linux::{mount, process as sys};
use moat_sandbox::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

/// The file systems that programs and the sandbox expect: source, target, type, options.
const MOUNTS: [(&str, &str, &CStr, MountFlags); 5] = [
    ("proc", "/proc", c"", MountFlags::empty()),
    ("sysfs", "/sys", c"", MountFlags::empty()),
    ("devtmpfs", "/dev", c"mode=0755", MountFlags::NOSUID),
    ("cgroup2", "/sys/fs/cgroup", c"nsdelegate", MountFlags::empty()),
    ("tmpfs", "/run", c"mode=0755", MountFlags::NODEV),
];

/// Where an initramfs has what is a module of the kernel, in the order of loading.
const MODULES: &str = "/modules";

/// Modules, a root, mounts, signals, streams.
pub(crate) fn prepare() -> Result<()> {
    load_modules()?;
    leave_initramfs()?;
    for (kind, target, options, flags) in MOUNTS {
        let flags = flags | MountFlags::NOSUID;
        match rustix::fs::mkdir(target, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) => {}
            other => other.map_err(std::io::Error::from).context(|| format!("mkdir {target}"))?,
        }
        match rustix::mount::mount(kind, target, kind, flags, options) {
            // The kernel mounts /dev by itself where it was told to.
            Err(rustix::io::Errno::BUSY) => {}
            other => other.map_err(std::io::Error::from).context(|| format!("mount {kind} on {target}"))?,
        }
    }
    enable_controllers()?;
    sys::block_signals()?;
    // The console may not be there at all; then what is written to it goes nowhere.
    let console = moat_linux::fs::open(Path::new("/dev/console"), OFlags::RDWR | OFlags::NOCTTY)
        .or_else(|_| moat_linux::fs::open(Path::new("/dev/null"), OFlags::RDWR))?;
    for number in 0..3 {
        sys::duplicate_to(console.as_fd(), number)?;
    }
    Ok(())
}

/// A kernel that has all built in comes without the folder.
fn load_modules() -> Result<()> {
    let Ok(listed) = std::fs::read_dir(MODULES) else { return Ok(()) };
    let mut paths = Vec::new();
    for entry in listed {
        paths.push(entry.context(|| MODULES)?.path());
    }
    paths.sort();
    for path in paths {
        let what = || format!("module {}", path.display());
        let file = std::fs::File::open(&path).context(what)?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Another one needed it already, or it is built in.
            Err(rustix::io::Errno::EXIST) => {}
            other => other.map_err(std::io::Error::from).context(what)?,
        }
        // What the kernel holds now need not be held twice.
        std::fs::remove_file(&path).context(what)?;
    }
    Ok(())
}

/// The initramfs is the one mount that nothing can pivot away from, and whose processes may make no user
/// namespaces: what comes lives in a file system above it.
fn leave_initramfs() -> Result<()> {
    const NEW: &str = "/new";
    let what = || "leave the initramfs";
    rustix::fs::mkdir(NEW, Mode::from_raw_mode(0o755)).map_err(std::io::Error::from).context(what)?;
    rustix::mount::mount("tmpfs", NEW, "tmpfs", MountFlags::NODEV, c"mode=0755")
        .map_err(std::io::Error::from)
        .context(what)?;
    sys::change_directory(Path::new(NEW))?;
    mount::move_here_to_root()?;
    sys::change_root_here()?;
    Ok(sys::change_directory(Path::new("/"))?)
}

/// Every controller that the kernel has is there for the groups below the first one.
fn enable_controllers() -> Result<()> {
    const CONTROL: &str = "/sys/fs/cgroup/cgroup.subtree_control";
    let controllers = "/sys/fs/cgroup/cgroup.controllers";
    let known = std::fs::read_to_string(controllers).context(|| controllers)?;
    let enable: Vec<String> = known.split_ascii_whitespace().map(|name| format!("+{name}")).collect();
    std::fs::write(CONTROL, enable.join(" ")).context(|| CONTROL)
}

/// Writes everything back and switches the machine off.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    // Without power management the kernel halts; with `reboot=t` or a reset device the monitor sees a reset.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    let _ = rustix::system::reboot(RebootCommand::Restart);
    std::process::exit(1)
}
