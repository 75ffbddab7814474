//! `cargo xtask build`: the programs as users get them.
//!
//! What is started for every container is built for musl where the toolchain can: the start of a static program of
//! glibc's asks the processor some forty times what it is, each of which a hypervisor has to answer, at microseconds
//! apiece. musl asks nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::command;

const MUSL: &str = "x86_64-unknown-linux-musl";
/// What is built for it.
const RUNTIME: &str = "moat-runtime";

/// What is built when nothing is named.
const PROGRAMS: &[&str] = &["moat", "moat-agent", "moat-runtime", "moat-vmm"];

/// Builds the named packages, or all, for use, and prints where their programs are.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(unknown) = named.iter().find(|name| !PROGRAMS.contains(name)) {
        bail!("{unknown:?} is no program: {}", PROGRAMS.join(", "));
    }
    for file in programs(if named.is_empty() { PROGRAMS } else { &named }, "release")? {
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds a program in a profile (`dev`, `release`) and gives its file.
pub(crate) fn program(package: &str, profile: &str) -> Result<PathBuf> {
    Ok(programs(&[package], profile)?.remove(0))
}

/// As [`program`], for several: their files in the same order.
pub(crate) fn programs(packages: &[&str], profile: &str) -> Result<Vec<PathBuf>> {
    let folder = if profile == "dev" { "debug" } else { profile };
    let own = command::built(folder)?;
    let targets = own.parent().and_then(Path::parent).context("this program's file has no folder")?;
    let (runtime, others): (Vec<&str>, Vec<&str>) = packages.iter().partition(|name| **name == RUNTIME);
    let musl = !runtime.is_empty() && has_musl()?;
    let (musl, own_kind) = if musl { (runtime, others) } else { (Vec::new(), packages.to_vec()) };
    for (names, target) in [(&own_kind, None), (&musl, Some(MUSL))] {
        if !names.is_empty() {
            let mut cargo = command::cargo();
            cargo.args(["build", "--locked", "--profile", profile]);
            cargo.args(target.iter().flat_map(|target| ["--target", target]));
            command::step(cargo.args(names.iter().flat_map(|name| ["--package", name])))?;
        }
    }
    let file = |name: &&str| match musl.contains(name) {
        true => targets.join(MUSL).join(folder).join(name),
        false => own.join(name),
    };
    Ok(packages.iter().map(file).collect())
}

/// Whether the toolchain can build for musl, or could be given what it takes.
fn has_musl() -> Result<bool> {
    let installed = || -> Result<bool> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let folder =
            command::output(Command::new(rustc).args(["--print", "target-libdir", "--target", MUSL]))?;
        Ok(Path::new(folder.trim()).is_dir())
    };
    if !cfg!(target_arch = "x86_64") {
        return Ok(false);
    }
    if installed()? {
        return Ok(true);
    }
    let added = command::find("rustup")
        .is_some_and(|rustup| command::step(Command::new(rustup).args(["target", "add", MUSL])).is_ok());
    if added && installed()? {
        return Ok(true);
    }
    eprintln!("xtask: this toolchain has no {MUSL}: {RUNTIME} is built for glibc, and starts 4 % slower");
    Ok(false)
}
