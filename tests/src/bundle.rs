//! A bundle in a temporary folder: busybox and the configuration that runc proposes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

const FOLDERS: [&str; 7] = ["bin", "dev", "etc", "proc", "sys", "tmp", "root"];

/// Listed, not asked for: starting busybox to list them is slow in an emulated host.
const APPLETS: &str = "ash awk basename cat chmod chown cmp cp cut date dd df dirname dmesg du echo env \
    expr false find free grep head hostname id ifconfig ip kill ln ls mkdir mkfifo mknod mktemp mount mv nc \
    nproc nsenter nslookup od pidof ping pivot_root printenv printf ps pwd readlink realpath rm rmdir sed seq setsid \
    sh sha256sum sleep sort stat strings stty sync sysctl tail tee test timeout touch tr true truncate tty \
    umount uname uniq unshare usleep wc which whoami xargs yes";

/// A bundle. Its configuration is on disk after every change; the folder goes when this and
/// every [`Runtime`](crate::Runtime) that was given it are dropped.
#[derive(Debug)]
pub struct Bundle {
    folder: Arc<TempDir>,
    config: Value,
}

impl Bundle {
    /// A bundle whose program is `args`, found in a root file system of busybox.
    pub fn new(args: &[&str]) -> Self {
        // Others may search it: a container with a user namespace has to reach its root.
        let open = std::fs::Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("moat-bundle-").permissions(open).tempdir().unwrap();
        let mut bundle = Self { folder: Arc::new(folder), config: default_config() };
        make_root(&bundle.rootfs());
        bundle.args(args);
        bundle
    }

    /// A bundle whose program is a line of shell.
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder for as long as the answer lives.
    pub(crate) fn keep(&self) -> Arc<TempDir> {
        Arc::clone(&self.folder)
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Sets `process.args`.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.set("/process/args", json!(args))
    }

    /// Sets what a JSON pointer names; objects on the way are made.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let mut place = &mut self.config;
        for part in pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            place = match place {
                Value::Array(list) => list.get_mut(part.parse::<usize>().unwrap()).unwrap(),
                other => &mut other[part.as_str()],
            };
        }
        *place = value;
        self.save()
    }

    /// Adds to the list that a JSON pointer names; it is made where there is none.
    pub fn push(&mut self, pointer: &str, value: Value) -> &mut Self {
        let mut list = self.config.pointer(pointer).cloned().unwrap_or_else(|| json!([]));
        list.as_array_mut().unwrap_or_else(|| panic!("{pointer} is no list")).push(value);
        self.set(pointer, list)
    }

    /// Removes what a JSON pointer names.
    pub fn remove(&mut self, pointer: &str) -> &mut Self {
        let (above, name) = pointer.rsplit_once('/').unwrap();
        match self.config.pointer_mut(above) {
            Some(Value::Object(map)) => drop(map.remove(name)),
            Some(Value::Array(list)) => drop(list.remove(name.parse().unwrap())),
            _ => panic!("{above} does not exist"),
        }
        self.save()
    }

    /// Keeps those entries of `linux.namespaces` whose type is wanted.
    pub fn retain_namespaces(&mut self, wanted: impl Fn(&str) -> bool) -> &mut Self {
        let list = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| wanted(namespace["type"].as_str().unwrap()));
        self.save()
    }

    /// Removes the mount at a destination.
    pub fn remove_mount(&mut self, destination: &str) -> &mut Self {
        let list = self.config["mounts"].as_array_mut().unwrap();
        list.retain(|mount| mount["destination"] != destination);
        self.save()
    }

    /// Writes an executable script into the root file system.
    pub fn script(&self, path: &str, text: &str) -> &Self {
        self.file(path, text);
        let path = self.rootfs().join(path);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Writes a file into the root file system; folders on the way are made.
    pub fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.rootfs().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Copies a program of the host's into the root file system.
    pub fn program(&self, from: impl AsRef<Path>, path: &str) -> &Self {
        std::fs::copy(from, self.rootfs().join(path)).unwrap();
        self
    }

    /// Makes a symbolic link in the root file system, in place of whatever is there.
    pub fn link(&self, target: impl AsRef<Path>, path: &str) -> &Self {
        let path = self.rootfs().join(path);
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            let _ = std::fs::remove_file(&path);
        }
        symlink(target, path).unwrap();
        self
    }

    fn save(&mut self) -> &mut Self {
        std::fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        self
    }
}

/// A root file system of busybox.
pub fn make_root(root: &Path) {
    for folder in FOLDERS {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let busybox =
        std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.is_file());
    let busybox = busybox.expect("busybox is not in PATH: it is the package busybox-static");
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
}

/// What `runc spec` writes, without a terminal and with a cgroup namespace.
pub fn default_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "moat",
        "mounts": default_mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

fn default_mounts() -> Value {
    let mount = |kind: &str, source: &str, destination: &str, options: &[&str]| json!({ "type": kind, "source": source, "destination": destination, "options": options });
    json!([
        mount("proc", "proc", "/proc", &[]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}
