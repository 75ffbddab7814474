//! `podman --runtime moat-runtime`.

use std::path::Path;
use std::process::Command;

use moat_tests::{in_lab, program, run_in_lab, wait_until};
use serde_json::Value;

use super::{Output, Place, in_terminal, output};

/// Podman with everything of its own, and an image `box` of busybox.
pub(super) struct Podman {
    pub(super) place: Place,
}

impl Podman {
    fn new() -> Self {
        let place = Place::new(&["podman", "conmon", "tar"]);
        // The hard limits of the machine may be lower than Podman's defaults.
        let configuration = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             log_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        std::fs::write(place.path("containers.conf"), configuration).unwrap();
        let podman = Self { place };
        podman.import(&podman.place.rootfs());
        podman
    }

    /// As [`Podman::new`], with an image of the folder `root`.
    pub(super) fn of(root: &Path) -> Self {
        let podman = Self::new();
        podman.import(root);
        podman
    }

    fn import(&self, root: &Path) {
        let tar = self.place.path("box.tar");
        let packed = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        self.call(&["import", "--change", "ENV PATH=/bin", tar.to_str().unwrap(), "box"]).success();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command("podman");
        for (flag, folder) in [("--root", "root"), ("--runroot", "runroot"), ("--tmpdir", "tmpdir")] {
            command.arg(flag).arg(self.place.path(folder));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(program()).args(args);
        command.env("CONTAINERS_CONF", self.place.path("containers.conf"));
        command
    }

    pub(super) fn call(&self, args: &[&str]) -> Output {
        output(self.command(args))
    }

    /// `run --rm` with flags, the image and a program.
    fn run(&self, flags: &[&str], args: &[&str]) -> Output {
        let parent = format!("/{}", self.place.mark);
        let common = ["run", "--rm", "--network", "none", "--cgroup-parent", &parent];
        self.call(&[&common, flags, &["box"], args].concat())
    }

    /// `run -d` of a name.
    fn start(&self, name: &str, script: &str) {
        let parent = format!("/{}", self.place.mark);
        let flags = ["run", "-d", "--name", name, "--network", "none", "--cgroup-parent", &parent, "box"];
        self.call(&[&flags[..], &["sh", "-c", script]].concat()).success();
    }

    fn inspect(&self, name: &str, format: &str) -> String {
        self.call(&["inspect", "--format", format, name]).success().trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self.call(&["rm", "--all", "--force", "--time", "0"]);
        assert!(removed.code == 0 || std::thread::panicking(), "{removed:?}");
    }
}

/// The limit reaches the kernel, and who goes beyond it is killed: on this machine, and below on cgroup v2.
#[test]
fn memory_limit() {
    let podman = Podman::new();
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
    assert_eq!(podman.run(&["--memory", "20m"], &["sh", "-c", limit]).success(), "20971520\n");
    // What is no line is kept in memory until it ends.
    let greedy = podman.run(&["--memory", "20m", "--memory-swap", "20m"], &["sh", "-c", "tail < /dev/zero"]);
    assert_eq!(greedy.code, 137, "{greedy:?}");
}

#[test]
fn memory_limit_on_cgroup_v2() {
    if in_lab() { memory_limit() } else { run_in_lab("podman::memory_limit_on_cgroup_v2") }
}

#[test]
fn exit_codes() {
    let podman = Podman::new();
    assert_eq!(podman.run(&[], &["echo", "hello"]).success(), "hello\n");
    assert_eq!(podman.run(&[], &["sh", "-c", "exit 7"]).code, 7);
    podman.run(&[], &["nosuch"]).fails(127, "exec: \"nosuch\": executable file not found in $PATH");
    podman.run(&[], &["/bin/nosuch"]).fails(127, "exec: \"/bin/nosuch\": no such file or directory");
    podman.run(&[], &["/etc/passwd"]).fails(126, "exec: \"/etc/passwd\": permission denied");
    podman.run(&[], &["/etc"]).fails(126, "exec: \"/etc\"");
}

#[test]
fn confinement() {
    let podman = Podman::new();
    let status = |flags: &[&str], name: &str| {
        let script = format!("grep ^{name}: /proc/self/status | cut -f2");
        podman.run(flags, &["sh", "-c", &script]).success().trim().to_owned()
    };
    assert_eq!(status(&[], "Seccomp"), "2");
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
    assert_eq!(status(&["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
    assert_eq!(status(&["--cap-drop", "all", "--cap-add", "chown"], "CapEff"), "0000000000000001");
    assert_eq!(status(&["--user", "1000:1001"], "CapEff"), "0000000000000000");
    assert_eq!(podman.run(&["--user", "1000:1001"], &["sh", "-c", "id -u; id -g"]).success(), "1000\n1001\n");
    podman.run(&["--read-only"], &["touch", "/file"]).fails(1, "Read-only file system");
    podman.run(&["--read-only"], &["touch", "/tmp/file"]).success();
    podman.run(&["--security-opt", "mask=/etc/group"], &["cat", "/etc/group"]).success();
    let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let said =
        podman.run(&maps, &["sh", "-c", "cat /proc/self/uid_map; stat -c %u /bin/busybox; echo > /dev/null"]);
    let words: Vec<&str> = said.success().split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0"]);
    podman.run(&["--userns", "host"], &["true"]).success();
    let parent = format!("/{}", podman.place.mark);
    let host = [
        "run",
        "--rm",
        "--network",
        "host",
        "--cgroup-parent",
        &parent,
        "box",
        "readlink",
        "/proc/self/ns/net",
    ];
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(podman.call(&host).success().trim(), own.to_str().unwrap());
    assert_eq!(podman.run(&["--hostname", "mine"], &["hostname"]).success(), "mine\n");
    assert_eq!(podman.run(&["--umask", "0077"], &["sh", "-c", "umask"]).success(), "0077\n");
    assert_eq!(
        podman.run(&["--oom-score-adj", "500"], &["cat", "/proc/self/oom_score_adj"]).success(),
        "500\n"
    );
    let limits = ["--ulimit", "nofile=100:200", "--ulimit", "nproc=1024:1024"];
    assert_eq!(podman.run(&limits, &["sh", "-c", "ulimit -n; ulimit -Hn"]).success(), "100\n200\n");
    let limited = ["--memory", "100m", "--pids-limit", "33", "--cpus", "0.5"];
    podman.run(&limited, &["true"]).success();
}

#[test]
fn files() {
    let podman = Podman::new();
    let shared = podman.place.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let volume = |options: &str| format!("{}:/mine:{options}", shared.display());
    podman.run(&["--volume", &volume("rw")], &["sh", "-c", "echo content > /mine/file"]).success();
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "content\n");
    podman.run(&["--volume", &volume("ro")], &["touch", "/mine/file"]).fails(1, "Read-only file system");
    assert_eq!(podman.run(&["--volume", "named:/mine"], &["ls", "/mine"]).success(), "");
    let tmpfs = podman.run(&["--tmpfs", "/mine:size=1m"], &["sh", "-c", "grep ' /mine ' /proc/mounts"]);
    assert!(tmpfs.success().contains("size=1024k"), "{tmpfs:?}");
    let shm = podman.run(&["--shm-size", "5m"], &["sh", "-c", "grep ' /dev/shm ' /proc/mounts"]);
    assert!(shm.success().contains("size=5120k"), "{shm:?}");
    podman.run(&["--device", "/dev/fuse"], &["test", "-c", "/dev/fuse"]).success();
    podman.run(&["--privileged"], &["test", "-e", "/dev/fuse"]).success();
}

#[test]
fn the_life_of_a_container() {
    let podman = Podman::new();
    podman.start("one", "trap 'exit 9' TERM; echo begun; while :; do sleep 0.1; done");
    assert_eq!(podman.inspect("one", "{{.State.Status}}"), "running");
    wait_until(|| podman.call(&["logs", "one"]).success() == "begun\n");
    assert_eq!(podman.call(&["exec", "one", "echo", "in"]).success(), "in\n");
    assert_eq!(podman.call(&["exec", "one", "sh", "-c", "exit 5"]).code, 5);
    podman.call(&["exec", "one", "nosuch"]).fails(127, "executable file not found");
    podman.call(&["exec", "one", "/etc/passwd"]).fails(126, "permission denied");
    podman.call(&["exec", "--workdir", "/nowhere", "one", "true"]).fails(127, "/nowhere");
    let user = podman.call(&["exec", "--user", "5:6", "one", "id"]);
    assert!(user.success().starts_with("uid=5 gid=6"), "{user:?}");
    let place =
        podman.call(&["exec", "--env", "A=b", "--workdir", "/tmp", "one", "sh", "-c", "echo $A $PWD"]);
    assert_eq!(place.success(), "b /tmp\n");
    assert!(podman.call(&["top", "one", "pid", "comm"]).success().contains("1           sh"));
    let stats = podman.call(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "one"]);
    assert!(stats.success().starts_with(['1', '2']), "{stats:?}");
    let joined = podman.run(&["--pid", "container:one", "--ipc", "container:one"], &["ps"]);
    assert!(joined.success().contains("trap 'exit 9' TERM"), "{joined:?}");
    podman.call(&["pause", "one"]).success();
    assert_eq!(podman.inspect("one", "{{.State.Status}}"), "paused");
    podman.call(&["exec", "one", "true"]).fails(255, "can only create exec sessions on running containers");
    podman.call(&["unpause", "one"]).success();
    podman.call(&["exec", "one", "true"]).success();
    podman.call(&["kill", "--signal", "TERM", "one"]).success();
    assert_eq!(podman.call(&["wait", "one"]).success(), "9\n");
    assert_eq!(podman.inspect("one", "{{.State.Status}} {{.State.ExitCode}}"), "exited 9");
    podman.call(&["start", "one"]).success();
    podman.call(&["stop", "--time", "20", "one"]).success();
    assert_eq!(podman.inspect("one", "{{.State.ExitCode}}"), "9");
    podman.call(&["rm", "one"]).success();
}

#[test]
fn a_container_that_does_not_end_is_killed() {
    let podman = Podman::new();
    podman.start("one", "trap '' TERM; sleep 1000");
    podman.call(&["stop", "--time", "1", "one"]).success();
    assert_eq!(podman.inspect("one", "{{.State.ExitCode}}"), "137");
    podman.start("two", "sleep 1000");
    podman.call(&["pause", "two"]).success();
    podman.call(&["rm", "--force", "--time", "0", "two"]).success();
}

#[test]
fn terminals() {
    let podman = Podman::new();
    let parent = format!("/{}", podman.place.mark);
    let flags = ["run", "--rm", "-it", "--network", "none", "--cgroup-parent", &parent, "box", "sh", "-c"];
    let run = in_terminal(podman.command(&[&flags[..], &["tty; test -c /dev/console && exit 4"]].concat()));
    assert!(run.code == 4 && run.stdout.contains("/dev/pts/0"), "{run:?}");
    podman.start("one", "sleep 1000");
    let exec = in_terminal(podman.command(&["exec", "-it", "one", "tty"]));
    assert!(exec.success().contains("/dev/pts/0"), "{exec:?}");
}

#[test]
fn hooks_and_inits() {
    let podman = Podman::new();
    let hooks = podman.place.path("hooks");
    std::fs::create_dir(&hooks).unwrap();
    let told = podman.place.path("told");
    let script = format!("cat >> {0}; echo >> {0}", told.display());
    let hook = serde_json::json!({
        "version": "1.0.0", "when": { "always": true },
        "hook": { "path": "/bin/sh", "args": ["sh", "-c", script] },
        "stages": ["createRuntime", "poststart", "poststop"],
    });
    std::fs::write(hooks.join("told.json"), hook.to_string()).unwrap();
    let parent = format!("/{}", podman.place.mark);
    let run = ["run", "--network", "none", "--cgroup-parent", &parent, "--name", "one", "box", "true"];
    podman.call(&[&["--hooks-dir", hooks.to_str().unwrap()], &run[..]].concat()).success();
    podman.call(&["rm", "--force", "one"]).success();
    let text = std::fs::read_to_string(told).unwrap();
    let states = text.lines().filter(|line| !line.is_empty());
    let word =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["status"].as_str().unwrap().to_owned();
    assert_eq!(states.map(word).collect::<Vec<_>>(), ["creating", "running", "stopped"]);
}
