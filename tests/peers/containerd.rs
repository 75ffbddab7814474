//! containerd with its stock shim `io.containerd.runc.v2`, told by `ctr run --runc-binary`.

use std::process::{Child, Command, Stdio};

use moat_tests::{program, wait_until};

use super::{Output, Place, in_terminal, output};

struct Containerd {
    daemon: Child,
    place: Place,
}

impl Containerd {
    fn new() -> Self {
        let place = Place::new(&["containerd", "ctr", "containerd-shim-runc-v2"]);
        let folder = place.folder.path().display();
        let configuration = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{folder}/socket\"\n"
        );
        std::fs::write(place.path("config.toml"), configuration).unwrap();
        let log = std::fs::File::create(place.path("log")).unwrap();
        let mut command = place.command("containerd");
        command.arg("--config").arg(place.path("config.toml"));
        let daemon = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let containerd = Self { daemon, place };
        wait_until(|| containerd.call(&["version"]).code == 0);
        containerd
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command("ctr");
        command.arg("--address").arg(self.place.path("socket")).args(args);
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        output(self.command(args))
    }

    /// The arguments of `run` with flags, a name, and a program.
    fn run_command(&self, flags: &[&str], id: &str, args: &[&str]) -> Command {
        let mut command = self.command(&["run", "--runtime", "io.containerd.runc.v2", "--runc-binary"]);
        command.arg(program()).args(["--env", "PATH=/bin"]);
        command.arg("--cgroup").arg(format!("/{}/{id}", self.place.mark)).args(flags);
        command.arg("--rootfs").arg(self.place.rootfs()).arg(id).args(args);
        command
    }

    fn run(&self, flags: &[&str], id: &str, args: &[&str]) -> Output {
        output(self.run_command(flags, id, args))
    }

    fn status(&self, id: &str) -> String {
        let listed = self.call(&["task", "ls"]);
        let line =
            listed.success().lines().find(|line| line.starts_with(&format!("{id} "))).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(2).map(str::to_owned)).unwrap_or_default()
    }

    fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Output {
        self.call(&[&["task", "exec", "--exec-id", exec, id], args].concat())
    }
}

/// ctr may give up a FIFO of a process that ends before it has opened it: one in some hundred on a busy
/// machine. This one lives longer.
fn slow(script: &str) -> String {
    format!("{script}; sleep 0.3")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for line in self.call(&["task", "ls", "--quiet"]).stdout.lines() {
            self.call(&["task", "rm", "--force", line]);
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.daemon),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        self.daemon.wait().unwrap();
        // Shims end by themselves when their last task is deleted.
        let shim = |line: &String| line.starts_with("process ") && line.contains("containerd-shim");
        wait_until(|| !self.place.leftovers().iter().any(shim));
    }
}

#[test]
fn runs() {
    let containerd = Containerd::new();
    let run =
        |flags: &[&str], id: &str, args: &[&str]| containerd.run(&[&["--rm"], flags].concat(), id, args);
    assert_eq!(run(&[], "out", &["sh", "-c", &slow("echo hello")]).success(), "hello\n");
    assert_eq!(run(&[], "code", &["sh", "-c", "exit 7"]).code, 7);
    run(&[], "nosuch", &["nosuch"])
        .fails(1, "OCI runtime create failed: exec: \"nosuch\": executable file not found in $PATH");
    let status = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | cut -f2";
    assert_eq!(
        run(&["--seccomp", "--read-only"], "filter", &["sh", "-c", &slow(status)]).success(),
        "1\n2\n"
    );
    run(&["--read-only"], "ro", &["touch", "/file"]).fails(1, "Read-only file system");
    run(&["--privileged", "--net-host"], "all", &["true"]).success();
    assert_eq!(
        run(&["--cwd", "/tmp", "--env", "A=b"], "place", &["sh", "-c", &slow("echo $A $PWD")]).success(),
        "b /tmp\n"
    );
    run(&["--memory-limit", "50000000", "--cpus", "0.5"], "limits", &["true"]).success();
}

#[test]
fn the_life_of_a_task() {
    let containerd = Containerd::new();
    containerd
        .run(&["--detach"], "one", &["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"])
        .success();
    assert_eq!(containerd.status("one"), "RUNNING");
    assert_eq!(containerd.exec("one", "a", &["sh", "-c", &slow("echo in")]).success(), "in\n");
    assert_eq!(containerd.exec("one", "b", &["sh", "-c", "exit 5"]).code, 5);
    containerd.exec("one", "c", &["nosuch"]).fails(1, "executable file not found in $PATH");
    let user = ["task", "exec", "--exec-id", "d", "--user", "5", "one", "sh", "-c", "exit $(id -u)"];
    assert_eq!(containerd.call(&user).code, 5);
    let processes = containerd.call(&["task", "ps", "one"]);
    assert!(processes.success().lines().count() >= 2, "{processes:?}");
    let metrics = containerd.call(&["task", "metrics", "one"]);
    assert!(metrics.success().contains("cpu"), "{metrics:?}");
    containerd.call(&["task", "pause", "one"]).success();
    assert_eq!(containerd.status("one"), "PAUSED");
    assert_ne!(containerd.exec("one", "e", &["true"]).code, 0);
    containerd.call(&["task", "resume", "one"]).success();
    assert_eq!(containerd.exec("one", "f", &["sh", "-c", &slow("echo again")]).success(), "again\n");
    containerd.call(&["task", "kill", "--signal", "TERM", "one"]).success();
    wait_until(|| containerd.status("one") == "STOPPED");
    let deleted = containerd.call(&["task", "delete", "one"]);
    assert!(deleted.stderr.contains("exit code 9"), "{deleted:?}");
    containerd.call(&["container", "rm", "one"]).success();
    containerd.run(&["--detach"], "two", &["sleep", "1000"]).success();
    containerd.call(&["task", "kill", "--signal", "KILL", "--all", "two"]).success();
    wait_until(|| containerd.status("two") == "STOPPED");
    let deleted = containerd.call(&["task", "delete", "two"]);
    assert!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
    containerd.run(&["--detach"], "three", &["sleep", "1000"]).success();
    containerd.call(&["task", "rm", "--force", "three"]);
    assert_eq!(containerd.status("three"), "");
}

#[test]
fn terminals() {
    let containerd = Containerd::new();
    let command = containerd.run_command(&["--rm", "--tty"], "one", &["sh", "-c", "tty; exit 4"]);
    let said = in_terminal(command);
    assert!(said.code == 4 && said.stdout.contains("/dev/pts/0"), "{said:?}");
}
