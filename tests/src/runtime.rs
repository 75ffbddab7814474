//! The built `moat-runtime`, with a state root of its own.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Bundle, leftovers};

/// The file of `moat-runtime`: `MOAT_RUNTIME`, else the one that was built beside the tests.
pub fn program() -> PathBuf {
    match std::env::var_os("MOAT_RUNTIME") {
        Some(path) => path.into(),
        None => built("moat-runtime", &["linux", "model", "sandbox", "runtime"]),
    }
}

/// A program that was built beside the tests.
///
/// It must not be older than its sources: a test of yesterday's program proves nothing.
pub(crate) fn built(name: &str, crates: &[&str]) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = own.ancestors().skip(1).take(3).map(|folder| folder.join(name));
    let Some(program) = beside.into_iter().find(|file| file.is_file()) else {
        panic!("there is no {name} beside {}: `cargo build -p {name}` builds it", own.display());
    };
    if crate::in_lab() {
        // Copied there by a test that has looked.
        return program;
    }
    let built = program.metadata().unwrap().modified().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    for one in crates {
        let newest = newest(&folder.join(one).join("src"));
        assert!(
            newest.is_none_or(|time| time <= built),
            "{} is older than crates/{one}: `cargo build -p {name}` builds it anew",
            program.display()
        );
    }
    program
}

fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let time = |path: PathBuf| {
        if path.is_dir() { newest(&path) } else { path.metadata().and_then(|found| found.modified()).ok() }
    };
    entries.filter_map(|entry| time(entry.path())).max()
}

/// How a command ended, and what it had written by then.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code, or 128 plus the signal that ended the command.
    pub code: i32,
    /// The signal that ended the command itself.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The command ended with exit code 0; gives what it wrote.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// The command ended with another exit code; gives what it wrote to standard error.
    #[track_caller]
    pub fn failure(&self) -> &str {
        assert!(self.code != 0 && self.signal.is_none(), "{self:?}");
        &self.stderr
    }
}

/// A command whose output goes to files: what it leaves running may keep them open.
pub(crate) struct Started {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Started {
    pub(crate) fn new(mut command: Command) -> Self {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, stdout, stderr }
    }

    pub(crate) fn wait(mut self) -> (Output, File) {
        let status: ExitStatus = self.child.wait().unwrap();
        let signal = status.signal();
        let code = status.code().or(signal.map(|number| 128 + number)).unwrap();
        let output = Output { code, signal, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr) };
        (output, self.stdout)
    }
}

/// A file from its beginning. The writer's position is another only if the file was opened again.
fn text(file: &mut File) -> String {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let mut bytes = Vec::new();
    let mut again = File::open(path).unwrap();
    again.rewind().unwrap();
    again.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The runtime with a state root of its own. When it is dropped, every container whose name it gave is
/// deleted, and nothing may be left of any.
#[derive(Debug)]
pub struct Runtime {
    program: PathBuf,
    folder: TempDir,
    ids: RefCell<Vec<String>>,
    /// Folders of bundles whose containers may still run.
    bundles: RefCell<Vec<Arc<TempDir>>>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime {
    /// The built program.
    pub fn new() -> Self {
        Self::of(program())
    }

    /// Another file of the program.
    pub fn of(program: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("moat-state-").tempdir().unwrap();
        Self { program: program.into(), folder, ids: RefCell::default(), bundles: RefCell::default() }
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A folder for whatever a test needs beside the bundle.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state root. It does not exist before the first container.
    pub fn state_root(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A name that no other test uses.
    pub fn id(&self) -> String {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // The end tells it from one that goes on: 9 from 97.
        let id = format!("moat-test-{}-{}x", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        self.ids.borrow_mut().push(id.clone());
        id
    }

    /// The program with the state root and `args`; nothing on standard input.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.state_root()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs the program with `args`.
    pub fn call(&self, args: &[&str]) -> Output {
        call(self.command(args))
    }

    /// `run` of a bundle under a fresh name.
    pub fn run(&self, bundle: &Bundle) -> Output {
        self.run_with(bundle, &[])
    }

    /// `run` with flags.
    pub fn run_with(&self, bundle: &Bundle, flags: &[&str]) -> Output {
        let id = self.id();
        call(self.build("run", bundle, flags, &id))
    }

    /// The command `create` or `run` for a bundle.
    pub fn build(&self, verb: &str, bundle: &Bundle, flags: &[&str], id: &str) -> Command {
        self.bundles.borrow_mut().push(bundle.keep());
        let mut command = self.command(&[verb]);
        command.arg("--bundle").arg(bundle.path()).args(flags).arg(id);
        command
    }

    /// `create` of a bundle that must succeed.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle) -> Container<'_> {
        self.create_with(bundle, &[]).unwrap_or_else(|output| panic!("create: {output:?}"))
    }

    /// `create` with flags.
    ///
    /// Errors: what the runtime said.
    pub fn create_with(&self, bundle: &Bundle, flags: &[&str]) -> Result<Container<'_>, Output> {
        let id = self.id();
        let (output, stdout) = Started::new(self.build("create", bundle, flags, &id)).wait();
        if output.code == 0 {
            Ok(Container { runtime: self, id, stdout: RefCell::new(stdout) })
        } else {
            Err(output)
        }
    }

    /// `create` and `start` of a bundle, which must succeed.
    #[track_caller]
    pub fn start(&self, bundle: &Bundle) -> Container<'_> {
        let container = self.create(bundle);
        container.start().success();
        container
    }

    /// What still names `id`, see [`leftovers`].
    pub fn leftovers(&self, id: &str) -> Vec<String> {
        leftovers(&self.state_root(), id)
    }
}

/// Runs a command to its end.
fn call(command: Command) -> Output {
    Started::new(command).wait().0
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let mut left = Vec::new();
        for id in self.ids.borrow().iter() {
            let deleted = self.call(&["delete", "--force", id]);
            let found = self.leftovers(id);
            if !found.is_empty() {
                left.push(format!("{id}: {deleted:?}: {found:#?}"));
            }
        }
        // A test that fails already keeps its own words.
        assert!(left.is_empty() || std::thread::panicking(), "left behind: {left:#?}");
    }
}

/// A container that was created.
#[derive(Debug)]
pub struct Container<'a> {
    runtime: &'a Runtime,
    id: String,
    stdout: RefCell<File>,
}

impl Container<'_> {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `start`.
    pub fn start(&self) -> Output {
        self.runtime.call(&["start", &self.id])
    }

    /// `exec` of a program.
    pub fn exec(&self, args: &[&str]) -> Output {
        self.exec_with(&[], args)
    }

    /// `exec` of a line of shell.
    pub fn shell(&self, script: &str) -> Output {
        self.exec(&["/bin/sh", "-c", script])
    }

    /// `exec` with flags.
    pub fn exec_with(&self, flags: &[&str], args: &[&str]) -> Output {
        call(self.exec_command(flags, args))
    }

    /// The command `exec`.
    pub fn exec_command(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.runtime.command(&["exec"]);
        command.args(flags).arg(&self.id).args(args);
        command
    }

    /// The answer of `state`.
    #[track_caller]
    pub fn state(&self) -> Value {
        let answer = self.runtime.call(&["state", &self.id]);
        serde_json::from_str(answer.success()).unwrap()
    }

    /// The word of `state`: created, running, stopped and so on.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// The first process as the host sees it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    /// `kill` with a signal.
    pub fn kill(&self, signal: &str) -> Output {
        self.runtime.call(&["kill", &self.id, signal])
    }

    /// Waits until the container has stopped.
    pub fn wait(&self) {
        crate::wait_until(|| self.status() == "stopped");
    }

    /// What the container's program has written to standard output until now.
    pub fn stdout(&self) -> String {
        text(&mut self.stdout.borrow_mut())
    }

    /// `delete --force`, after which nothing may be left.
    #[track_caller]
    pub fn delete(self) {
        self.runtime.call(&["delete", "--force", &self.id]).success();
        assert_eq!(self.runtime.leftovers(&self.id), Vec::<String>::new());
    }
}
