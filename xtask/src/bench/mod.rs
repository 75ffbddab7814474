//! `cargo xtask bench`: what is built here beside its peers, in one run.
//!
//! Contenders take turns, one container each, in an order that changes: what else the machine
//! does meets all of them alike. The measured processes start by posix_spawn, and times are wall times
//! from the start to the end of the command.

mod contender;
mod engine;
mod measure;
mod microvm;
mod net;
mod private;
mod pull;
mod report;
mod run;
mod runtime;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{build, command};

const USAGE: &str = "\
usage: cargo xtask bench runtime [--runs N] [--gate] [--json FILE] [--runtime FILE]
       cargo xtask bench run [--runs N] [--gate] [--json FILE] [--moat FILE]
       cargo xtask bench net [--runs N] [--gate] [--json FILE] [--moat FILE]
       cargo xtask bench pull [--runs N] [--gate]
       cargo xtask bench microvm [--runs N] [--crowd N] [--icount] [--gate]";

#[derive(Debug, Clone)]
struct Options {
    runs: usize,
    gate: bool,
    json: Option<PathBuf>,
    /// The program to measure instead of the one that is built.
    program: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((verb, _)) if verb == "runtime" => runtime::run(arguments),
        Some((verb, _)) if verb == "run" => run::run(arguments),
        Some((verb, _)) if verb == "net" => net::run(arguments),
        Some((verb, rest)) if verb == "pull" => pull::run(rest),
        Some((verb, _)) if verb == "microvm" => microvm::run(arguments),
        _ => bail!("only `runtime`, `run`, `net`, `pull` and `microvm` have a benchmark\n{USAGE}"),
    }
}

impl Options {
    /// The words after the name of the benchmark; `flag` names another program to measure, and `runs` is what nobody
    /// says.
    fn parse(arguments: &[String], flag: &str, runs: usize) -> Result<Self> {
        let mut options = Self { runs, gate: false, json: None, program: None };
        let mut words = arguments.iter().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--runs" => {
                    let text = value()?;
                    options.runs =
                        text.parse().with_context(|| format!("{text:?} is not a number of runs"))?;
                }
                "--gate" => options.gate = true,
                "--json" => options.json = Some(PathBuf::from(value()?)),
                other if other == flag => options.program = Some(PathBuf::from(value()?)),
                other => bail!("{other:?} is no option of this benchmark\n{USAGE}"),
            }
        }
        if options.runs == 0 {
            bail!("--runs must be at least 1");
        }
        Ok(options)
    }

    /// The program to measure: the one that was named, or the built one of a package.
    fn program(&self, package: &str) -> Result<PathBuf> {
        match &self.program {
            Some(program) => {
                program.canonicalize().with_context(|| format!("there is no {}", program.display()))
            }
            None => build::program(package, "release"),
        }
    }
}

/// Compiles the floor, the bare program that everything is compared with.
fn floor(scratch: &Path) -> Result<PathBuf> {
    let source = command::root().join("xtask/floor.c");
    let program = scratch.join("floor");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-o"]).arg(&program).arg(&source);
    command::quiet(&mut gcc)?;
    Ok(program)
}
