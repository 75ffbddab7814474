//! `cargo xtask test`: everything that the tests need, then the tests.
//!
//! What takes long and is no test (packages, the lab's kernel, the build) comes first, so that the
//! runner's own report is about tests and stands last.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::{build, command, kernel, lab, packages};

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    // Tests that need the emulated host call this very program. The build below may put a new
    // file in its place, after which its own name could not be told any more.
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    packages::ensure(packages::TESTS)?;
    lab::prepare()?;
    command::step(command::cargo().args(["build", "--workspace", "--locked"]))?;
    let runtime = build::program("moat-runtime", "dev")?;
    let mut runner = runner();
    runner.args(arguments);
    // As it is used, which may be for another C library than the tests themselves.
    runner.env("MOAT_XTASK", me).env("MOAT_RUNTIME", runtime);
    if let Some(kernel) = kernel::built()? {
        runner.env("MOAT_GUEST_KERNEL", kernel);
    }
    eprintln!("--- {}", command::line(&runner));
    let status = command::status(&mut runner)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// cargo-nextest where it is installed, else the runner that comes with cargo.
fn runner() -> Command {
    let mut command = command::cargo();
    if has_nextest() {
        command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]);
    }
    command
}

fn has_nextest() -> bool {
    command::cargo()
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
