//! What happened: one JSON line an event, appended to one file.
//!
//! A line is one write(2) to a file opened for appending, so events of several processes never mix. A file that has
//! grown to 4 MiB becomes `events.jsonl.1`, and the one that was there before is deleted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, inotify};
use serde::{Deserialize, Serialize};

use crate::roots::make_folder;
use crate::{Context, Result, Timestamp};

/// A file that is larger is rotated.
const MAX_BYTES: u64 = 4 << 20;

/// What something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// A workload.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network.
    Network,
}

impl EventType {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

/// What happened, in Docker's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is Docker's word of the same name")]
pub enum Action {
    Attach,
    Commit,
    Connect,
    Copy,
    Create,
    Delete,
    Destroy,
    Detach,
    Die,
    Disconnect,
    ExecCreate,
    ExecStart,
    ExecDie,
    Export,
    HealthStatus,
    Import,
    Kill,
    Load,
    Mount,
    Oom,
    Pause,
    Prune,
    Pull,
    Push,
    Rename,
    Resize,
    Restart,
    Save,
    Start,
    Stop,
    Tag,
    Top,
    Unmount,
    Unpause,
    Untag,
    Update,
}

impl Action {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Commit => "commit",
            Self::Connect => "connect",
            Self::Copy => "copy",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Destroy => "destroy",
            Self::Detach => "detach",
            Self::Die => "die",
            Self::Disconnect => "disconnect",
            Self::ExecCreate => "exec_create",
            Self::ExecStart => "exec_start",
            Self::ExecDie => "exec_die",
            Self::Export => "export",
            Self::HealthStatus => "health_status",
            Self::Import => "import",
            Self::Kill => "kill",
            Self::Load => "load",
            Self::Mount => "mount",
            Self::Oom => "oom",
            Self::Pause => "pause",
            Self::Prune => "prune",
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Rename => "rename",
            Self::Resize => "resize",
            Self::Restart => "restart",
            Self::Save => "save",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Tag => "tag",
            Self::Top => "top",
            Self::Unmount => "unmount",
            Self::Unpause => "unpause",
            Self::Untag => "untag",
            Self::Update => "update",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// To what.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// What.
    pub action: Action,
    /// Id of the object.
    pub id: String,
    /// Name, image, labels, and what belongs to the action.
    pub attributes: BTreeMap<String, String>,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// From then on; from now on where absent.
    pub since: Option<Timestamp>,
    /// Until then; for ever where absent.
    pub until: Option<Timestamp>,
}

/// Appends an event.
pub(crate) fn append(folder: &Path, event: &Event) -> Result<()> {
    let what = || format!("event file in {}", folder.display());
    let mut line =
        serde_json::to_vec(event).map_err(|error| crate::Error::new(error.to_string())).context(what)?;
    line.push(b'\n');
    let mut file = match open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_folder(folder).context(what)?;
            open(folder)
        }
        other => other,
    }
    .context(what)?;
    file.write_all(&line).context(what)?;
    if file.metadata().is_ok_and(|found| found.len() > MAX_BYTES) {
        rotate(folder, &file).context(what)
    } else {
        Ok(())
    }
}

fn open(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(current(folder))
}

fn current(folder: &Path) -> PathBuf {
    folder.join("events.jsonl")
}

fn previous(folder: &Path) -> PathBuf {
    folder.join("events.jsonl.1")
}

/// Several may find the file too large at once: only the one that still finds it in its place renames it.
fn rotate(folder: &Path, file: &File) -> std::io::Result<()> {
    rustix::fs::flock(file, FlockOperation::LockExclusive)?;
    let same = std::fs::metadata(current(folder)).and_then(|now| Ok(now.ino() == file.metadata()?.ino()))?;
    if same { std::fs::rename(current(folder), previous(folder)) } else { Ok(()) }
}

/// Events, oldest first; the iterator waits for those to come until the query's end.
#[derive(Debug)]
pub struct Events {
    folder: PathBuf,
    query: EventQuery,
    files: Vec<BufReader<File>>,
    line: Vec<u8>,
    watch: OwnedFd,
}

impl Events {
    pub(crate) fn open(folder: PathBuf, mut query: EventQuery) -> Result<Self> {
        make_folder(&folder).context(|| folder.display().to_string())?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags).context(|| "watch the events")?;
        let wanted =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(watch.as_fd(), &folder, wanted).context(|| "watch the events")?;
        query.since.get_or_insert_with(Timestamp::now);
        let mut files = Vec::new();
        for path in [previous(&folder), current(&folder)] {
            match File::open(&path) {
                Ok(file) => files.push(BufReader::new(file)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| format!("open {}", path.display())),
            }
        }
        // The next to be read stands last.
        files.reverse();
        Ok(Self { folder, query, files, line: Vec::new(), watch })
    }

    fn read(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(file) = self.files.last_mut() else {
                // What was written while nobody looked is not announced again.
                if self.next_file()? {
                    continue;
                }
                return Ok(None);
            };
            let count = file.read_until(b'\n', &mut self.line).context(|| "read the events")?;
            if self.line.ends_with(b"\n") {
                // A line that a crash of the machine has cut off is left out.
                let event = serde_json::from_slice::<Event>(&self.line).ok();
                self.line.clear();
                if event.is_some() {
                    return Ok(event);
                }
            } else if count == 0 && !self.next_file()? {
                return Ok(None);
            }
        }
    }

    /// Goes on with the file that has taken the place of the one that is read. False when none has.
    fn next_file(&mut self) -> Result<bool> {
        if self.files.len() > 1 {
            self.files.pop();
            return Ok(true);
        }
        let inode = |file: &File| file.metadata().map(|found| found.ino()).context(|| "read the events");
        let now = match File::open(current(&self.folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other.context(|| "open the events")?,
        };
        match self.files.last() {
            Some(file) if inode(file.get_ref())? == inode(&now)? => Ok(false),
            _ => {
                self.files = vec![BufReader::new(now)];
                self.line.clear();
                Ok(true)
            }
        }
    }

    /// Waits for more; false when the query's end has come.
    fn wait(&self) -> Result<bool> {
        let left = match self.query.until {
            None => None,
            Some(until) => match until.time().duration_since(Timestamp::now().time()) {
                Ok(left) => Some(left + Duration::from_millis(1)),
                Err(_) => return Ok(false),
            },
        };
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other.context(|| "wait for events")?;
            }
        }
        let mut buffer = [0_u8; 4096];
        while rustix::io::read(&self.watch, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
        Ok(true)
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(Some(event)) => {
                    if self.query.until.is_some_and(|until| event.time > until) {
                        return None;
                    }
                    if self.query.since.is_none_or(|since| event.time >= since) {
                        return Some(Ok(event));
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            match self.wait() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Event {
        Event {
            time: Timestamp::now(),
            kind: EventType::Container,
            action: Action::Start,
            id: number.to_string(),
            attributes: BTreeMap::from([("name".to_owned(), "x".repeat(1000))]),
        }
    }

    #[test]
    fn words_are_those_that_are_written() {
        for action in [Action::Attach, Action::ExecDie, Action::HealthStatus, Action::Untag, Action::Oom] {
            assert_eq!(serde_json::to_string(&action).unwrap(), format!("{:?}", action.name()));
        }
    }

    #[test]
    fn events_are_read_in_order_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let begin = Timestamp::now();
        let count = 2 * MAX_BYTES as usize / 1100;
        for number in 0..count {
            append(folder.path(), &event(number)).unwrap();
        }
        let query = EventQuery { since: Some(begin), until: Some(Timestamp::now()) };
        let read: Vec<Event> =
            Events::open(folder.path().to_owned(), query).unwrap().map(std::result::Result::unwrap).collect();
        // What was rotated twice is gone; the rest is whole and in order.
        assert_eq!(read.last().unwrap().id, (count - 1).to_string());
        let first: usize = read[0].id.parse().unwrap();
        assert_eq!(read.len(), count - first);
        assert!(read.len() > count / 3, "{} of {count}", read.len());
        let bytes: u64 = crate::file::names_in(folder.path())
            .unwrap()
            .iter()
            .map(|name| std::fs::metadata(folder.path().join(name)).unwrap().len())
            .sum();
        assert!(bytes < 2 * MAX_BYTES + 4096);
    }

    #[test]
    fn a_follower_sees_what_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let mut events = Events::open(path.clone(), EventQuery::default()).unwrap();
        let writer =
            std::thread::spawn(move || (0..50).for_each(|number| append(&path, &event(number)).unwrap()));
        for number in 0..50 {
            assert_eq!(events.next().unwrap().unwrap().id, number.to_string());
        }
        writer.join().unwrap();
    }
}
