//! The lab's side.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Options;
use crate::machines::{furnish, moat};

/// The contract: a cold start beside a bare boot, a warm one beside a cold one, private memory of monitor and moat-vmm.
const COLD: f64 = 1.3;
const PRIVATE_KIB: f64 = 7.0 * 1024.0;
/// What a machine has without a limit, as the bare guest has it, too.
const MEMORY: &str = "512M";
const COMMAND_LINE: &str = "console=ttyS0 rdinit=/init panic=-1 reboot=t quiet loglevel=4";
const MARKER: &str = "MARKER";

pub(super) fn run(options: Options) -> Result<ExitCode> {
    prepare()?;
    let (mut bare, mut cold, mut container) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.runs {
        bare.push(retried("bare boot", || first_word(&mut bare_boot()))?);
        cold.push(retried("cold start", || first_word(&mut workload("microvm")))?);
        container.push(first_word(&mut workload("container"))?);
    }
    let [bare, cold, container] = [bare, cold, container].map(median);
    println!("to the first output of the program, medians of {}:", options.runs);
    println!("  bare moat-vmm                  {bare:8.1} ms");
    println!(
        "  moat run --isolation microvm   {cold:8.1} ms  {:.2} times the bare boot, at most {COLD}",
        cold / bare
    );
    println!("  moat run                       {container:8.1} ms");
    let memory = private()?;
    println!("private memory of monitor and moat-vmm: {memory:.0} KiB, at most {PRIVATE_KIB}");
    if options.crowd > 0 {
        rates()?;
        crowd(options.crowd)?;
    }
    let kept = cold / bare <= COLD && memory <= PRIVATE_KIB;
    Ok(if options.gate && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn quiet(command: &mut Command) -> Result<String> {
    crate::command::output(command)
}

fn prepare() -> Result<()> {
    furnish()?;
    // What is made once: the layer as a disk, the initial file system, and what the kernel loads when first asked.
    for wall in ["microvm", "container"] {
        first_word(&mut workload(wall))?;
    }
    Ok(())
}

fn bare_boot() -> Command {
    let mut monitor = Command::new("/tmp/lab/moat-vmm");
    monitor.args([
        "run",
        "--kernel",
        "/tmp/lab/vmlinux",
        "--initrd",
        "/tmp/lab/bare.cpio",
        "--memory",
        MEMORY,
    ]);
    monitor.args(["--cmdline", COMMAND_LINE]).stdin(Stdio::null());
    monitor
}

fn workload(wall: &str) -> Command {
    moat(&["run", "--rm", "--network", "none", "--isolation", wall, "box", "echo", MARKER])
}

/// A program that does not outlive this value, unless it has ended.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It is gone already, or it is ended here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    fn new(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?))
    }

    /// Waits until it has said the word.
    fn hear(&mut self) -> Result<()> {
        let out = self.0.stdout.take().context("the program has no output")?;
        for line in BufReader::new(out).lines() {
            if line.context("cannot read what the program says")?.trim() == MARKER {
                return Ok(());
            }
        }
        bail!("it ended before it said {MARKER}")
    }
}

/// Milliseconds from the start of a command to its word.
fn first_word(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let mut started = Started::new(command)?;
    started.hear()?;
    let heard = began.elapsed().as_secs_f64() * 1e3;
    // A workload ends by itself, and takes what it made with it; a bare guest does not.
    if command.get_program() == "/tmp/lab/moat" {
        let status = started.0.wait().context("cannot wait for moat")?;
        if !status.success() {
            bail!("moat ended with {status}");
        }
    }
    Ok(heard)
}

/// A guest dies now and then under emulation: once more, and it is told.
fn retried<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    attempt().or_else(|error| {
        eprintln!("bench: {what}: {error:#}; trying once more");
        attempt()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What one more machine that waits costs the host beside the guest's memory. Another one runs, so that what the
/// programs of all machines share is not counted.
fn private() -> Result<f64> {
    for name in ["other", "idle"] {
        let flags = ["run", "-d", "--name", name, "--network", "none", "--isolation", "microvm"];
        quiet(&mut moat(&[&flags[..], &["box", "sleep", "100000"]].concat()))?;
    }
    let text = quiet(&mut moat(&["inspect", "idle"]))?;
    let shown: Value = serde_json::from_str(&text).context("inspect gave no JSON")?;
    let monitor = shown[0]["State"]["Pid"].as_u64().context("inspect gave no process")?;
    let status =
        std::fs::read_to_string(format!("/proc/{monitor}/status")).context("cannot read its status")?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent: u64 = parent.and_then(|text| text.trim().parse().ok()).context("it has no parent")?;
    let sum = private_kib(monitor)? + private_kib(parent)?;
    quiet(&mut moat(&["rm", "-f", "idle", "other"]))?;
    Ok(sum)
}

/// Private memory of a process, without the mapping that is the guest's.
fn private_kib(pid: u64) -> Result<f64> {
    const GUEST_KIB: u64 = 512 << 10;
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let (mut sum, mut size_kib) = (0.0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        match key {
            "Size:" => size_kib = value.parse().unwrap_or(0),
            "Private_Clean:" | "Private_Dirty:" if size_kib < GUEST_KIB => {
                sum += value.parse::<f64>().unwrap_or(0.0);
            }
            _ => {}
        }
    }
    Ok(sum)
}

/// Starts side by side: how many come up in a second.
fn rates() -> Result<()> {
    println!("starts side by side:");
    for count in [1, 2, 4, 8] {
        let began = Instant::now();
        let mut all =
            (0..count).map(|_| Started::new(&mut workload("microvm"))).collect::<Result<Vec<_>>>()?;
        all.iter_mut().try_for_each(Started::hear)?;
        let seconds = began.elapsed().as_secs_f64();
        println!("  {count}: {:.2} a second", f64::from(count) / seconds);
        all.iter_mut().try_for_each(|one| one.0.wait().map(drop)).context("cannot wait for moat")?;
    }
    Ok(())
}

/// Many machines on one network, each asked by its name.
fn crowd(count: usize) -> Result<()> {
    const AT_ONCE: usize = 4;
    const SERVE: &str = "while :; do echo $0 | /bin/busybox nc -l -p 80; done";
    quiet(&mut moat(&["network", "create", "crowd"]))?;
    let began = Instant::now();
    let names: Vec<String> = (0..count).map(|number| format!("guest{number}")).collect();
    for some in names.chunks(AT_ONCE) {
        let start = |name: &String| {
            let flags = ["run", "-d", "--name", name, "--network", "crowd", "--isolation", "microvm"];
            let size = ["--memory", "64m", "--rm", "box", "sh", "-c", SERVE, name];
            Started::new(&mut moat(&[&flags[..], &size].concat()))
        };
        for mut one in some.iter().map(start).collect::<Result<Vec<_>>>()? {
            let status = one.0.wait().context("cannot wait for moat")?;
            if !status.success() {
                bail!("a machine of the crowd did not start: {status}");
            }
        }
    }
    let up = began.elapsed().as_secs_f64();
    let list = names.join(" ");
    let script = format!("for name in {list}; do /bin/busybox nc $name 80 </dev/null; done");
    let said = quiet(&mut moat(&["run", "--rm", "--network", "crowd", "box", "sh", "-c", &script]))?;
    let answered = names.iter().filter(|name| said.lines().any(|line| line == name.as_str())).count();
    println!("{count} machines at once on one network: up in {up:.0} s, {answered} answered by name");
    for some in names.chunks(AT_ONCE) {
        let mut words = vec!["rm", "-f"];
        words.extend(some.iter().map(String::as_str));
        quiet(&mut moat(&words))?;
    }
    if answered < count {
        bail!("{} of {count} were not reached by name", count - answered);
    }
    Ok(())
}
