//! `cargo xtask bench runtime`: moat-runtime beside its peers, on the same bundle.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::{self, Contender, Course};
use super::measure::{Figures, Unit, turns};
use super::report::{self, Limit, limit};
use super::{Options, private};
use crate::{bundle, packages, scratch::Scratch};

/// So many containers in the crowd, so many at a time.
const CROWD: usize = 100;
const AT_A_TIME: usize = 8;

const LIMITS: &[Limit] = &[
    limit("run", 0.5, "crun"),
    limit("run", 0.2, "runc"),
    limit("run", 2.5, "floor"),
    limit("100 containers, 8 at a time", 0.5, "crun"),
    limit("peak memory of run", 1.0, "crun"),
    limit("exec", 0.5, "crun"),
];

pub(super) fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments, "--runtime", 50)?;
    packages::ensure(packages::BENCH)?;
    let runtime = options.program("moat-runtime")?;
    if !private::inside() {
        return private::enter(arguments, "--runtime", &runtime);
    }
    private::settle()?;
    let scratch = Scratch::new("bench")?;
    let state = scratch.path().join("state");
    private::state_in_memory(&state)?;
    let floor = super::floor(scratch.path())?;
    let course = Course::build(scratch.path(), &floor, &runtime)?;
    let contenders = course.contenders();
    let figures = measure_all(&course, &contenders, options.runs)?;
    let explained = course.moat(&contenders).map(|moat| course.explain(moat));
    drop(contenders);
    course.clean();
    rustix::mount::unmount(&state, rustix::mount::UnmountFlags::DETACH)
        .with_context(|| format!("cannot unmount {}", state.display()))?;
    let explained = explained.transpose()?;
    let title = "moat-runtime run --explain";
    report::publish(&figures, LIMITS, explained.map(|text| (title, text)), &options)
}

fn measure_all(course: &Course, contenders: &[Contender], runs: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    let runtimes: Vec<&Contender> = contenders.iter().filter(|one| !one.is_floor()).collect();
    let all: Vec<&Contender> = contenders.iter().collect();

    eprintln!("--- bench: run, {runs} times each");
    turns(3, &all, |one| course.run(one))?;
    turns(runs, &all, |one| figures.time("run", one.name, || course.run(one)))?;

    eprintln!("--- bench: run after 100 ms of quiet");
    turns(runs.div_ceil(2), &all, |one| {
        // The kernel lets its grace periods end meanwhile, so the next one is paid for in full.
        std::thread::sleep(Duration::from_millis(100));
        figures.time("run, after quiet", one.name, || course.run(one))
    })?;

    eprintln!("--- bench: create, start, delete, {runs} times each");
    turns(runs, &runtimes, |one| {
        figures.time("create", one.name, || course.create(one))?;
        let pid = course.pid(one)?;
        figures.time("start", one.name, || course.start(one))?;
        contender::wait_until_ended(pid);
        figures.time("delete", one.name, || course.delete(one))
    })?;

    eprintln!("--- bench: exec, {runs} times each");
    for one in &runtimes {
        course.start_sleeper(one)?;
    }
    turns(3, &runtimes, |one| course.exec(one))?;
    turns(runs, &runtimes, |one| figures.time("exec", one.name, || course.exec(one)))?;
    for one in &runtimes {
        course.stop_sleeper(one)?;
    }

    eprintln!("--- bench: peak resident memory");
    turns(7, &runtimes, |one| {
        let kib = course.peak_kib(one)?;
        figures.add("peak memory of run", Unit::KiB, one.name, kib);
        Ok(())
    })?;

    // A crowd meets the kernel's own work for those before it, so it varies more than a single run.
    let rounds = (runs / 3).max(3);
    eprintln!("--- bench: {CROWD} containers, {AT_A_TIME} at a time, {rounds} times each");
    turns(rounds, &runtimes, |one| {
        figures.time("100 containers, 8 at a time", one.name, || course.crowd(one, CROWD))
    })?;
    Ok(figures)
}

/// A bundle for each container that runs at the same time as others.
pub(super) fn bundles(scratch: &Path, config: &serde_json::Value, mark: &str) -> Result<contender::Bundles> {
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
