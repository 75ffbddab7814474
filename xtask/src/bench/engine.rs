//! Those that run images: Moat, Podman and Docker, each with all that it keeps in the benchmark's own folder.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::contender::silent;
use crate::command;

/// The image that everybody has.
pub(super) const IMAGE: &str = "bench";
/// A place on the default network, which is a bridge for everybody, and one port of it that others reach.
pub(super) const PUBLISHED: &[&str] = &["--publish", "8080:80"];
/// The workload that stays, for `exec`.
const SLEEPER: &str = "sleeper";

/// One of those that are compared.
pub(super) struct Engine {
    pub(super) name: &'static str,
    program: PathBuf,
    /// Before the command.
    global: Vec<OsString>,
    /// What its `run` needs beside what is measured.
    own: Vec<String>,
    variables: Vec<(&'static str, PathBuf)>,
    daemon: Option<Daemon>,
}

/// Where one of them keeps what does not outlive the machine: in memory, as each does by default.
fn run(mark: &str, name: &str) -> PathBuf {
    Path::new("/run").join(mark).join(name)
}

impl Engine {
    pub(super) fn moat(program: &Path, scratch: &Path, mark: &str) -> Self {
        Self {
            name: "moat",
            program: program.to_owned(),
            global: vec![
                "--root".into(),
                scratch.join("moat").into(),
                "--run-root".into(),
                run(mark, "moat").into(),
            ],
            own: vec![format!("--cgroup-parent=/{mark}-moat")],
            variables: Vec::new(),
            daemon: None,
        }
    }

    pub(super) fn podman(scratch: &Path, mark: &str) -> Result<Self> {
        let program = command::find("podman").context("podman is not in PATH")?;
        // The hard limits of a machine may be lower than Podman's defaults.
        let networks = scratch.join("podman-networks");
        let text = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             log_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [network]\nnetwork_config_dir = {networks:?}\n"
        );
        let config = scratch.join("containers.conf");
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut global: Vec<OsString> = Vec::new();
        for (flag, folder) in [("--root", "podman"), ("--runroot", "podman-run"), ("--tmpdir", "podman-tmp")]
        {
            global.extend([flag.into(), scratch.join(folder).into()]);
        }
        global.extend(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"].map(OsString::from));
        Ok(Self {
            name: "podman",
            program,
            global,
            own: vec![format!("--cgroup-parent=/{mark}-podman")],
            variables: vec![("CONTAINERS_CONF", config)],
            daemon: None,
        })
    }

    /// Starts a daemon with namespaces, sockets and folders of its own.
    pub(super) fn docker(scratch: &Path, mark: &str) -> Result<Self> {
        let program = command::find("docker").context("docker is not in PATH")?;
        let daemon = Daemon::start(scratch, mark)?;
        Ok(Self {
            name: "docker",
            program,
            global: vec!["--host".into(), daemon.address.clone().into()],
            own: Vec::new(),
            variables: vec![("DOCKER_CONFIG", scratch.join("docker-config"))],
            daemon: Some(daemon),
        })
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.global).args(args);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command
    }

    /// `run` or `create`, with flags, of a program in the image.
    pub(super) fn make(&self, verb: &[&str], flags: &[&str], program: &[&str]) -> Command {
        let mut command = self.command(verb);
        command.args(&self.own).args(flags).arg(IMAGE).args(program);
        command
    }

    /// Reads the image, and sees that a program of it really runs: one that ends at once would win every race.
    pub(super) fn probe(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the folder's name is no text")?;
        silent(&mut self.command(&["import", archive, IMAGE]))?;
        let mut run = self.make(&["run", "--rm"], &["--network", "none"], &["echo", "it-ran"]);
        let said = command::output(&mut run)?;
        if said.trim() != "it-ran" {
            bail!("its workload should say \"it-ran\" and said {said:?}");
        }
        let mut run = self.make(&["run", "--rm"], PUBLISHED, &["cat", "/proc/net/dev"]);
        let devices = command::output(&mut run)?;
        if !devices.contains("eth0:") {
            bail!("its workload should have a network and has {devices:?}");
        }
        Ok(())
    }

    pub(super) fn run(&self, flags: &[&str]) -> Result<()> {
        silent(&mut self.make(&["run", "--rm"], flags, &["true"]))
    }

    pub(super) fn start_sleeper(&self) -> Result<()> {
        let flags = ["--name", SLEEPER, "--network", "none"];
        silent(&mut self.make(&["run", "--detach"], &flags, &["sleep", "1000000"]))
    }

    pub(super) fn exec(&self) -> Result<()> {
        silent(&mut self.command(&["exec", SLEEPER, "true"]))
    }

    /// Removes all workloads, also those that run.
    pub(super) fn clear(&self) -> Result<()> {
        let ids = command::output(&mut self.command(&["ps", "--all", "--quiet"]))?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() { Ok(()) } else { silent(self.command(&["rm", "--force"]).args(ids)) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("bench: {} keeps its workloads: {error:#}", self.name);
        }
        // Whoever asks the daemon has done so.
        drop(self.daemon.take());
    }
}

/// dockerd, which ends with this.
struct Daemon {
    process: Child,
    address: String,
}

impl Daemon {
    fn start(scratch: &Path, mark: &str) -> Result<Self> {
        let daemon = command::find("dockerd").context("dockerd is not in PATH")?;
        let folder = scratch.join("docker");
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let socket = folder.join("docker.sock");
        let log = folder.join("log");
        let log = std::fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new("unshare");
        // A network namespace of its own: what it does to a firewall is done there.
        command.args(["--mount", "--net", "--propagation", "slave", "--", "sh", "-ec"]);
        command.args(["ip link set lo up; exec \"$0\" \"$@\""]).arg(daemon);
        command.args(["--oom-score-adjust", "0"]);
        command.args(["--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &format!("/{mark}-docker")]);
        for (flag, name) in [
            ("--data-root", "data"),
            ("--exec-root", "run"),
            ("--pidfile", "pid"),
            ("--config-file", "config"),
        ] {
            command.arg(flag).arg(folder.join(name));
        }
        std::fs::write(folder.join("config"), "{}").context("cannot write dockerd's configuration")?;
        let address = format!("unix://{}", socket.display());
        command.args(["--host", &address]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().context("cannot start dockerd")?;
        let mut daemon = Self { process, address };
        while UnixStream::connect(&socket).is_err() {
            if let Some(status) = daemon.process.try_wait().context("dockerd")? {
                let said = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                bail!("dockerd ended with {status}: {}", said.lines().last().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
            // It ends its containerd, too, when it is asked to.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}
