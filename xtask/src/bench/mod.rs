//! `cargo xtask bench runtime`: moat-runtime beside its peers, on the same bundle, in one run.
//!
//! Contenders take turns, one container each, in an order that changes: what else the machine
//! does meets all of them alike. The measured processes start by posix_spawn, and times are wall times
//! from the start to the end of the runtime's command.

mod contender;
mod measure;
mod private;
mod pull;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{bundle, command, packages, scratch::Scratch};
use contender::{Contender, Course};
use measure::{Figures, Unit};

#[derive(Debug, Clone)]
struct Options {
    runs: usize,
    gate: bool,
    json: Option<PathBuf>,
    /// The moat-runtime to measure instead of the one that is built.
    runtime: Option<PathBuf>,
}

const USAGE: &str = "usage: cargo xtask bench runtime [--runs N] [--gate] [--json FILE] [--runtime FILE]";

/// So many containers in the crowd, so many at a time.
const CROWD: usize = 100;
const AT_A_TIME: usize = 8;

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    if arguments.first().is_some_and(|word| word == "pull") {
        return pull::run(arguments.get(1..).unwrap_or_default());
    }
    let options = parse(arguments)?;
    packages::ensure(packages::BENCH)?;
    let runtime = match &options.runtime {
        Some(runtime) => {
            runtime.canonicalize().with_context(|| format!("there is no {}", runtime.display()))?
        }
        None => {
            command::step(command::cargo().args([
                "build",
                "--release",
                "--locked",
                "--package",
                "moat-runtime",
            ]))?;
            command::built("release")?.join("moat-runtime")
        }
    };
    if !private::inside() {
        return private::enter(&runtime, arguments);
    }
    private::settle()?;
    let scratch = Scratch::new("bench")?;
    let state = scratch.path().join("state");
    private::state_in_memory(&state)?;
    let floor = floor(scratch.path())?;
    let course = Course::build(scratch.path(), &floor, &runtime)?;
    let contenders = course.contenders();
    let figures = measure_all(&course, &contenders, options.runs)?;
    let explained = course.moat(&contenders).map(|moat| course.explain(moat));
    drop(contenders);
    course.clean();
    rustix::mount::unmount(&state, rustix::mount::UnmountFlags::DETACH)
        .with_context(|| format!("cannot unmount {}", state.display()))?;

    print!("{}", report::table(&figures));
    if let Some(waterfall) = explained {
        println!("\nOne `moat-runtime run --explain`:\n{}", waterfall?.trim_end());
    }
    let verdicts = report::verdicts(&figures);
    print!("\n{}", report::limits(&verdicts));
    if let Some(file) = &options.json {
        std::fs::write(file, report::json(&figures, &verdicts).to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let kept = verdicts.iter().all(|verdict| verdict.passed());
    Ok(if options.gate && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut words = arguments.iter();
    match words.next().map(String::as_str) {
        Some("runtime") => {}
        _ => bail!("only `runtime` and `pull` have a benchmark; {USAGE}"),
    }
    let mut options = Options { runs: 50, gate: false, json: None, runtime: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value; {USAGE}"));
        match word.as_str() {
            "--runs" => {
                let text = value()?;
                options.runs = text.parse().with_context(|| format!("{text:?} is not a number of runs"))?;
            }
            "--gate" => options.gate = true,
            "--json" => options.json = Some(PathBuf::from(value()?)),
            "--runtime" => options.runtime = Some(PathBuf::from(value()?)),
            other => bail!("{other:?} is no option of the benchmark; {USAGE}"),
        }
    }
    if options.runs == 0 {
        bail!("--runs must be at least 1");
    }
    Ok(options)
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

fn measure_all(course: &Course, contenders: &[Contender], runs: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    let runtimes: Vec<&Contender> = contenders.iter().filter(|one| !one.is_floor()).collect();
    let all: Vec<&Contender> = contenders.iter().collect();

    eprintln!("--- bench: run, {runs} times each");
    measure::turns(3, &all, |one| course.run(one))?;
    measure::turns(runs, &all, |one| figures.time("run", one, || course.run(one)))?;

    eprintln!("--- bench: run after 100 ms of quiet");
    measure::turns(runs.div_ceil(2), &all, |one| {
        // The kernel lets its grace periods end meanwhile, so the next one is paid for in full.
        std::thread::sleep(Duration::from_millis(100));
        figures.time("run, after quiet", one, || course.run(one))
    })?;

    eprintln!("--- bench: create, start, delete, {runs} times each");
    measure::turns(runs, &runtimes, |one| {
        figures.time("create", one, || course.create(one))?;
        let pid = course.pid(one)?;
        figures.time("start", one, || course.start(one))?;
        contender::wait_until_ended(pid);
        figures.time("delete", one, || course.delete(one))
    })?;

    eprintln!("--- bench: exec, {runs} times each");
    for one in &runtimes {
        course.start_sleeper(one)?;
    }
    measure::turns(3, &runtimes, |one| course.exec(one))?;
    measure::turns(runs, &runtimes, |one| figures.time("exec", one, || course.exec(one)))?;
    for one in &runtimes {
        course.stop_sleeper(one)?;
    }

    eprintln!("--- bench: peak resident memory");
    measure::turns(7, &runtimes, |one| {
        let kib = course.peak_kib(one)?;
        figures.add("peak memory of run", Unit::KiB, one, kib);
        Ok(())
    })?;

    let rounds = (runs / 10).max(3);
    eprintln!("--- bench: {CROWD} containers, {AT_A_TIME} at a time, {rounds} times each");
    measure::turns(rounds, &runtimes, |one| {
        figures.time("100 containers, 8 at a time", one, || course.crowd(one, CROWD))
    })?;
    Ok(figures)
}

/// A bundle for each container that runs at the same time as others.
fn bundles(scratch: &Path, config: &serde_json::Value, mark: &str) -> Result<contender::Bundles> {
    let rootfs = scratch.join("rootfs");
    bundle::rootfs(&rootfs)?;
    let write = |name: &str, arguments: &[&str]| {
        let cgroup = format!("/{mark}-{name}");
        bundle::write(scratch.join(name), &rootfs, config, &cgroup, arguments)
    };
    let lanes: Result<Vec<PathBuf>> =
        (0..AT_A_TIME).map(|lane| write(&format!("lane-{lane}"), &["/bin/true"])).collect();
    let probe = write("probe", &["/bin/echo", contender::PROBE])?;
    Ok(contender::Bundles { lanes: lanes?, probe, rootfs: rootfs.clone() })
}
