//! Writing the log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use moat_model::workload::LogSpec;

use super::{MAX_LINE, encode};
use crate::frame::Stream;
use crate::roots::make_folder;
use crate::{Context, Result, Timestamp};

/// The log of one workload, open for writing.
#[derive(Debug)]
pub(crate) struct LogWriter {
    folder: PathBuf,
    limits: LogSpec,
    file: File,
    bytes: u64,
    /// What of a line has come so far, for each stream.
    begun: [Vec<u8>; 2],
    /// Lines that are encoded and not written yet.
    out: Vec<u8>,
}

impl LogWriter {
    /// Opens the log for appending.
    pub(crate) fn open(folder: PathBuf, limits: LogSpec) -> Result<Self> {
        make_folder(&folder).context(|| format!("log folder {}", folder.display()))?;
        let file = open(&folder)?;
        let bytes = file.metadata().context(|| "the log")?.len();
        Ok(Self { folder, limits, file, bytes, begun: Default::default(), out: Vec::new() })
    }

    /// Takes what the workload has written. Whole lines are written at once, a line without an end when it is
    /// complete, too long, or the last.
    pub(crate) fn write(&mut self, stream: Stream, mut data: &[u8]) -> Result<()> {
        let time = Timestamp::now().to_string();
        let mut begun = std::mem::take(&mut self.begun[stream.index()]);
        while !data.is_empty() {
            let end = data.iter().position(|byte| *byte == b'\n').map_or(data.len(), |at| at + 1);
            let take = end.min(MAX_LINE - begun.len());
            let (part, rest) = data.split_at(take);
            data = rest;
            let whole = part.ends_with(b"\n") || begun.len() + part.len() >= MAX_LINE;
            match (whole, begun.is_empty()) {
                (true, true) => encode::append(&mut self.out, stream, part, &time),
                (true, false) => {
                    begun.extend_from_slice(part);
                    encode::append(&mut self.out, stream, &begun, &time);
                    begun.clear();
                }
                (false, _) => begun.extend_from_slice(part),
            }
        }
        self.begun[stream.index()] = begun;
        self.flush()
    }

    /// Writes what lines have no end.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let time = Timestamp::now().to_string();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let begun = std::mem::take(&mut self.begun[stream.index()]);
            if !begun.is_empty() {
                encode::append(&mut self.out, stream, &begun, &time);
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        let written = self.write_lines(&out);
        self.out = out;
        self.out.clear();
        written.context(|| format!("log in {}", self.folder.display()))
    }

    /// Writes whole lines, as many to a file as fit.
    fn write_lines(&mut self, mut lines: &[u8]) -> Result<()> {
        while !lines.is_empty() {
            let room = self.limits.max_bytes.saturating_sub(self.bytes);
            let fitting = fitting(lines, usize::try_from(room).unwrap_or(usize::MAX));
            if fitting == 0 && self.bytes > 0 {
                self.rotate()?;
                continue;
            }
            // A line that alone is longer than the limit is kept whole.
            let count = if fitting == 0 { first_line(lines) } else { fitting };
            let (now, later) = lines.split_at(count);
            self.file.write_all(now)?;
            self.bytes += count as u64;
            lines = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let last = self.limits.max_files.saturating_sub(1);
        if last == 0 {
            self.file.set_len(0)?;
            self.bytes = 0;
            return Ok(());
        }
        for age in (0..last).rev() {
            match std::fs::rename(super::file(&self.folder, age), super::file(&self.folder, age + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).context(|| "rotate the log");
                }
                _ => {}
            }
        }
        self.file = open(&self.folder)?;
        self.bytes = 0;
        Ok(())
    }
}

fn open(folder: &std::path::Path) -> Result<File> {
    let path = super::file(folder, 0);
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    opened.context(|| format!("open {}", path.display()))
}

/// The length of the lines that fit into `room`.
fn fitting(lines: &[u8], room: usize) -> usize {
    if lines.len() <= room {
        return lines.len();
    }
    lines.get(..room).and_then(|part| part.iter().rposition(|byte| *byte == b'\n')).map_or(0, |at| at + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogQuery, Logs};

    fn limits(max_bytes: u64, max_files: u32) -> LogSpec {
        LogSpec { keep: true, max_bytes, max_files }
    }

    fn texts(folder: &std::path::Path) -> Vec<String> {
        let logs = Logs::open(folder.to_owned(), LogQuery::default(), None).unwrap();
        logs.map(|line| String::from_utf8(line.unwrap().text).unwrap()).collect()
    }

    #[test]
    fn lines_of_two_streams_keep_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(folder.path().join("log"), LogSpec::default()).unwrap();
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"err\n").unwrap();
        log.write(Stream::Stdout, b"o\nthree").unwrap();
        assert_eq!(texts(&folder.path().join("log")), ["one\n", "err\n", "two\n"]);
        log.finish().unwrap();
        assert_eq!(texts(&folder.path().join("log")), ["one\n", "err\n", "two\n", "three"]);
    }

    #[test]
    fn a_long_line_is_split_as_docker_splits_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(folder.path().join("log"), LogSpec::default()).unwrap();
        let long = [vec![b'x'; 2 * MAX_LINE + 5], b"\nend\n".to_vec()].concat();
        for part in long.chunks(1000) {
            log.write(Stream::Stdout, part).unwrap();
        }
        let lengths: Vec<usize> = texts(&folder.path().join("log")).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE, MAX_LINE, 6, 4]);
    }

    #[test]
    fn old_files_go_and_no_file_grows_beyond_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogWriter::open(path.clone(), limits(1000, 3)).unwrap();
        for number in 0..200 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes()).unwrap();
        }
        let mut names = crate::file::names_in(&path).unwrap();
        names.sort();
        assert_eq!(names, ["json.log", "json.log.1", "json.log.2"]);
        for name in names {
            assert!(std::fs::metadata(path.join(name)).unwrap().len() <= 1000);
        }
        let kept = texts(&path);
        assert_eq!(kept.last().unwrap(), "line 199\n");
        // Nothing is missing between the oldest that is kept and the last.
        let first: usize = kept[0].trim().strip_prefix("line ").unwrap().parse().unwrap();
        assert_eq!(kept.len(), 200 - first);
        assert!(kept.len() > 20);
    }

    #[test]
    fn a_single_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogWriter::open(path.clone(), limits(300, 1)).unwrap();
        for number in 0..20 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes()).unwrap();
        }
        assert_eq!(crate::file::names_in(&path).unwrap(), ["json.log"]);
        assert_eq!(texts(&path).last().unwrap(), "19\n");
    }
}
