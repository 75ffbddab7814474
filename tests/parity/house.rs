//! Moat on a host of its own, with one wall around every workload of a case.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use moat_tests::{Moat, Output, Place, Wire};
use serde_json::Value;

pub(crate) struct House {
    pub(crate) moat: Moat,
    wall: &'static str,
    wire: Wire,
    kept: RefCell<BTreeMap<&'static str, Output>>,
}

impl House {
    pub(crate) fn new(wall: &'static str) -> Self {
        // The thread's namespaces are the host.
        let wire = Wire::lay();
        Self { moat: Moat::with_machines(), wall, wire, kept: RefCell::default() }
    }

    pub(crate) fn wall(&self) -> &'static str {
        self.wall
    }

    pub(crate) fn outside(&self) -> Place {
        self.wire.outside()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.moat.path(name)
    }

    /// A file of the host.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The command line of `run` behind the wall, without a network.
    pub(crate) fn words<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        [&["run", "--network", "none", "--isolation", self.wall], args].concat()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.moat.call(&self.words(args))
    }

    /// As [`House::run`], with `input`.
    pub(crate) fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        self.moat.call_with(&self.words(args), input)
    }

    /// The whole command line of a workload, on networks as it says.
    pub(crate) fn on_networks(&self, verb: &str, args: &[&str]) -> Output {
        self.moat.call(&[&[verb, "--isolation", self.wall], args].concat())
    }

    /// A workload named `name` that runs a script in the background.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, flags: &[&str], script: &str) {
        self.run(&[&["-d", "--name", name], flags, &["busybox", "sh", "-c", script]].concat()).success();
    }

    /// What a script in a workload prints, on both streams.
    pub(crate) fn exec(&self, name: &str, script: &str) -> String {
        self.exec_as("root", name, script)
    }

    pub(crate) fn exec_as(&self, user: &str, name: &str, script: &str) -> String {
        let script = format!("{{ {script}\n}} 2>&1");
        let done = self.moat.call(&["exec", "-u", user, name, "sh", "-c", &script]);
        assert!(done.stderr.is_empty(), "{done:?}");
        done.stdout.trim().to_owned()
    }

    /// What a command prints; it must succeed.
    #[track_caller]
    pub(crate) fn say(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).success().trim().to_owned()
    }

    /// The exit code of a command.
    pub(crate) fn code(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).code.to_string()
    }

    /// A field of `inspect`, as in `State.ExitCode`.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str, field: &str) -> String {
        let document = self.moat.inspect(name);
        let found = field.split('.').fold(&document, |value, part| &value[part]);
        match found {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// Keeps what a command did, for several cases.
    pub(crate) fn keep(&self, name: &'static str, output: Output) {
        self.kept.borrow_mut().insert(name, output);
    }

    /// What was kept.
    #[track_caller]
    pub(crate) fn kept(&self, name: &str) -> Output {
        self.kept.borrow().get(name).cloned().unwrap()
    }

    /// Removes all workloads.
    pub(crate) fn clear(&self) {
        let ids = self.say("ps --all --quiet");
        for id in ids.split_whitespace() {
            self.moat.call(&["rm", "--force", "--volumes", id]);
        }
    }
}

/// Whether it is so, as a word.
pub(crate) fn yes(fact: bool) -> String {
    if fact { "yes" } else { "no" }.to_owned()
}

/// An end in one line: the code, and what was told, shortened to its last sentence.
pub(crate) fn refusal(output: &Output) -> String {
    let line = output.stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    format!("{}: {line}", output.code)
}
