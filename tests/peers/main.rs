//! Those who drive an OCI runtime: Podman and containerd, with `moat-runtime` in runc's place.
//!
//! All that they keep lies in a temporary folder, and all that they mount in a mount namespace of the
//! test's own, where /run is empty. Their cgroups lie below one that is removed with them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails, and says where"
)]

mod configs;
mod containerd;
mod copies;
mod docker;
mod podman;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use moat_tests::{Bundle, Pty, leftovers, read_master, wait_until};
use tempfile::TempDir;

/// How a command ended.
#[derive(Debug)]
struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Output {
    #[track_caller]
    fn success(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// The command ended with `code` and words of these on standard error.
    #[track_caller]
    fn fails(&self, code: i32, words: &str) {
        assert!(self.code == code && self.stderr.contains(words), "not {code} {words:?}: {self:?}");
    }
}

/// A mount namespace of the test's own, kept open by a shell, and a folder that goes with it.
struct Place {
    holder: Child,
    folder: TempDir,
    bundle: Bundle,
    /// In the name of every cgroup.
    mark: String,
}

impl Place {
    /// `needed` are the programs that have to be installed.
    fn new(needed: &[&str]) -> Self {
        for program in needed {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
            assert!(found, "{program} is not installed: `cargo xtask test` installs what the tests need");
        }
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("moat-peer-{}-{}x", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix(&mark).tempdir().unwrap();
        let ready = folder.path().join("ready");
        let script = format!("mount -t tmpfs none /run; : > {}; read line", ready.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]).stdin(Stdio::piped());
        let holder = command.spawn().unwrap();
        wait_until(|| ready.exists());
        Self { holder, folder, bundle: Bundle::new(&["true"]), mark }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rootfs(&self) -> PathBuf {
        self.bundle.rootfs()
    }

    /// A program in the mount namespace.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg("--target").arg(self.holder.id().to_string()).args(["--", program]);
        command.env("HOME", self.folder.path()).env("TMPDIR", self.folder.path()).stdin(Stdio::null());
        command
    }

    /// What still names the test.
    fn leftovers(&self) -> Vec<String> {
        leftovers(Path::new("/nowhere"), &self.mark)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
        // What watched the last container may be about to end.
        wait_until(|| {
            remove_groups(Path::new("/sys/fs/cgroup"), &self.mark, false);
            self.leftovers().is_empty() || std::thread::panicking()
        });
    }
}

/// Removes the groups whose name holds the mark, and those below: the peers leave their parents behind.
fn remove_groups(folder: &Path, mark: &str, inside: bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let inside = inside || entry.file_name().to_string_lossy().contains(mark);
        remove_groups(&entry.path(), mark, inside);
        if inside {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn output(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs a command on a terminal; what it writes to it is in `stdout`.
fn in_terminal(mut command: Command) -> Output {
    let mut terminal = Pty::new();
    let slave = terminal.open();
    let copy = || slave.try_clone().unwrap();
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    // Only the command may hold the other side, or it would never be seen to be closed.
    drop((slave, command));
    let stdout = read_master(&mut terminal.master);
    Output { code: child.wait().unwrap().code().unwrap_or(-1), stdout, stderr: String::new() }
}
