//! `cargo xtask bench microvm`: what `moat run --isolation microvm` adds to a boot, in one run of the lab.
//!
//! The same kernel, memory and processor as a bare `moat-vmm` with a first process that says one word. Times are of the
//! lab's clock and mean something only beside each other; memory is a count.

mod inside;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::machines::Machines;
use crate::{command, packages, scratch::Scratch};

const USAGE: &str = "usage: cargo xtask bench microvm [--runs N] [--crowd N] [--icount] [--gate]";
/// How the lab's side of this benchmark is called.
const INSIDE: &str = "--inside";
/// The lab's memory: a crowd of guests lives in it.
const LAB_MIB: &str = "6144";

#[derive(Clone, Copy)]
struct Options {
    runs: usize,
    /// So many machines at once on one network; 0 leaves that part out.
    crowd: usize,
    icount: bool,
    gate: bool,
    inside: bool,
}

pub(super) fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    if options.inside {
        return inside::run(options);
    }
    packages::ensure(packages::BENCH)?;
    let scratch = Scratch::new("bench-microvm")?;
    let machines = Machines::build(scratch.path())?;
    let archive = bare(scratch.path(), machines.monitor().context("the monitor was not built")?)?;
    let flags = ["--memory", LAB_MIB, "--icount"];
    let flags = if options.icount { &flags[..] } else { &flags[..2] };
    let (runs, crowd) = (options.runs.to_string(), options.crowd.to_string());
    let mut words = vec!["bench", "microvm", INSIDE, "--runs", &runs, "--crowd", &crowd];
    words.extend(options.gate.then_some("--gate"));
    let status = command::status(&mut machines.lab(flags, &[&archive], &words)?)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The initial file system of the bare guest.
fn bare(scratch: &Path, monitor: &Path) -> Result<PathBuf> {
    let (init, archive) = (scratch.join("bare"), scratch.join("bare.cpio"));
    let source = command::root().join("xtask/src/bench/microvm/bare.c");
    command::quiet(Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&init).arg(source))?;
    let mut build = Command::new(monitor);
    command::quiet(build.arg("initramfs").arg("--init").arg(&init).arg("--output").arg(&archive))?;
    Ok(archive)
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { runs: 7, crowd: 50, icount: false, gate: false, inside: false };
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<usize> {
            let text = words.next().with_context(|| format!("{word} needs a number; {USAGE}"))?;
            text.parse().with_context(|| format!("{text:?} is no number"))
        };
        match word.as_str() {
            "--runs" => options.runs = number()?.max(1),
            "--crowd" => options.crowd = number()?,
            "--icount" => options.icount = true,
            "--gate" => options.gate = true,
            INSIDE => options.inside = true,
            other => bail!("{other:?} is no option of the benchmark; {USAGE}"),
        }
    }
    Ok(options)
}
