//! dockerd with everything of its own, driven by the docker client.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use moat_tests::wait_until;
use rustix::process::{Pid, Signal, kill_process};

use super::{Output, Place, output};

/// A daemon with namespaces, folders and a socket of its own.
pub(super) struct Docker {
    pub(super) place: Place,
    daemon: Child,
}

impl Docker {
    pub(super) fn new() -> Self {
        let place = Place::new(&["docker", "dockerd", "containerd", "runc"]);
        std::fs::write(place.path("daemon.json"), "{}").unwrap();
        let log = std::fs::File::create(place.path("log")).unwrap();
        // What it does to a firewall and to devices is done in a network namespace that ends with it.
        let mut command = place.command("unshare");
        command.args(["--net", "--", "dockerd", "--bridge", "none", "--iptables=false"]);
        command.args(["--oom-score-adjust", "0", "--storage-driver", "overlay2"]);
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.arg(format!("--cgroup-parent=/{}", place.mark));
        for (flag, name) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
            ("--config-file", "daemon.json"),
        ] {
            command.arg(flag).arg(place.path(name));
        }
        command.arg(format!("--host=unix://{}", place.path("socket").display()));
        let daemon = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut docker = Self { place, daemon };
        wait_until(|| {
            let ended = docker.daemon.try_wait().unwrap();
            let said = || std::fs::read_to_string(docker.place.path("log")).unwrap();
            assert!(ended.is_none(), "dockerd has ended: {}", said());
            UnixStream::connect(docker.place.path("socket")).is_ok()
        });
        docker
    }

    /// Makes the image `box` of a folder.
    pub(super) fn import(&self, root: &Path) {
        let tar = self.place.path("box.tar");
        let packed = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        self.call(&["import", "-c", "ENV PATH=/bin", tar.to_str().unwrap(), "box"]).success();
    }

    pub(super) fn call(&self, args: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.arg(format!("--host=unix://{}", self.place.path("socket").display())).args(args);
        command.env("DOCKER_CONFIG", self.place.path("client")).stdin(Stdio::null());
        output(command)
    }

    /// The configuration that it made for a container that runs.
    pub(super) fn config(&self, id: &str) -> PathBuf {
        self.place
            .path("exec/containerd/daemon/io.containerd.runtime.v2.task/moby")
            .join(id)
            .join("config.json")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let ids = self.call(&["ps", "--all", "--quiet"]);
        for id in ids.stdout.lines() {
            self.call(&["rm", "--force", "--volumes", id]);
        }
        let pid = Pid::from_raw(self.daemon.id().cast_signed()).unwrap();
        // It ends its containerd as well, when it is asked to.
        let _ = kill_process(pid, Signal::TERM);
        self.daemon.wait().unwrap();
    }
}
