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

/// What is built when nothing is named.
const PROGRAMS: &[&str] = &["moat", "moat-agent", "moat-runtime", "moat-vmm"];

/// Builds the named packages, or all, for use, and prints where their programs are.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(unknown) = named.iter().find(|name| !PROGRAMS.contains(name)) {
        bail!("{unknown:?} is no program: {}", PROGRAMS.join(", "));
    }
    for package in if named.is_empty() { PROGRAMS } else { &named } {
        println!("{}", program(package, "release")?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds a program in a profile (`dev`, `release`) and gives its file.
pub(crate) fn program(package: &str, profile: &str) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--profile", profile, "--package", package]);
    let folder = if profile == "dev" { "debug" } else { profile };
    let own = command::built(folder)?;
    if package != "moat-runtime" || !has_musl()? {
        command::step(&mut cargo)?;
        return Ok(own.join(package));
    }
    command::step(cargo.args(["--target", MUSL]))?;
    let targets = own.parent().and_then(Path::parent).context("this program's file has no folder")?;
    Ok(targets.join(MUSL).join(folder).join(package))
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
    eprintln!("xtask: this toolchain has no {MUSL}: moat-runtime is built for glibc, and starts 4 % slower");
    Ok(false)
}
