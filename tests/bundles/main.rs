//! Bad bundles and bad calls: each gives one sentence that names the object, the exit code of runc's, and
//! leaves nothing behind. The sentences are held by snapshots.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails, and says where"
)]

mod calls;
mod config;
mod disk;
mod process;
mod root;

use std::fmt::Write;
use std::process::Command;

use moat_tests::{Bundle, Runtime};

/// Collects what the runtime says, a line a case.
struct Sentences {
    runtime: Runtime,
    text: String,
}

impl Sentences {
    fn new() -> Self {
        Self { runtime: Runtime::new(), text: String::new() }
    }

    /// `run` of a bundle that a change has spoilt.
    fn spoilt(&mut self, name: &str, spoil: impl FnOnce(&mut Bundle)) {
        let mut bundle = Bundle::new(&["/bin/true"]);
        spoil(&mut bundle);
        self.run(name, &bundle, &[]);
    }

    fn run(&mut self, name: &str, bundle: &Bundle, flags: &[&str]) {
        let id = self.runtime.id();
        let command = self.runtime.build("run", bundle, flags, &id);
        let path = bundle.path().display().to_string();
        self.failing(name, &command, &[(&path, "BUNDLE"), (&id, "ID")]);
        assert_eq!(self.runtime.leftovers(&id), Vec::<String>::new(), "{name}");
    }

    /// A command that must fail; what differs from call to call is replaced.
    fn failing(&mut self, name: &str, command: &Command, names: &[(&str, &str)]) {
        let log = self.runtime.folder().join("log.json");
        let _ = std::fs::remove_file(&log);
        let mut logged = Command::new(command.get_program());
        logged.arg("--log").arg(&log).args(["--log-format", "json"]).args(command.get_args());
        let output = logged.stdin(std::process::Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let (sentence, hint) = said.trim_end().split_once("\nhint: ").unwrap_or((said.trim_end(), ""));
        let sentence = sentence.strip_prefix("moat-runtime: ").unwrap_or(sentence);
        assert!(!sentence.is_empty() && !sentence.contains('\n'), "{name}: {said:?}");
        assert!(output.stdout.is_empty(), "{name}: {:?}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(logged_error(&log).as_deref(), Some(sentence), "{name}: the log says something else");
        let code = output.status.code().unwrap();
        let mut line = format!("{name} [{code}]: {sentence}");
        if !hint.is_empty() {
            write!(line, " (hint: {hint})").unwrap();
        }
        for (concrete, placeholder) in names {
            line = line.replace(concrete, placeholder);
        }
        let folder = self.runtime.folder().display().to_string();
        writeln!(self.text, "{}", without_numbers(&line.replace(&folder, "FOLDER"))).unwrap();
    }

    fn hold(self, name: &str) {
        insta::assert_snapshot!(name, self.text);
    }
}

/// Descriptors have whatever number was free: `{4}</etc>` becomes `{}</etc>`.
fn without_numbers(line: &str) -> String {
    let mut parts = line.split('{');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|digit: char| digit.is_ascii_digit());
        text.push('{');
        text += if rest.starts_with("}<") { rest } else { part };
    }
    text
}

fn logged_error(log: &std::path::Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let errors: Vec<_> = lines.filter(|line| line["level"] == "error").collect();
    assert!(errors.len() <= 1, "{errors:?}");
    Some(errors.first()?["msg"].as_str()?.to_owned())
}
