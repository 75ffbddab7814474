//! The built `moat`, with a root of its own and an image of busybox in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::runtime::{self, Output, Started};
use crate::{bundle, leftovers};

/// The crates that the program is made of.
const CRATES: [&str; 7] = ["linux", "model", "sandbox", "image", "net", "engine", "cli"];

/// The program with a root of its own. When it is dropped, every workload is removed, and nothing may be left of any.
#[derive(Debug)]
pub struct Moat {
    program: PathBuf,
    folder: TempDir,
}

impl Default for Moat {
    fn default() -> Self {
        Self::new()
    }
}

impl Moat {
    /// The built program, and an image named `busybox`.
    pub fn new() -> Self {
        let moat = Self::empty();
        let root = moat.path("busybox");
        bundle::make_root(&root);
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/tmp:/bin/sh\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\ntape:x:26:web\n").unwrap();
        let changes = ["CMD [\"/bin/sh\"]", "ENV PATH=/bin", "LABEL org.example.kind=box"];
        let mut args = vec!["import"];
        changes.iter().for_each(|change| args.extend(["--change", change]));
        let root = root.display().to_string();
        args.extend([root.as_str(), "busybox"]);
        moat.call(&args).success();
        moat
    }

    /// The built program, and no image.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("moat-cli-").tempdir().unwrap();
        Self { program: runtime::built("moat", &CRATES), folder }
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The root of images, workloads and volumes.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The program with the root and `args`; nothing on standard input.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        // What the user of the machine has set up is nothing to a test.
        command.env("DOCKER_CONFIG", self.path("docker")).env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    /// Runs the program with `args`.
    pub fn call(&self, args: &[&str]) -> Output {
        Started::new(self.command(args)).wait().0
    }

    /// Runs the program with `args` and `input` on standard input.
    pub fn call_with(&self, args: &[&str], input: &[u8]) -> Output {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        file.rewind().unwrap();
        let mut command = self.command(args);
        command.stdin(file);
        Started::new(command).wait().0
    }

    /// `run --network none` with `args`.
    pub fn run(&self, args: &[&str]) -> Output {
        self.call(&[&["run", "--network", "none"], args].concat())
    }

    /// A workload named `name` that runs a line of shell in the background.
    #[track_caller]
    pub fn start(&self, name: &str, flags: &[&str], script: &str) -> String {
        let flags = [&["-d", "--name", name], flags, &["busybox", "sh", "-c", script]].concat();
        self.run(&flags).success().trim().to_owned()
    }

    /// The document of `inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let answer = self.call(&["inspect", name]);
        let documents: Value = serde_json::from_str(answer.success()).unwrap();
        documents[0].clone()
    }

    /// The status of a workload, as in `running`.
    #[track_caller]
    pub fn status(&self, name: &str) -> String {
        self.call(&["inspect", "--format", "{{.State.Status}}", name]).success().trim().to_owned()
    }
}

impl Drop for Moat {
    fn drop(&mut self) {
        let ids = self.call(&["ps", "--all", "--quiet", "--no-trunc"]);
        let mut left = Vec::new();
        for id in ids.stdout.lines() {
            let removed = self.call(&["rm", "--force", "--volumes", id]);
            let found = leftovers(&self.root().join("workloads"), id);
            if !found.is_empty() {
                left.push(format!("{id}: {removed:?}: {found:#?}"));
            }
        }
        let check = self.call(&["system", "check"]);
        if check.code != 0 {
            left.push(format!("{check:?}"));
        }
        // The folder of network namespaces is a mount, which can not be removed with the others.
        let _ = moat_linux::mount::unmount(&self.root().join("run/netns"));
        // A test that fails already keeps its own words.
        assert!(left.is_empty() || std::thread::panicking(), "left behind: {left:#?}");
    }
}
