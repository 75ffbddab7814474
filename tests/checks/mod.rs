//! Limits that must hold wherever the controllers live: `limits` runs these on this machine, `lab` in an
//! emulated host with cgroup v2.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use moat_tests::{Bundle, Container, Runtime, wait_until};
use serde_json::{Value, json};

pub(crate) const MIB: u64 = 1 << 20;

/// A group's directory for a controller (v1 name, v2 name), as the state on disk tells it.
pub(crate) fn group(runtime: &Runtime, id: &str, (v1, v2): (&str, &str)) -> PathBuf {
    let text = std::fs::read_to_string(runtime.state_root().join(id).join("state.json")).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    let has = |group: &Value, name: &str| {
        group["controllers"].as_array().unwrap().iter().any(|controller| controller == name)
    };
    let legacy = state["cgroup"]["legacy"].as_array().into_iter().flatten().find(|group| has(group, v1));
    let unified = Some(&state["cgroup"]["unified"]).filter(|group| group.is_object() && has(group, v2));
    let group = legacy.or(unified).unwrap_or_else(|| panic!("no group with {v1} or {v2}: {text}"));
    group["directory"].as_str().unwrap().into()
}

/// The number in a file of a group.
pub(crate) fn number(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text:?}", file.display()))
}

/// `events --stats`, its data.
pub(crate) fn stats(runtime: &Runtime, id: &str) -> Value {
    let answer = runtime.call(&["events", "--stats", id]);
    let event: Value = serde_json::from_str(answer.success()).unwrap();
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(id)));
    event["data"].clone()
}

/// `events` at work; its lines until it ends.
pub(crate) struct Events(Child);

impl Events {
    pub(crate) fn of(container: &Container<'_>, runtime: &Runtime, interval: &str) -> Self {
        let mut command = runtime.command(&["events", "--interval", interval, container.id()]);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for its end, which comes with the container's.
    pub(crate) fn lines(mut self) -> Vec<Value> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let parsed = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let ended = self.0.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        parsed
    }
}

/// Allocates more than the container may have.
const EAT: &str = "dd if=/dev/zero of=/dev/null bs=100M count=1";

fn with_memory(bundle: &mut Bundle) {
    bundle.set("/linux/resources/memory", json!({ "limit": 20 * MIB, "swap": 20 * MIB }));
}

/// A program that takes 100 MB under a limit of 20 is killed; `events` and `state` name the cgroup and it.
pub(crate) fn memory() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(&format!("read go < /tmp/go; {EAT}; echo code $?; exec sleep 1000"));
    with_memory(&mut bundle);
    make_gate(&bundle);
    let container = runtime.start(&bundle);
    assert_eq!(container.state()["oom"], Value::Null);
    let group = group(&runtime, container.id(), ("memory", "memory"));
    let events = Events::of(&container, &runtime, "1h");
    await_watch(&events);
    open_gate(&bundle);
    wait_until(|| container.stdout().contains("code 137\n"));
    // The program is dead, and the container lives.
    assert_eq!(container.status(), "running");
    let state = container.state();
    let oom = &state["oom"];
    assert_eq!(oom["kills"], 1, "{state}");
    assert_eq!(oom["victims"][0]["name"], "dd", "{state}");
    let path = oom["cgroup"].as_str().unwrap();
    assert!(path.contains(container.id()) && group.to_string_lossy().ends_with(path), "{state}");
    let memory = &stats(&runtime, container.id())["memory"];
    assert!(memory["usage"]["max"].as_u64().unwrap() <= 20 * MIB, "{memory}");
    assert_eq!(memory["usage"]["limit"], 20 * MIB);
    assert_eq!(memory["event_count"]["oom_kill"], 1, "{memory}");
    container.kill("KILL").success();
    let lines = events.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&line["type"], &line["id"]), (&json!("oom"), &json!(container.id())));
    assert_eq!(line["data"], json!({ "cgroup": path, "count": 1, "victims": oom["victims"] }));
    println!("memory: {line}");
    // What was killed is still told when the container has stopped.
    container.wait();
    assert_eq!(container.state()["oom"], *oom);
}

/// The container's own program is the one that is killed: the line comes before the end.
pub(crate) fn memory_of_the_first_process() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]);
    with_memory(&mut bundle);
    let container = runtime.create(&bundle);
    let events = Events::of(&container, &runtime, "1h");
    await_watch(&events);
    container.start().success();
    let lines = events.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["data"]["victims"][0]["name"], "dd", "{lines:?}");
    container.wait();
    assert_eq!(container.state()["oom"]["kills"], 1);
    println!("memory: the first process was killed, {}", lines[0]);
}

/// A FIFO that holds the container's program back until the test has made itself ready.
fn make_gate(bundle: &Bundle) {
    let path = bundle.rootfs().join("tmp/go");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
}

fn open_gate(bundle: &Bundle) {
    std::fs::write(bundle.rootfs().join("tmp/go"), "go\n").unwrap();
}

/// Waits until `events` has the descriptor that tells of kills: from then on none is missed.
fn await_watch(events: &Events) {
    let folder = format!("/proc/{}/fd", events.0.id());
    let watches = |entry: std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| {
            ["anon_inode:[eventfd]", "anon_inode:inotify"].map(Path::new).contains(&target.as_path())
        })
    };
    wait_until(|| std::fs::read_dir(&folder).unwrap().flatten().any(watches));
}

/// CPU time used by the group, in nanoseconds.
fn cpu_time(directory: &Path) -> u64 {
    let legacy = directory.join("cpuacct.usage");
    if legacy.exists() {
        return number(&legacy);
    }
    let text = std::fs::read_to_string(directory.join("cpu.stat")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    line.parse::<u64>().unwrap() * 1000
}

/// Half a processor is half a processor, within 5 %.
pub(crate) fn cpu() {
    let runtime = Runtime::new();
    // Short periods, so that one more or less at the ends of the measurement is little.
    const QUOTA_US: u32 = 25_000;
    let mut bundle = Bundle::shell("while :; do :; done");
    bundle.set("/linux/resources/cpu", json!({ "quota": QUOTA_US, "period": 2 * QUOTA_US }));
    let container = runtime.start(&bundle);
    let directory = group(&runtime, container.id(), ("cpuacct", "cpu"));
    let sample = || (Instant::now(), cpu_time(&directory), periods(&runtime, container.id()));
    let (start, before, first) = sample();
    std::thread::sleep(Duration::from_secs(3));
    let (spent, used) = (start.elapsed(), cpu_time(&directory) - before);
    let throttled = periods(&runtime, container.id()) - first;
    let share = used as f64 / spent.as_nanos() as f64;
    println!("cpu: {:.1} % of a processor, limit 50 %, throttled in {throttled} periods", share * 100.0);
    assert!(share <= 0.5 * 1.05, "{share}");
    // On a machine with other work it may get less than the limit; but where the limit held it back, it had
    // got all that the limit grants.
    let granted = throttled.saturating_sub(1) as f64 * f64::from(QUOTA_US) * 1e3;
    assert!(throttled > 0 && used as f64 >= granted * 0.95, "{used} of {granted} in {throttled} periods");
}

/// The periods in which the group was held back.
fn periods(runtime: &Runtime, id: &str) -> u64 {
    stats(runtime, id)["cpu"]["throttling"]["throttledPeriods"].as_u64().unwrap_or(0)
}

/// The fork that would be one too many fails, and the number is told.
pub(crate) fn pids() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.set("/linux/resources/pids", json!({ "limit": 4 }));
    let container = runtime.start(&bundle);
    let output = container.shell("sleep 1000 & sleep 1000 & sleep 1000 & echo all started");
    assert!(output.stderr.contains("can't fork"), "{output:?}");
    assert!(!output.stdout.contains("all started"), "{output:?}");
    let answer = stats(&runtime, container.id());
    assert_eq!(answer["pids"]["limit"], 4);
    println!("pids: {} of 4, then: {}", answer["pids"]["current"], output.stderr.trim());
}

/// A limit that is changed holds from then on.
pub(crate) fn update() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000"]));
    let id = container.id();
    let limits = ["--memory", "20M", "--memory-swap", "20M", "--pids-limit", "6", "--cpu-quota", "25000"];
    runtime.call(&[&["update"], limits.as_slice(), &[id]].concat()).success();
    assert_eq!(container.shell(EAT).code, 137);
    assert_eq!(stats(&runtime, id)["pids"]["limit"], 6);
    assert_eq!(container.state()["oom"]["kills"], 1);
    runtime.call(&["update", "--memory", "-1", "--memory-swap", "-1", "--pids-limit", "-1", id]).success();
    container.shell(EAT).success();
    println!("update: 20M killed, no limit did not");
}

/// An update that is refused half-way leaves the limits as they were.
pub(crate) fn refused_update() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.set("/linux/resources/cpu", json!({ "quota": 40_000, "period": 100_000 }));
    let container = runtime.start(&bundle);
    let directory = group(&runtime, container.id(), ("cpu", "cpu"));
    let quota = || {
        let files = ["cpu.cfs_quota_us", "cpu.max"].map(|name| std::fs::read_to_string(directory.join(name)));
        let text = files.into_iter().flatten().next().unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    runtime.call(&["update", "--cpu-quota", "30000", container.id()]).success();
    assert_eq!(quota(), 30_000);
    // The processor that there is not is refused after the quota was taken.
    let refused = runtime.call(&["update", "--cpu-quota", "20000", "--cpuset-cpus", "4000", container.id()]);
    assert!(refused.failure().contains("linux.resources.cpu.cpus"), "{refused:?}");
    assert_eq!(quota(), 30_000);
    println!("update: refused, and the quota is what it was");
}
