//! The project's own tools: what a developer, the build service and the tests call.
//!
//! One program with several faces. `cargo xtask check|test|lab|bench|fuzz|demo` is the first.
//! Inside the lab the same static binary is the emulated host's `init` and its `modprobe`, so that
//! the lab needs nothing but this file, busybox and a kernel.

// A tool for people at a terminal prints; the product's crates do not.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod build;
mod bundle;
mod cache;
mod check;
mod command;
mod demo;
mod fuzz;
mod kernel;
mod lab;
mod layers;
mod machines;
mod packages;
mod parity;
mod registry;
mod scratch;
mod sizes;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
The project's own tools.

  cargo xtask demo                  builds moat, and shows it with an image from a registry of its own
  cargo xtask build [PROGRAM...]    builds the programs as users get them, and prints their files
  cargo xtask check                 formatting, lints, layers, sizes
  cargo xtask layers                only the arrows between the crates
  cargo xtask sizes                 only the long functions and files
  cargo xtask test [ARGUMENTS]      installs what the tests need, builds, runs all tests
  cargo xtask fuzz [SECONDS] [NAME] every fuzz target, 60 seconds each if nothing is said
  cargo xtask lab -- COMMAND        runs COMMAND as root on an emulated host
  cargo xtask kernel                builds the small kernel of microVMs, and prints its file
  cargo xtask parity [GROUP]        one table of cases behind both walls, kept in docs/parity.md
  cargo xtask bench runtime [--runs N] [--gate] [--json FILE]
                                    moat-runtime beside crun, runc and a bare C program
  cargo xtask bench run [--runs N] [--gate] [--json FILE]
                                    `moat run` and `moat exec` beside Podman's and Docker's
  cargo xtask bench net [--runs N] [--gate] [--json FILE]
                                    throughput beside bare devices; growth of the packet filter
  cargo xtask bench pull [--runs N] [--gate]
                                    `moat pull` beside Podman's, and beside skopeo and umoci
  cargo xtask bench microvm [--runs N] [--crowd N] [--icount] [--gate]
                                    `moat run --isolation microvm` beside a bare boot of moat-vmm, in the lab
";

fn main() -> ExitCode {
    let mut words = std::env::args();
    let own_name = words.next().unwrap_or_default();
    let arguments: Vec<String> = words.collect();
    if std::process::id() == 1 {
        lab::init::run();
    }
    let done = if own_name.ends_with("/modprobe") {
        lab::init::modprobe(&arguments).map(|()| ExitCode::SUCCESS)
    } else {
        run(&arguments)
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", arguments),
    };
    match verb {
        "build" => return build::run(rest),
        "check" => check::run()?,
        "layers" => layers::run()?,
        "sizes" => sizes::run()?,
        "test" => return test::run(rest),
        "demo" => demo::run(rest)?,
        "fuzz" => fuzz::run(rest)?,
        "bench" => return bench::run(rest),
        "kernel" => kernel::run()?,
        "parity" => return parity::run(rest),
        "lab" => return lab::run(rest),
        "help" | "--help" | "-h" => print!("{HELP}"),
        other => bail!("there is no command {other:?}; `cargo xtask help` lists them"),
    }
    Ok(ExitCode::SUCCESS)
}
