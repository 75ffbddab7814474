//! SIGKILL at any system call of `run`, `start` and `rm`, of the monitor and of the workload's first process: what is
//! left is found and mended, and the next one builds on it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use moat_tests::{Moat, Point, killed_at, points, wait_until};

/// How many points of each command are tried.
const TURNS: usize = 60;

struct House {
    moat: Moat,
    /// The control groups of its workloads lie below a group of this name, which nobody else uses.
    parent: String,
}

impl House {
    fn new(name: &str) -> Self {
        Self { moat: Moat::new(), parent: format!("moat-killed-{name}-{}", std::process::id()) }
    }

    /// `run` or `create` with the flags of this house.
    fn line<'a>(&'a self, verb: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
        [&[verb, "--network", "none", "--cgroup-parent", &self.parent], flags].concat()
    }

    /// After a repair nothing is wrong, and what is there can be removed.
    #[track_caller]
    fn is_mended(&self, when: &str) {
        let mended = self.moat.call(&["system", "check", "--repair"]);
        assert_eq!(mended.code, 0, "{when}: {mended:?}");
        let again = self.moat.call(&["system", "check"]);
        assert_eq!(again.code, 0, "{when}: after {mended:?}: {again:?}");
        let listed = self.moat.call(&["ps", "-aq", "--no-trunc"]);
        for id in listed.success().lines() {
            self.moat.call(&["rm", "--force", "--volumes", id]).success();
        }
        let left = self.left();
        assert!(left.is_empty(), "{when}: {left:#?}\n{mended:?}");
    }

    /// Whatever a workload has while there is one.
    fn left(&self) -> Vec<String> {
        let mut left = moat_tests::leftovers(Path::new("/nowhere"), &self.parent);
        // The group itself stays, as another's would.
        let own = |line: &String| line.ends_with(&format!("/{}", self.parent));
        left.retain(|line| !(line.starts_with("cgroup ") && own(line)));
        let root = self.moat.root();
        for folder in
            ["workloads", "names", "removing", "volumes", "images/holds", "run/workloads", "run/runtime"]
        {
            let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = root.display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        left
    }

    /// Kills `args` at points over its whole run, after `prepare` each time; gives how often which process was killed.
    #[track_caller]
    fn harm(&self, prepare: impl Fn(), args: &[&str]) -> [usize; 3] {
        let trace = self.moat.path("trace");
        let command = self.moat.command(args);
        prepare();
        let all = points(&command, &trace);
        self.is_mended("nobody was killed");
        let mut seen: HashSet<(&str, usize)> = HashSet::new();
        let mut killed = [0; 3];
        for point in spread(&all) {
            if !seen.insert((&point.call, point.nth)) {
                continue;
            }
            prepare();
            let found = killed_at(&command, point, &trace);
            for process in found.processes {
                killed[process.min(2)] += 1;
            }
            self.is_mended(&format!("{args:?} killed at {point:?}"));
        }
        killed
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let below = |folder: PathBuf| folder.join(&self.parent);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for group in hierarchies.map(|entry| below(entry.path())).chain([below("/sys/fs/cgroup".into())]) {
            // Most hierarchies have none.
            let _ = fs::remove_dir(group);
        }
    }
}

/// Points from the first call to the last.
fn spread(all: &[Point]) -> impl Iterator<Item = &Point> {
    let step = all.len().div_ceil(TURNS).max(1);
    all.iter().step_by(step)
}

#[test]
fn run_and_what_it_starts() {
    let house = House::new("run");
    let line = house.line("run", &["--name", "killed", "-v", "/kept", "busybox", "sh", "-c", "echo hello"]);
    let [command, monitor, first] = house.harm(|| (), &line);
    assert!(command >= 10 && monitor >= 5 && first >= 5, "{command} {monitor} {first} were killed");
    house.moat.call(&line).success();
}

#[test]
fn run_that_removes_what_it_ran() {
    let house = House::new("rm");
    let line = house.line("run", &["--rm", "--name", "killed", "-v", "/kept", "busybox", "true"]);
    let [command, monitor, first] = house.harm(|| (), &line);
    assert!(command >= 10 && monitor >= 5 && first >= 5, "{command} {monitor} {first} were killed");
    house.moat.call(&line).success();
    assert_eq!(house.left(), Vec::<String>::new());
}

#[test]
fn start_of_what_is_started_again() {
    let house = House::new("start");
    let flags = ["--name", "killed", "--restart", "on-failure:1", "-v", "kept:/kept", "busybox", "false"];
    let create = house.line("create", &flags);
    let prepare = || {
        // A volume with a name is nobody's.
        house.moat.call(&["volume", "rm", "--force", "kept"]).success();
        house.moat.call(&create).success();
    };
    let trace = house.moat.path("trace");
    let start = house.moat.command(&["start", "killed"]);
    prepare();
    let all = points(&start, &trace);
    let mut killed = [0; 3];
    for point in spread(&all) {
        house.moat.call(&["rm", "-f", "killed"]).success();
        prepare();
        for process in killed_at(&start, point, &trace).processes {
            killed[process.min(2)] += 1;
        }
        let when = format!("start killed at {point:?}");
        let mended = house.moat.call(&["system", "check", "--repair"]);
        assert_eq!(mended.code, 0, "{when}: {mended:?}");
        let again = house.moat.call(&["system", "check"]);
        assert_eq!(again.code, 0, "{when}: after {mended:?}: {again:?}");
        // It is still there, and can be started.
        assert_ne!(house.moat.status("killed"), "running", "{when}");
        house.moat.call(&["start", "--attach", "killed"]);
        // Its policy starts it once more.
        wait_until(|| house.moat.status("killed") == "exited");
        assert_eq!(house.moat.inspect("killed")["State"]["ExitCode"], 1, "{when}");
    }
    house.moat.call(&["rm", "-f", "killed"]).success();
    house.moat.call(&["volume", "rm", "kept"]).success();
    assert_eq!(house.left(), Vec::<String>::new());
    assert!(killed.iter().all(|count| *count >= 5), "{killed:?} were killed");
}

#[test]
fn rm_of_what_runs_and_of_what_has_ended() {
    let house = House::new("remove");
    let flags = ["-d", "--name", "killed", "-v", "/kept", "busybox", "sh", "-c"];
    for (script, verb) in [
        ("while :; do sleep 1; done", &["rm", "-f", "-v", "killed"][..]),
        ("exit 3", &["rm", "-v", "killed"]),
    ] {
        let line = house.line("run", &[&flags[..], &[script]].concat());
        let prepare = || {
            house.moat.call(&line).success();
            if script.starts_with("exit") {
                wait_until(|| house.moat.status("killed") == "exited");
            }
        };
        let [command, ..] = house.harm(prepare, verb);
        assert!(command >= 30, "{verb:?}: {command} were killed");
    }
}
