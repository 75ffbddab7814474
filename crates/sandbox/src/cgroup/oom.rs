//! What the kernel killed for lack of memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use moat_linux::{Errno, Error};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, inotify};
use serde::{Deserialize, Serialize};

use super::{CgroupState, Home, file};
use crate::{Context, Result};

/// The kernel's kills in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oom {
    /// The group, as the kernel's log names it; empty when the host has no memory controller.
    pub group: String,
    /// How many processes were killed.
    pub kills: u64,
    /// Those that the kernel's log still names, oldest first; empty when this user may not read it.
    pub victims: Vec<Victim>,
}

/// A process that the kernel killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Its id in the machine's first PID namespace.
    pub pid: i32,
    /// Its name, at most 15 bytes; the process chose it.
    pub name: String,
    /// The group whose limit was hit.
    pub limit_of: String,
    /// The group that it was in.
    pub group: String,
}

/// A descriptor that is readable when the group may have met its memory limit.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OomWatch {
    /// Takes what is there to read, so that the descriptor waits for the next event. [`CgroupState::oom`] then tells
    /// whether it was a kill: v2 reports any change of memory.events, v1 also the removal of the group.
    pub fn drain(&self) {
        // One eventfd counter, or up to 4 KiB of inotify events; never blocks.
        let mut buffer = [0_u8; 4096];
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
    }
}

impl CgroupState {
    /// How many processes of the group were killed for lack of memory, and which the kernel's log names.
    pub fn oom(&self) -> Result<Oom> {
        let group = match self.home(("memory", "memory")) {
            Some(Home::V1(group) | Home::V2(group)) => group,
            None => return Ok(Oom::default()),
        };
        let mut oom = Oom { group: group.path.clone(), kills: self.oom_kills()?, victims: Vec::new() };
        if oom.kills > 0 {
            let records = kernel_log().unwrap_or_default();
            oom.victims = records.iter().filter_map(|record| victim(record, &group.path)).collect();
            // An earlier group of this path may have had kills of its own.
            let earlier = oom.victims.len().saturating_sub(usize::try_from(oom.kills).unwrap_or(usize::MAX));
            oom.victims.drain(..earlier);
        }
        Ok(oom)
    }

    /// How many processes were killed, without their names.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = match self.home(("memory", "memory")) {
            Some(Home::V1(group)) => group.file("memory.oom_control"),
            Some(Home::V2(group)) => group.file("memory.events"),
            None => return Ok(0),
        };
        Ok(file::entry(&file, "oom_kill")?.unwrap_or(0))
    }

    /// A descriptor to poll for memory events, none when the host has no memory controller.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>> {
        let fd = match self.home(("memory", "memory")) {
            Some(Home::V1(group)) => watch_v1(&group.directory),
            Some(Home::V2(group)) => watch_v2(&group.file("memory.events")),
            None => return Ok(None),
        };
        let fd = fd.context(|| "the memory events of the cgroup")?;
        Ok(Some(OomWatch { fd }))
    }
}

/// An eventfd that the kernel signals: "EVENTFD FD" written into cgroup.event_control.
fn watch_v1(directory: &Path) -> moat_linux::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let control = moat_linux::fs::open(&directory.join("memory.oom_control"), OFlags::RDONLY)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| Error::new("eventfd2", "0, CLOEXEC|NONBLOCK", errno))?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    file::write(&directory.join("cgroup.event_control"), &line)?;
    Ok(event)
}

fn watch_v2(events: &Path) -> moat_linux::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd =
        inotify::init(flags).map_err(|errno| Error::new("inotify_init1", format!("{flags:?}"), errno))?;
    inotify::add_watch(&fd, events, inotify::WatchFlags::MODIFY)
        .map_err(|errno| Error::new("inotify_add_watch", events.display().to_string(), errno))?;
    Ok(fd)
}

/// The records of /dev/kmsg that tell of a kill.
fn kernel_log() -> moat_linux::Result<Vec<String>> {
    let fd = moat_linux::fs::open(Path::new("/dev/kmsg"), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut records = Vec::new();
    // One read gives one record, at most 8 KiB with its escapes.
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
                if text.contains(MARK) {
                    records.push(text.into_owned());
                }
            }
            // The ring overtook the reader: it goes on with the oldest record that is left.
            Err(Errno::PIPE) => {}
            // EAGAIN is the end.
            Err(_) => break,
        }
    }
    Ok(records)
}

const MARK: &str = ";oom-kill:constraint=";

/// Reads a record like `6,339,514,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,
/// oom_memcg=/x,task_memcg=/x/y,task=NAME,pid=7,uid=0`, when one of the two groups is `group` or below it.
///
/// The process chose its name, and perhaps the groups below its own: the id is taken from the right, the
/// groups from the left, the name from the few bytes that it can have.
fn victim(record: &str, group: &str) -> Option<Victim> {
    let line = record.split_once(MARK)?.1.lines().next()?;
    let (line, _uid) = line.rsplit_once(",uid=")?;
    let (line, pid) = line.rsplit_once(",pid=")?;
    let (_, groups) = line.split_once(",oom_memcg=").unwrap_or(("", ""));
    let (limit_of, rest) = match groups.split_once(",task_memcg=") {
        Some(pair) => pair,
        // The whole machine was out of memory.
        None => ("", line.split_once(",task_memcg=")?.1),
    };
    // A name has at most 15 bytes; the kernel writes an unprintable one as four.
    let bytes = rest.as_bytes();
    let start = (bytes.len().saturating_sub(15 * 4 + ",task=".len())..bytes.len())
        .find(|at| bytes.get(*at..).is_some_and(|tail| tail.starts_with(b",task=")))?;
    let (task_group, name) = (rest.get(..start)?, rest.get(start + ",task=".len()..)?);
    if !lies_in(limit_of, group) && !lies_in(task_group, group) {
        return None;
    }
    let pid = pid.parse().ok()?;
    Some(Victim { pid, name: name.to_owned(), limit_of: limit_of.to_owned(), group: task_group.to_owned() })
}

fn lies_in(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tail: &str) -> String {
        format!(
            "6,339,514,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,{tail}\n"
        )
    }

    #[test]
    fn victims_of_the_group_and_of_those_below() {
        let text = record("oom_memcg=/a/box,task_memcg=/a/box/in,task=eat,pid=17,uid=0");
        let found = victim(&text, "/a/box").unwrap();
        let expected = Victim {
            pid: 17,
            name: "eat".to_owned(),
            limit_of: "/a/box".to_owned(),
            group: "/a/box/in".to_owned(),
        };
        assert_eq!(found, expected);
        assert!(victim(&text, "/a").is_some());
        assert_eq!(victim(&text, "/a/bo"), None);
        assert_eq!(victim(&text, "/b"), None);
    }

    #[test]
    fn a_machine_without_memory_names_no_limit() {
        let text = record("global_oom,task_memcg=/box,task=eat,pid=17,uid=0");
        assert_eq!(victim(&text, "/box").unwrap().limit_of, "");
    }

    #[test]
    fn a_name_can_not_pretend_to_be_another_process() {
        let text = record("oom_memcg=/box,task_memcg=/box,task=a,pid=1,uid=0,pid=17,uid=0");
        let found = victim(&text, "/box").unwrap();
        assert_eq!((found.pid, found.name.as_str()), (17, "a,pid=1,uid=0"));
        let text = record("oom_memcg=/box,task_memcg=/box,task=a,task=b,pid=17,uid=0");
        assert_eq!(victim(&text, "/box").unwrap().name, "a,task=b");
    }

    #[test]
    fn other_records_are_left_out() {
        assert_eq!(victim("6,1,1,-;Memory cgroup out of memory: Killed process 7", "/"), None);
        assert_eq!(victim(&record("oom_memcg=/box"), "/box"), None);
    }
}
