//! `cargo xtask bench run`: `moat run` and `moat exec` beside Podman's and Docker's, with one image that is on the
//! disk.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::engine::{Engine, PUBLISHED};
use super::measure::{Figures, Unit, turns};
use super::report::{self, Bound, Limit, limit};
use super::{Options, private};
use crate::{bundle, command, packages, scratch::Scratch};

/// A way to run an image that everybody is measured with.
struct Row {
    course: &'static str,
    flags: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row { course: "run --rm --network none", flags: &["--network", "none"] },
    Row { course: BRIDGE, flags: PUBLISHED },
];

const BRIDGE: &str = "run --rm --publish 8080:80";

const EXEC: &str = "exec";
const MEMORY: &str = "private memory of a monitor";
const AT_ONCE: &str = "100 runs at once";
const CREATES: &str = "800 creates at once";

const LIMITS: &[Limit] = &[
    limit("run --rm --network none", 1.0 / 15.0, "podman"),
    limit("run --rm --network none", 1.0 / 30.0, "docker"),
    limit(BRIDGE, 1.0 / 15.0, "podman"),
    limit(BRIDGE, 1.0 / 15.0, "docker"),
    limit(EXEC, 1.0 / 15.0, "podman"),
    limit(EXEC, 1.0 / 15.0, "docker"),
    Limit { course: MEMORY, bound: Bound::Value(1536.0) },
];

/// Workloads whose monitors are looked at: what they share is then nobody's own.
const MONITORS: usize = 8;

pub(super) fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments, "--moat", 50)?;
    packages::ensure(packages::BENCH_RUN)?;
    let program = options.program("moat")?;
    if !private::inside() {
        return private::enter(arguments, "--moat", &program);
    }
    private::settle()?;
    private::cover("/run")?;
    private::cover("/dev/shm")?;
    // Where the plugins of Podman's network keep addresses.
    std::fs::create_dir_all("/var/lib/cni").context("cannot make /var/lib/cni")?;
    private::cover("/var/lib/cni")?;
    let mark = format!("moat-bench-{}", std::process::id());
    let measured = measure(&program, &options, &mark);
    private::remove_cgroups(&mark);
    let (figures, waterfall) = measured?;
    report::publish(&figures, LIMITS, Some(("moat run --rm --explain", waterfall)), &options)
}

fn measure(program: &Path, options: &Options, mark: &str) -> Result<(Figures, String)> {
    let scratch = Scratch::new("run")?;
    let archive = archive(scratch.path())?;
    let moat = Engine::moat(program, scratch.path(), mark);
    moat.probe(&archive)?;
    let mut peers = Vec::new();
    for (name, peer) in
        [("podman", Engine::podman(scratch.path(), mark)), ("docker", Engine::docker(scratch.path(), mark))]
    {
        match peer.and_then(|peer| peer.probe(&archive).map(|()| peer)) {
            Ok(peer) => peers.push(peer),
            Err(error) => eprintln!("bench: {name} is left out: {error:#}"),
        }
    }
    let all: Vec<&Engine> = std::iter::once(&moat).chain(&peers).collect();
    let mut figures = Figures::default();
    for Row { course, flags } in ROWS {
        eprintln!("--- bench: {course}, {} times each", options.runs);
        turns(2, &all, |one| one.run(flags))?;
        turns(options.runs, &all, |one| figures.time(course, one.name, || one.run(flags)))?;
    }
    eprintln!("--- bench: exec, {} times each", options.runs);
    all.iter().try_for_each(|one| one.start_sleeper())?;
    turns(2, &all, |one| one.exec())?;
    turns(options.runs, &all, |one| figures.time(EXEC, one.name, || one.exec()))?;
    all.iter().try_for_each(|one| one.clear())?;
    // What they leave running is not to be met by what follows.
    drop(peers);
    many(&moat, &mut figures)?;
    memory(&moat, scratch.path(), &mut figures)?;
    let waterfall = explain(&moat)?;
    silent_check(&moat)?;
    Ok((figures, waterfall))
}

/// A root file system of busybox.
pub(super) fn archive(scratch: &Path) -> Result<std::path::PathBuf> {
    let (rootfs, archive) = (scratch.join("rootfs"), scratch.join("rootfs.tar"));
    bundle::rootfs(&rootfs)?;
    command::quiet(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}

/// All at once, and none may fail.
fn many(moat: &Engine, figures: &mut Figures) -> Result<()> {
    let network = ["--network", "none"];
    for (course, count, verb) in
        [(AT_ONCE, 100, ["run", "--rm"].as_slice()), (CREATES, 800, ["create"].as_slice())]
    {
        eprintln!("--- bench: {course}");
        let start = Instant::now();
        let mut children = Vec::new();
        for _ in 0..count {
            let mut command = moat.make(verb, &network, &["true"]);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            children.push(
                command.spawn().with_context(|| format!("cannot start `{}`", command::line(&command)))?,
            );
        }
        let mut failed = 0;
        for child in &mut children {
            failed += usize::from(!child.wait().context("cannot wait")?.success());
        }
        figures.add(course, Unit::Ms, moat.name, start.elapsed().as_secs_f64() * 1e3);
        if failed > 0 {
            bail!("{course}: {failed} failed");
        }
    }
    let made = command::output(&mut moat.command(&["ps", "--all", "--quiet"]))?.lines().count();
    if made != 800 {
        bail!("{CREATES}: there are {made}");
    }
    moat.clear()
}

/// What is nobody's but a monitor's, of workloads that have written something and run on.
fn memory(moat: &Engine, scratch: &Path, figures: &mut Figures) -> Result<()> {
    let script = ["sh", "-c", "for n in $(seq 1000); do echo line $n; done; echo done; sleep 1000000"];
    for number in 0..MONITORS {
        let name = format!("memory-{number}");
        let flags = ["--network", "none", "--name", &name];
        super::contender::silent(&mut moat.make(&["run", "--detach"], &flags, &script))?;
        while !command::output(&mut moat.command(&["logs", "--tail", "1", &name]))?.starts_with("done") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let folder = scratch.join("moat/workloads");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("a workload's folder")?.path().join("state.json");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let state: Value = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let pid = state["monitor"]["pid"].as_u64().context("a workload has no monitor")?;
        figures.add(MEMORY, Unit::KiB, moat.name, private_kib(pid)?);
    }
    moat.clear()
}

/// What no other process has mapped.
#[allow(clippy::cast_precision_loss)] // some thousands
fn private_kib(pid: u64) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut kib = 0;
    for line in text.lines().filter(|line| line.starts_with("Private_")) {
        let value = line.split_whitespace().nth(1).with_context(|| format!("{path}: {line}"))?;
        kib += value.parse::<u64>().with_context(|| format!("{path}: {line}"))?;
    }
    Ok(kib as f64)
}

/// One run that tells its steps.
fn explain(moat: &Engine) -> Result<String> {
    let flags = ["--network", "none", "--explain"];
    let mut run = moat.make(&["run", "--rm"], &flags, &["true"]);
    let done = run.stdin(Stdio::null()).output().context("cannot start moat")?;
    Ok(String::from_utf8_lossy(&done.stderr).into_owned())
}

/// Nothing was left behind.
fn silent_check(moat: &Engine) -> Result<()> {
    super::contender::silent(&mut moat.command(&["system", "check"]))
}
