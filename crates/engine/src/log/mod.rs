//! The output of a workload on disk, in the lines of Docker's json-file driver:
//! `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}`.
//!
//! `json.log` is written to; when it would grow beyond its limit it becomes `json.log.1`, that one `json.log.2` and
//! so on, and the oldest is deleted. A line of the program that is longer than 16 KiB is split, as Docker does.

mod encode;
mod reader;
mod writer;

pub use reader::{LogLine, LogQuery, Logs};
pub(crate) use writer::LogWriter;

use std::path::{Path, PathBuf};

/// A line of the program that is longer is split.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// The file `age` rotations old.
fn file(folder: &Path, age: u32) -> PathBuf {
    folder.join(if age == 0 { "json.log".to_owned() } else { format!("json.log.{age}") })
}
