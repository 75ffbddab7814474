//! `cargo xtask lab -- COMMAND`: runs COMMAND as root on an emulated host.
//!
//! The host is QEMU without hardware help, Debian's stock kernel, and the caller's own root file
//! system, read over 9p beneath an overlay: what the caller has installed is there, and nothing
//! that COMMAND does reaches the machine. cgroup v2 has all its controllers, and /dev/kvm works.
//!
//! Nothing is written outside the cache: archive and disk are memory files, the ports are socket
//! pairs, and the kernel kills QEMU when this program ends in any way.

mod host;
pub(crate) mod init;
mod kernel;
mod modules;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::packages;

/// The exit code when it is the lab that failed, and not the command in it.
const DIED: u8 = 125;

/// Where the init finds its order in the archive.
const ORDER: &str = "order.json";

#[derive(Debug, Default)]
struct Options {
    /// One processor and virtual time, so that figures repeat.
    icount: bool,
    /// Show the kernel's console and the boot's times.
    verbose: bool,
    copies: Vec<PathBuf>,
    /// MiB of memory.
    memory_mib: Option<u32>,
    command: Vec<String>,
}

const USAGE: &str =
    "usage: cargo xtask lab [--icount] [--verbose] [--memory MIB] [--copy FILE]... -- COMMAND";

/// Fetches what the lab needs, so that the first test does not wait for it.
pub(crate) fn prepare() -> Result<()> {
    packages::ensure(packages::LAB)?;
    kernel::prepare().map(drop)
}

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    packages::ensure(packages::LAB)?;
    let kernel = kernel::prepare()?;
    let archive = initramfs(&options, &kernel)?;
    // One lab at a time: each takes all processors and 2 GiB.
    let path = crate::cache::cache()?.join("lab.lock");
    let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    for attempt in [1, 2] {
        let start = Instant::now();
        match host::boot(&options, &kernel, &archive)? {
            host::End::Status(code) => {
                if options.verbose {
                    eprintln!("lab: {:.1} s in all", start.elapsed().as_secs_f64());
                }
                return Ok(ExitCode::from(code));
            }
            host::End::Died(console) => {
                eprintln!("lab: the emulated host died without a status (attempt {attempt}):");
                eprintln!("{}", console.trim_end());
                if attempt == 1 {
                    eprintln!("lab: trying once more");
                }
            }
        }
    }
    eprintln!("xtask: the emulated host died twice; its last words stand above");
    Ok(ExitCode::from(DIED))
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--icount" => options.icount = true,
            "--verbose" => options.verbose = true,
            "--copy" => {
                let file = words.next().context("--copy needs a file")?;
                options.copies.push(PathBuf::from(file));
            }
            "--memory" => {
                let text = words.next().context("--memory needs a number of MiB")?;
                let mib = text.parse().with_context(|| format!("{text:?} is no number of MiB"))?;
                options.memory_mib = Some(mib);
            }
            "--" => options.command = words.by_ref().cloned().collect(),
            other => bail!("{other:?} is no option of the lab; {USAGE}"),
        }
    }
    if options.command.is_empty() {
        bail!("there is no command to run; {USAGE}");
    }
    Ok(options)
}

/// The first file system: this program as init, the modules it loads, its order, the copies.
fn initramfs(options: &Options, kernel: &kernel::Kernel) -> Result<Vec<u8>> {
    let mut archive = moat_initramfs::Archive::default();
    for folder in ["dev", "proc", "sys", "new", "modules", "copies"] {
        archive.folder(folder);
    }
    // Not by its name: a build may have put another file there since.
    let me = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    archive.file("init", 0o755, &kernel::stripped(&me)?);
    let index = kernel.index()?;
    archive.file("modules.index", 0o644, index.text(&kernel.folder).as_bytes());
    let wanted = index.closure(modules::AT_BOOT);
    for (place, module) in wanted.iter().enumerate() {
        let bytes = module.read()?;
        archive.file(&format!("modules/{place:03}-{}", module.name), 0o644, &bytes);
    }
    for file in &options.copies {
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} names no file", file.display()))?;
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        archive.file(&format!("copies/{name}"), 0o755, &bytes);
    }
    archive.file(ORDER, 0o600, order(options, kernel)?.to_string().as_bytes());
    Ok(archive.finish())
}

fn order(options: &Options, kernel: &kernel::Kernel) -> Result<Value> {
    let folder = std::env::current_dir().context("cannot find the working directory")?;
    let passed = |name: &str| name.starts_with("MOAT_") || ["PATH", "HOME", "LANG"].contains(&name);
    let environment: serde_json::Map<String, Value> = std::env::vars()
        .filter(|(name, _)| passed(name))
        .map(|(name, value)| (name, Value::String(value)))
        .collect();
    Ok(json!({
        "command": options.command,
        "folder": folder,
        "environment": environment,
        "modules": kernel.folder,
        "verbose": options.verbose,
    }))
}
