//! `cargo xtask fuzz [SECONDS] [TARGET ...]`: every fuzz target of `fuzz/`, for a while each.
//!
//! The targets are plain programs over libfuzzer-sys. The stable compiler has the coverage pass
//! and needs only to be told; neither cargo-fuzz nor a nightly compiler is used.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, packages, scratch::Scratch};

const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (seconds, only) = parse(arguments)?;
    let home = command::root().join("fuzz");
    let manifest = home.join("Cargo.toml");
    if !manifest.is_file() {
        eprintln!("--- fuzz: there are no fuzz targets yet");
        return Ok(());
    }
    packages::ensure(packages::FUZZ)?;
    let (targets, folder) = build(&manifest)?;
    let chosen: Vec<&String> = targets.iter().filter(|name| only.is_empty() || only.contains(name)).collect();
    if chosen.is_empty() {
        bail!("fuzz/Cargo.toml has no target of this name; it has {}", targets.join(", "));
    }
    side_by_side(&chosen, |name| fuzz(&home, &folder, name, seconds))
}

/// Runs every target, as many at a time as there are processors; each tells what it did in one piece.
///
/// Errors: the first one; the others have been printed by then.
fn side_by_side(targets: &[&String], fuzz: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(name) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = fuzz(name) {
                eprintln!("--- fuzz: {error:#}");
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn parse(arguments: &[String]) -> Result<(u64, &[String])> {
    let Some((first, rest)) = arguments.split_first() else {
        return Ok((60, &[]));
    };
    if !first.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok((60, arguments));
    }
    let seconds = first.parse().with_context(|| format!("{first:?} is not a number of seconds"))?;
    Ok((seconds, rest))
}

/// Builds all targets; returns their names and the folder that holds them.
fn build(manifest: &Path) -> Result<(Vec<String>, PathBuf)> {
    // A folder of its own: other flags than the workspace's, so nothing could be shared anyway.
    let target = command::built("fuzz")?;
    let mut cargo = command::cargo();
    cargo.current_dir(manifest.parent().unwrap_or(manifest));
    cargo.args(["build", "--release", "--bins", "--target", "host-tuple"]);
    cargo.arg("--target-dir").arg(&target).env("RUSTFLAGS", FLAGS);
    command::step(&mut cargo)?;

    let mut cargo = command::cargo();
    cargo.current_dir(manifest.parent().unwrap_or(manifest));
    let text = command::output(cargo.args(["metadata", "--no-deps", "--offline", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("`cargo metadata` is not JSON")?;
    let names = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "bin")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    let triple = triple()?;
    Ok((names, target.join(triple).join("release")))
}

/// The name of this machine's target, as rustc calls it.
fn triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = command::output(Command::new(rustc).args(["--version", "--verbose"]))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc --version --verbose` names no host")?.to_owned())
}

fn fuzz(home: &Path, folder: &Path, name: &str, seconds: u64) -> Result<()> {
    // libFuzzer writes new inputs into the first folder; the committed one is only read.
    let scratch = Scratch::new("fuzz")?;
    let (found, crashes) = (scratch.folder("found")?, home.join("artifacts").join(name));
    std::fs::create_dir_all(&crashes).with_context(|| format!("cannot make {}", crashes.display()))?;
    let mut command = Command::new(folder.join(name));
    command.arg(found);
    let seeds = home.join("corpus").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", crashes.display()));
    // What a target makes goes with the rest.
    command.env("TMPDIR", scratch.folder("made")?);
    command.arg("-print_final_stats=1").arg("-verbosity=0");
    let done = command.output().with_context(|| format!("cannot start `{}`", command::line(&command)))?;
    eprintln!("--- {}\n{}", command::line(&command), String::from_utf8_lossy(&done.stderr).trim_end());
    if !done.status.success() {
        bail!("the fuzz target {name} ended with {}", done.status);
    }
    // Nothing was found: leave no empty folders. It is fine when they are not empty.
    let _ = std::fs::remove_dir(&crashes);
    let _ = std::fs::remove_dir(home.join("artifacts"));
    Ok(())
}
