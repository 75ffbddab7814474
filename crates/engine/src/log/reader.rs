//! Reading the log, also while it is written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::encode;
use crate::frame::Stream;
use crate::{Context, Result, Timestamp};

/// Which lines are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the workload ends.
    pub follow: bool,
    /// Not those before.
    pub since: Option<Timestamp>,
    /// Not those after.
    pub until: Option<Timestamp>,
    /// At most so many of those that are there already.
    pub tail: Option<usize>,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Where it was written to.
    pub stream: Stream,
    /// When.
    pub time: Timestamp,
    /// Its bytes, with the end of the line if it has one.
    pub text: Vec<u8>,
}

/// The lines of a log, oldest first.
#[derive(Debug)]
pub struct Logs {
    folder: PathBuf,
    query: LogQuery,
    /// Files that are still to be read, the current one last.
    files: VecDeque<BufReader<File>>,
    /// What of a line was read before the file ended.
    begun: Vec<u8>,
    /// Lines that `tail` has kept.
    kept: VecDeque<LogLine>,
    /// A pidfd of the writer, and the watch on its folder.
    writer: Option<(OwnedFd, OwnedFd)>,
    ended: bool,
}

impl Logs {
    /// Opens a log. `writer` is a pidfd of who writes it, if somebody does.
    pub(crate) fn open(folder: PathBuf, query: LogQuery, writer: Option<OwnedFd>) -> Result<Self> {
        let writer = match (writer, query.follow) {
            (Some(writer), true) if folder.is_dir() => Some((writer, watch(&folder)?)),
            _ => None,
        };
        let mut logs = Self {
            files: open_all(&folder)?,
            folder,
            query,
            begun: Vec::new(),
            kept: VecDeque::new(),
            writer,
            ended: false,
        };
        if let Some(count) = logs.query.tail {
            logs.keep_last(count)?;
        }
        Ok(logs)
    }

    /// Reads what is there now and keeps the last lines of it.
    fn keep_last(&mut self, count: usize) -> Result<()> {
        let mut kept = VecDeque::new();
        while let Some(line) = self.read_line()? {
            if kept.len() == count {
                kept.pop_front();
            }
            if count > 0 {
                kept.push_back(line);
            }
        }
        self.kept = kept;
        Ok(())
    }

    /// The next line that is there and wanted.
    fn read_line(&mut self) -> Result<Option<LogLine>> {
        loop {
            let Some(file) = self.files.front_mut() else { return Ok(None) };
            let count = file.read_until(b'\n', &mut self.begun).context(|| "read the log")?;
            if self.begun.ends_with(b"\n") {
                let line = encode::parse(&self.begun);
                self.begun.clear();
                // A line that was cut off, by a disk that was full or a machine that crashed, is left out.
                let Some(line) = line else { continue };
                if self.query.until.is_some_and(|until| line.time > until) {
                    self.ended = true;
                    return Ok(None);
                }
                if self.query.since.is_none_or(|since| line.time >= since) {
                    return Ok(Some(line));
                }
            } else if count == 0 {
                if self.files.len() > 1 {
                    self.files.pop_front();
                    self.begun.clear();
                } else if !self.reopen()? {
                    return Ok(None);
                }
            }
        }
    }

    /// At the end of the current file: whether another has taken its place, or it began anew.
    fn reopen(&mut self) -> Result<bool> {
        let Some(file) = self.files.front_mut() else { return Ok(false) };
        let known = file.get_ref().metadata().context(|| "read the log")?;
        let path = super::file(&self.folder, 0);
        let now = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other.context(|| format!("open {}", path.display()))?,
        };
        let found = now.metadata().context(|| "read the log")?;
        if (found.dev(), found.ino()) != (known.dev(), known.ino()) {
            // Lines may have come to the old one since its end was seen.
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).context(|| "read the log")?;
            if !rest.is_empty() {
                let at = -(rest.len() as i64);
                file.seek(SeekFrom::Current(at)).context(|| "read the log")?;
                return Ok(true);
            }
            let missed = missed_between(&self.folder, known.ino())?;
            self.files.extend(missed);
            self.files.push_back(BufReader::new(now));
            self.files.pop_front();
            self.begun.clear();
            return Ok(true);
        }
        if file.stream_position().context(|| "read the log")? > found.len() {
            file.seek(SeekFrom::Start(0)).context(|| "read the log")?;
            self.begun.clear();
            return Ok(true);
        }
        Ok(false)
    }

    /// Waits for more; false when there will be none.
    fn wait(&mut self) -> Result<bool> {
        let Some((writer, watch)) = &self.writer else { return Ok(false) };
        let mut ready = [PollFd::new(watch, PollFlags::IN), PollFd::new(writer, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            other => other.context(|| "wait for the log")?,
        };
        let [watched, ended] = ready.map(|fd| fd.revents().contains(PollFlags::IN));
        if watched {
            let mut events = [0_u8; 4096];
            while rustix::io::read(watch, &mut events).is_ok_and(|count| count == events.len()) {}
        }
        if ended {
            // What it wrote last is read once more.
            self.writer = None;
        }
        Ok(true)
    }
}

impl Iterator for Logs {
    type Item = Result<LogLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.kept.pop_front() {
                return Some(Ok(line));
            }
            if self.ended {
                return None;
            }
            match self.read_line() {
                Ok(Some(line)) => return Some(Ok(line)),
                Ok(None) if self.ended => return None,
                Ok(None) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
            match self.wait() {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// All files of a log, oldest first.
fn open_all(folder: &Path) -> Result<VecDeque<BufReader<File>>> {
    let mut files = VecDeque::new();
    for age in 0.. {
        match File::open(super::file(folder, age)) {
            Ok(file) => files.push_front(BufReader::with_capacity(64 << 10, file)),
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error).context(|| format!("read the log in {}", folder.display())),
        }
    }
    Ok(files)
}

/// Files that were written and rotated away since the one of inode `known` was the current one, oldest first.
fn missed_between(folder: &Path, known: u64) -> Result<Vec<BufReader<File>>> {
    let mut missed = Vec::new();
    for age in 1.. {
        match File::open(super::file(folder, age)) {
            Ok(file) if file.metadata().is_ok_and(|found| found.ino() == known) => break,
            Ok(file) => missed.push(BufReader::new(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error).context(|| format!("read the log in {}", folder.display())),
        }
    }
    missed.reverse();
    Ok(missed)
}

fn watch(folder: &Path) -> Result<OwnedFd> {
    let what = || format!("watch {}", folder.display());
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).context(what)?;
    let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(watch.as_fd(), folder, wanted).context(what)?;
    Ok(watch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogWriter;
    use moat_model::workload::LogSpec;

    fn written(count: usize) -> (tempfile::TempDir, LogWriter) {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogSpec { keep: true, max_bytes: 2000, max_files: 5 };
        let mut log = LogWriter::open(folder.path().to_owned(), limits).unwrap();
        for number in 0..count {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes()).unwrap();
        }
        (folder, log)
    }

    fn texts(logs: Logs) -> Vec<String> {
        logs.map(|line| String::from_utf8(line.unwrap().text).unwrap().trim().to_owned()).collect()
    }

    #[test]
    fn tail_since_and_until() {
        let (folder, _log) = written(50);
        let open = |query| Logs::open(folder.path().to_owned(), query, None).unwrap();
        let tail = |count| LogQuery { tail: Some(count), ..LogQuery::default() };
        assert_eq!(texts(open(tail(2))), ["48", "49"]);
        assert_eq!(texts(open(tail(0))).len(), 0);
        assert_eq!(texts(open(tail(1000))).len(), 50);
        let lines: Vec<LogLine> = open(LogQuery::default()).map(Result::unwrap).collect();
        let query =
            LogQuery { since: Some(lines[10].time), until: Some(lines[20].time), ..LogQuery::default() };
        assert_eq!(texts(open(query)).len(), 11);
    }

    #[test]
    fn a_reader_follows_over_rotations_and_ends_with_the_writer() {
        let (folder, mut log) = written(3);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let writer = moat_linux::process::pidfd(child.id().cast_signed()).unwrap();
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut logs = Logs::open(folder.path().to_owned(), query, Some(writer)).unwrap();
        let mut next = || logs.next().map(|line| String::from_utf8(line.unwrap().text).unwrap());
        for number in 0..3 {
            assert_eq!(next(), Some(format!("{number}\n")));
        }
        // Four files' worth between two reads.
        for number in 3..60 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes()).unwrap();
        }
        for number in 3..60 {
            assert_eq!(next(), Some(format!("{number}\n")));
        }
        log.write(Stream::Stdout, b"last").unwrap();
        log.finish().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(next(), Some("last".to_owned()));
        assert_eq!(next(), None);
    }
}
