//! `cargo xtask parity [GROUP]`: one table of cases, looked at behind both walls in one visit to the lab. The matrix is
//! printed, and kept in docs/parity.md when every case is as the table says.

use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::{command, kernel, lab, packages};

/// What the test prints around its matrix.
const BEGIN: &str = "--- parity begins";
const END: &str = "--- parity ends";
const PROGRAMS: [&str; 4] = ["moat", "moat-vmm", "moat-agent", "moat-runtime"];

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let group = match arguments {
        [] => None,
        [group] => Some(group),
        _ => bail!("usage: cargo xtask parity [GROUP]"),
    };
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    packages::ensure(packages::TESTS)?;
    lab::prepare()?;
    let kernel = kernel::built()?.context("there is no guest kernel; `cargo xtask kernel` builds it")?;
    let mut build = command::cargo();
    build.args(["build", "--locked"]).args(PROGRAMS.iter().flat_map(|program| ["--package", program]));
    command::step(&mut build)?;
    let mut test = command::cargo();
    test.args(["test", "--locked", "--package", "moat-tests", "--test", "parity", "--", "--nocapture"]);
    test.env("MOAT_XTASK", me).env("MOAT_GUEST_KERNEL", kernel).env("MOAT_PARITY_WRITE", "yes");
    if let Some(group) = group {
        test.env("MOAT_PARITY_GROUP", group);
    }
    eprintln!("--- {}", command::line(&test));
    let mut child = test.stdout(Stdio::piped()).spawn().context("cannot start the test")?;
    let output = child.stdout.take().context("the test has no output")?;
    let matrix = matrix(BufReader::new(output))?;
    let status = child.wait().context("cannot wait for the test")?;
    print!("{matrix}");
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    if group.is_none() {
        let path = command::root().join("docs/parity.md");
        std::fs::create_dir_all(command::root().join("docs")).context("cannot make docs")?;
        std::fs::write(&path, matrix).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What stands between the marks; all else is passed on.
fn matrix(output: impl BufRead) -> Result<String> {
    let (mut inside, mut kept) = (false, String::new());
    for line in output.lines() {
        let line = line.context("cannot read the test's output")?;
        match line.as_str() {
            BEGIN => inside = true,
            END => inside = false,
            line if inside => kept.extend([line, "\n"]),
            line => eprintln!("{line}"),
        }
    }
    Ok(kept)
}
