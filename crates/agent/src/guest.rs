//! Making the machine that of one workload: clock, entropy, names, files.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use moat_linux::{process as sys, random};
use moat_model::agent::{FILES, FileSpec, GuestSpec};
use moat_sandbox::{Context, Error, Result};
use rustix::time::{ClockId, Timespec};

use crate::{network, root};

/// Does everything that `spec` says. What is unique to a machine comes first: a clone of a template must not
/// share a random number with another.
pub(crate) fn configure(spec: &GuestSpec) -> Result<()> {
    if !spec.entropy.is_empty() {
        random::reseed(&spec.entropy)?;
    }
    if spec.clock_ns > 0 {
        set_clock(spec.clock_ns)?;
    }
    if !spec.hostname.is_empty() {
        sys::set_host_name(&spec.hostname)?;
    }
    if !spec.machine_id.is_empty() {
        let path = "/etc/machine-id";
        std::fs::create_dir_all("/etc").context(|| "/etc")?;
        std::fs::write(path, format!("{}\n", spec.machine_id)).context(|| path)?;
    }
    network::configure(&spec.interfaces)?;
    root::assemble(&spec.root)?;
    std::fs::create_dir_all(FILES).context(|| FILES)?;
    spec.files.iter().try_for_each(write)
}

fn set_clock(ns: u64) -> Result<()> {
    const SECOND_NS: u64 = 1_000_000_000;
    let out_of_range = |_| Error::new(format!("a clock of {ns} ns is out of range"));
    let time = Timespec {
        tv_sec: i64::try_from(ns / SECOND_NS).map_err(out_of_range)?,
        tv_nsec: i64::try_from(ns % SECOND_NS).map_err(out_of_range)?,
    };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(std::io::Error::from)
        .context(|| "clock_settime(CLOCK_REALTIME)")
}

fn write(file: &FileSpec) -> Result<()> {
    let is_component =
        !file.name.is_empty() && !file.name.contains('/') && file.name != "." && file.name != "..";
    if !is_component {
        return Err(Error::new(format!("file name {:?} is not one component", file.name)));
    }
    let path = Path::new(FILES).join(&file.name);
    let what = || path.display().to_string();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(file.mode & 0o7777);
    let mut made = options.open(&path).context(what)?;
    std::io::Write::write_all(&mut made, &file.content).context(what)
}
