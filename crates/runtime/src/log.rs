//! Where errors and warnings go: standard error, and the file that `--log` names.
//!
//! containerd and Podman read that file as JSON lines (`level`, `msg`, `time`) to tell why a command
//! failed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use moat_sandbox::{Context, Error, Result};

use crate::cli::{Global, LogFormat};

/// The sinks.
pub(crate) struct Log {
    file: Option<File>,
    format: LogFormat,
    /// Whether `--debug` was given.
    pub(crate) debug: bool,
}

impl Log {
    /// Opens the file that `--log` names, for appending.
    pub(crate) fn open(global: &Global) -> Result<Self> {
        let open = |path: &std::path::PathBuf| {
            let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
            opened.context(|| format!("log file {}", path.display()))
        };
        let file = global.log.as_ref().map(open).transpose()?;
        Ok(Self { file, format: global.log_format, debug: global.debug })
    }

    /// Standard error alone.
    pub(crate) fn stderr() -> Self {
        Self { file: None, format: LogFormat::Text, debug: false }
    }

    /// Prints an error once, with its hint, and gives the exit code.
    pub(crate) fn fail(&self, error: &Error) -> i32 {
        let hint = error.hint_text().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        self.to_stderr(&format!("moat-runtime: {error}{hint}"));
        self.to_file("error", &error.to_string());
        i32::from(error.code())
    }

    /// What stops nothing but should be known.
    pub(crate) fn warn(&self, message: &str) {
        match self.file {
            Some(_) => self.to_file("warning", message),
            None => self.to_stderr(&format!("moat-runtime: warning: {message}")),
        }
    }

    /// What only `--debug` shows.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            match self.file {
                Some(_) => self.to_file("debug", message),
                None => self.to_stderr(&format!("moat-runtime: debug: {message}")),
            }
        }
    }

    fn to_stderr(&self, line: &str) {
        // A closed standard error leaves nowhere to complain.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn to_file(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let line = match self.format {
            LogFormat::Json => {
                serde_json::json!({"level": level, "msg": message, "time": time.to_string()}).to_string()
            }
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        // One write per line, so that the lines of several runtimes do not mix. A full disk must not turn a
        // working container into a failed one.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}
