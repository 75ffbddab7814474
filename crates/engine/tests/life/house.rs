//! Roots and an image for one case, and what is left of it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use moat_engine::{
    AttachSpec, Attached, Engine, ExitStatus, Received, RemoveOptions, Roots, StartOptions, Started,
    StopOptions, Stream, Workload, image,
};
use moat_model::workload::{NetworkMode, WorkloadSpec};

/// The name of the image.
pub(crate) const IMAGE: &str = "busybox:test";

pub(crate) struct House {
    folder: tempfile::TempDir,
    pub(crate) engine: Engine,
}

/// What a workload wrote and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: ExitStatus,
}

impl House {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = open(folder.path());
        let root = folder.path().join("rootfs");
        make_root(&root);
        import(&engine, &root, IMAGE);
        Self { folder, engine }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn spec(&self, command: &[&str]) -> WorkloadSpec {
        spec(command)
    }

    /// `moat run` in the foreground.
    pub(crate) fn run(&self, spec: WorkloadSpec) -> Heard {
        let (_, started) = self.start(spec);
        hear(&mut started.attached.unwrap())
    }

    /// Creates and starts, attached to both outputs.
    pub(crate) fn start(&self, spec: WorkloadSpec) -> (Workload, Started) {
        let stdin = spec.open_stdin;
        let attach = Some(AttachSpec { stdin, stdout: true, stderr: true });
        self.engine.run(spec, &StartOptions { attach, explain: false }).unwrap()
    }

    /// `moat run -d`.
    pub(crate) fn detached(&self, command: &[&str]) -> Workload {
        self.engine.run(self.spec(command), &StartOptions::default()).unwrap().0
    }

    /// This program, to do something in a process of its own: see [`act`].
    pub(crate) fn actor(&self, what: &str, more: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("act").arg(self.path()).arg(what).args(more);
        command
    }

    /// Removes everything, and says what could not be accounted for.
    pub(crate) fn clear(&self) -> Vec<String> {
        let mut left = Vec::new();
        for workload in self.engine.list().unwrap() {
            if let Err(error) = workload.remove(&RemoveOptions { force: true, volumes: true }) {
                left.push(format!("{}: {error}", workload.name()));
            }
        }
        left.extend(self.leftovers());
        left
    }

    /// What should not be there when no workload exists.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for folder in ["workloads", "names", "removing", "images/holds", "run/workloads", "run/runtime"] {
            // A monitor may still be at its last steps.
            let empty = || names(&self.path().join(folder)).is_empty();
            let end = Instant::now() + Duration::from_secs(20);
            while !empty() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            left.extend(names(&self.path().join(folder)).into_iter().map(|name| format!("{folder}/{name}")));
        }
        left
    }

    /// Every finding of a check.
    pub(crate) fn check(&self, repair: bool) -> Vec<String> {
        self.engine.check(repair, false).unwrap().iter().map(ToString::to_string).collect()
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(_) => Vec::new(),
    }
}

pub(crate) fn open(root: &Path) -> Engine {
    Engine::open(&Roots { data: root.to_owned(), run: root.join("run") }).unwrap()
}

pub(crate) fn spec(command: &[&str]) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        image: IMAGE.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..WorkloadSpec::default()
    };
    spec.network.mode = NetworkMode::None;
    spec
}

/// Reads until the end.
pub(crate) fn hear(attached: &mut Attached) -> Heard {
    let mut heard = Heard::default();
    loop {
        match attached.receive().unwrap() {
            Received::Output(Stream::Stdout, data) => heard.stdout += std::str::from_utf8(data).unwrap(),
            Received::Output(Stream::Stderr, data) => heard.stderr += std::str::from_utf8(data).unwrap(),
            Received::Exit(exit) => {
                heard.exit = exit;
                return heard;
            }
            Received::Closed => panic!("closed after {heard:?}"),
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_until(mut what: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < end, "it does not come to hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn make_root(root: &Path) {
    const APPLETS: [&str; 22] = [
        "sh", "true", "false", "echo", "cat", "sleep", "id", "ls", "env", "head", "yes", "kill", "touch",
        "rm", "tr", "stty", "tail", "dd", "httpd", "nc", "test", "ps",
    ];
    for folder in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

pub(crate) fn import(engine: &Engine, root: &Path, name: &str) {
    let name = Some(image::Reference::parse(name).unwrap());
    let spec = image::ImportSpec { name, ..image::ImportSpec::default() };
    image::import(engine.images(), root, spec, &image::silent).unwrap();
}

/// What this program does for its own cases: `act ROOT WHAT ...`.
pub(crate) fn act(args: &[String]) -> ExitCode {
    let engine = open(Path::new(&args[2]));
    let more: Vec<&str> = args[4..].iter().map(String::as_str).collect();
    match perform(&engine, &args[3], &more) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(125)
        }
    }
}

fn perform(engine: &Engine, what: &str, more: &[&str]) -> moat_engine::Result<i32> {
    match what {
        "run" => {
            let spec = WorkloadSpec { auto_remove: true, ..spec(more) };
            let attach = Some(AttachSpec { stdin: false, stdout: true, stderr: true });
            let (_, started) = engine.run(spec, &StartOptions { attach, explain: false })?;
            Ok(hear(&mut started.attached.unwrap()).exit.code)
        }
        "detach" => {
            let (workload, _) = engine.run(spec(more), &StartOptions::default())?;
            println!("{}", workload.id());
            Ok(0)
        }
        "create" => {
            for _ in 0..more[0].parse::<usize>().unwrap() {
                engine.create(spec(&["true"]))?;
            }
            Ok(0)
        }
        "create-named" => {
            let spec = WorkloadSpec { name: Some(more[0].to_owned()), ..spec(&["true"]) };
            Ok(engine.create(spec).map_or(1, |_| 0))
        }
        "remove" => engine.find(more[0])?.remove(&RemoveOptions { force: true, volumes: true }).map(|()| 0),
        "stop" => engine.find(more[0])?.stop(&StopOptions::default()).map(|()| 0),
        other => panic!("act {other}"),
    }
}

/// The folder of a workload's files.
pub(crate) fn folder(house: &House, workload: &Workload) -> PathBuf {
    house.path().join("workloads").join(workload.id().as_str())
}
