//! An engine of a test's own, with an image that is made of Debian's static busybox.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use moat_engine::image::{ImportSpec, Reference, RunConfig, import, silent};
use moat_engine::{Engine, LogQuery, RemoveOptions, Roots, StartOptions, Workload};
use moat_model::workload::{NetworkMode, WorkloadSpec};

pub(crate) struct House {
    pub engine: Engine,
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots::find(Some(&folder.path().join("moat")), None).unwrap();
        let house = Self { engine: Engine::open(&roots).unwrap(), folder };
        house.make_image("box", RunConfig::default(), |_| {});
        house
    }

    /// A path in the test's own folder.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Makes an image of busybox and what `furnish` puts beside it.
    pub(crate) fn make_image(&self, name: &str, config: RunConfig, furnish: impl FnOnce(&Path)) {
        let root = self.path(&format!("image-{name}"));
        for folder in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "ls", "cat", "id", "mkdir", "rm", "mv", "ln", "sleep", "stat", "touch", "mount", "env",
            "pwd", "hostname", "echo", "head", "dd", "true", "chmod", "chown", "readlink", "test", "wc",
            "find", "grep",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv/web:/bin/sh\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:44:\nmedia:x:55:web\n").unwrap();
        furnish(&root);
        let spec =
            ImportSpec { name: Some(Reference::parse(name).unwrap()), config, ..ImportSpec::default() };
        import(self.engine.images(), &root, spec, &silent).unwrap();
    }

    /// A wish for a shell line in the image `box`.
    pub(crate) fn shell(&self, line: &str) -> WorkloadSpec {
        let mut spec = WorkloadSpec {
            image: "box".to_owned(),
            command: ["sh", "-c", line].map(str::to_owned).to_vec(),
            ..WorkloadSpec::default()
        };
        spec.network.mode = NetworkMode::None;
        spec
    }

    /// Starts a workload that goes on.
    pub(crate) fn start(&self, spec: WorkloadSpec) -> Workload {
        match self.engine.run(spec, &StartOptions::default()) {
            Ok((workload, _)) => workload,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a workload to its end: its exit code and its output. It is removed.
    pub(crate) fn run(&self, spec: WorkloadSpec) -> (i32, String) {
        let workload = self.start(spec);
        let code = workload.wait().unwrap().code;
        let output = output(&workload);
        workload.remove(&RemoveOptions { force: false, volumes: true }).unwrap();
        (code, output)
    }

    /// The output of a workload that succeeds.
    pub(crate) fn output(&self, spec: WorkloadSpec) -> String {
        let (code, output) = self.run(spec);
        assert_eq!(code, 0, "{output}");
        output
    }

    /// Why a workload can not be run.
    pub(crate) fn refusal(&self, spec: WorkloadSpec) -> String {
        match self.engine.run(spec, &StartOptions::default()) {
            Ok(_) => panic!("it runs"),
            Err(error) => {
                for workload in self.engine.list().unwrap() {
                    workload.remove(&RemoveOptions { force: true, volumes: true }).unwrap();
                }
                error.to_string()
            }
        }
    }

    /// Removes everything, and tells what should not have been there.
    pub(crate) fn leave(self) -> Vec<String> {
        for workload in self.engine.list().unwrap() {
            if let Err(error) = workload.remove(&RemoveOptions { force: true, volumes: true }) {
                return vec![error.to_string()];
            }
        }
        self.engine.check(false, false).unwrap().iter().map(ToString::to_string).collect()
    }
}

/// What a workload has written so far.
pub(crate) fn output(workload: &Workload) -> String {
    let lines = workload.logs(LogQuery::default()).unwrap();
    lines.map(|line| String::from_utf8_lossy(&line.unwrap().text).into_owned()).collect()
}
