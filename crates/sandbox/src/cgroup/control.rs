//! What is done to a group as a whole: listing, killing, freezing and removing it.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use moat_linux::Errno;

use super::{CgroupState, Group, Operation, file};
use crate::{Context, Error, Result};

/// How long a group that has just lost its last process may still be busy.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a group may take to freeze.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);

fn what(group: &Group) -> String {
    format!("cgroup {}", group.directory.display())
}

/// Sleeps that grow from a quarter of a millisecond to 20, until the time is over.
struct Patience {
    end: Instant,
    pause: Duration,
}

impl Patience {
    fn new(patience: Duration) -> Self {
        Self { end: Instant::now() + patience, pause: Duration::from_micros(250) }
    }

    /// Waits; false when the time is over.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.end {
            return false;
        }
        sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(20));
        true
    }
}

/// The processes of a directory and those below it.
fn processes(directory: &Path, found: &mut BTreeSet<i32>) -> moat_linux::Result<()> {
    // A threaded group has no answer; the processes stand in the group above it.
    let text = file::read_optional(&directory.join("cgroup.procs"))?.unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory)? {
        processes(&child, found)?;
    }
    Ok(())
}

fn children(directory: &Path) -> moat_linux::Result<Vec<std::path::PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            return Err(moat_linux::Error::new("getdents64", directory.display().to_string(), errno));
        }
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

/// rmdir of a group and those below it. A group with children says EBUSY, as one with processes does.
fn remove_tree(directory: &Path) -> moat_linux::Result<()> {
    let remove = || match moat_linux::fs::unlink_at(rustix::fs::CWD, directory, true) {
        Err(error) if error.errno() == Errno::NOENT => Ok(()),
        done => done,
    };
    match remove() {
        Err(error) if error.errno() == Errno::BUSY => {
            let children = children(directory)?;
            if children.is_empty() {
                return Err(error);
            }
            for child in children {
                remove_tree(&child)?;
            }
            remove()
        }
        done => done,
    }
}

impl CgroupState {
    /// The group that tells about processes: v2's, or any of v1's, since all hold the same.
    fn census(&self) -> Option<&Group> {
        self.unified.as_ref().or_else(|| self.legacy_with("freezer")).or_else(|| self.legacy.first())
    }

    /// The processes of the group and of those below it, in ascending order.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut found = BTreeSet::new();
        if let Some(group) = self.census() {
            processes(&group.directory, &mut found).context(|| what(group))?;
        }
        Ok(found.into_iter().collect())
    }

    /// Kills every process of the group and of those below it; it does not wait for their end.
    ///
    /// cgroup.kill (Linux 5.14) kills all at once, also frozen ones. Without it the group is frozen, so that
    /// nothing forks away, signalled and thawed: a frozen v1 group takes SIGKILL only when it thaws.
    pub fn kill_all(&self) -> Result<()> {
        if let Some(group) = &self.unified {
            let killed = file::write(&group.file("cgroup.kill"), "1");
            match killed {
                Ok(()) => return self.thaw_legacy(),
                // Gone, or an older kernel: the slow way finds out which.
                Err(error) if error.errno() == Errno::NOENT => {}
                Err(error) => return Err(error).context(|| what(group)),
            }
        }
        // A group that can not freeze is signalled until nothing is left.
        let frozen = self.freeze().is_ok();
        let mut rest = Patience::new(FREEZE_PATIENCE);
        let mut outcome = Ok(());
        loop {
            let pids = self.pids()?;
            for pid in &pids {
                match moat_linux::process::kill(*pid, rustix::process::Signal::KILL.as_raw()) {
                    Err(error) if error.errno() != Errno::SRCH => outcome = Err(error.into()),
                    _ => {}
                }
            }
            if frozen || pids.is_empty() || !rest.wait() {
                break;
            }
        }
        self.thaw()?;
        outcome
    }

    /// Stops every process of the group, and returns when all have stopped.
    ///
    /// v2's freezer is preferred where both are there: v1's swallows SIGKILL.
    pub fn freeze(&self) -> Result<()> {
        if let Some(group) = &self.unified {
            file::write(&group.file("cgroup.freeze"), "1").context(|| what(group))?;
            return wait_frozen(group);
        }
        let Some(group) = self.legacy_with("freezer") else {
            return Err(Error::new("the container has no cgroup with a freezer, so it can not be paused")
                .hint("ordinary users have control groups where cgroup v2 is all there is and systemd gives them some"));
        };
        let state = group.file("freezer.state");
        let mut patience = Patience::new(FREEZE_PATIENCE);
        loop {
            // A process that forks meanwhile escapes; writing again catches its child.
            file::write(&state, "FROZEN").context(|| what(group))?;
            if file::read(&state).context(|| what(group))? == "FROZEN" {
                return Ok(());
            }
            if !patience.wait() {
                file::write(&state, "THAWED").context(|| what(group))?;
                return Err(not_frozen(group));
            }
        }
    }

    /// Lets the processes of the group run again.
    pub fn thaw(&self) -> Result<()> {
        if let Some(group) = &self.unified {
            match file::write(&group.file("cgroup.freeze"), "0") {
                Err(error) if error.errno() != Errno::NOENT => return Err(error).context(|| what(group)),
                _ => {}
            }
        }
        self.thaw_legacy()
    }

    /// Another program may have frozen the v1 group, and then nothing in it can be killed.
    fn thaw_legacy(&self) -> Result<()> {
        let Some(group) = self.legacy_with("freezer") else { return Ok(()) };
        match file::write(&group.file("freezer.state"), "THAWED") {
            Err(error) if error.errno() != Errno::NOENT => Err(error).context(|| what(group)),
            _ => Ok(()),
        }
    }

    /// Whether the group is frozen; one that is gone is not.
    pub fn is_frozen(&self) -> Result<bool> {
        if let Some(group) = &self.unified {
            let wanted = file::read_optional(&group.file("cgroup.freeze")).context(|| what(group))?;
            if wanted.as_deref() == Some("1") {
                return Ok(true);
            }
        }
        let Some(group) = self.legacy_with("freezer") else { return Ok(false) };
        let state = file::read_optional(&group.file("freezer.state")).context(|| what(group))?;
        Ok(state.is_some_and(|state| state != "THAWED"))
    }

    /// The part of the group that these operations have made: what is to be undone when the next one failed.
    ///
    /// A group that was refused because others use it is not part of it, and must not be killed or removed.
    #[must_use]
    pub fn made_by(&self, applied: &[Operation]) -> Self {
        let made = |group: &&Group| {
            applied.iter().any(|operation| {
                matches!(operation, Operation::MakeDirectory { directory, own: true, .. }
                    if *directory == group.directory)
            })
        };
        Self {
            legacy: self.legacy.iter().filter(made).cloned().collect(),
            unified: self.unified.iter().find(made).cloned(),
        }
    }

    /// Removes the group if nothing is in it or below it, as it is after the container's PID namespace has ended;
    /// says whether it is gone. Asks nothing of the kernel that a group about to go would not need.
    pub fn remove_idle(&self) -> Result<bool> {
        let mut gone = true;
        for group in self.legacy.iter().chain(&self.unified) {
            match moat_linux::fs::unlink_at(rustix::fs::CWD, &group.directory, true) {
                Err(error) if error.errno() == Errno::BUSY => gone = false,
                Err(error) if error.errno() != Errno::NOENT => return Err(error).context(|| what(group)),
                _ => {}
            }
        }
        Ok(gone)
    }

    /// Removes the group where nothing is in it, and leaves it where something stays.
    ///
    /// For what is left of a runtime that was killed before it knew whether the group was its own: what the runtime
    /// has started there is ending, so a busy group gets a moment.
    pub fn remove_empty(&self) -> Result<()> {
        let mut patience = Patience::new(REMOVE_PATIENCE);
        let mut left: Vec<&Group> = self.legacy.iter().chain(&self.unified).collect();
        loop {
            let mut busy = Vec::new();
            for group in left {
                match moat_linux::fs::unlink_at(rustix::fs::CWD, &group.directory, true) {
                    Err(error) if error.errno() == Errno::BUSY => busy.push(group),
                    Err(error) if error.errno() != Errno::NOENT => return Err(error).context(|| what(group)),
                    _ => {}
                }
            }
            left = busy;
            if left.is_empty() || !patience.wait() {
                return Ok(());
            }
        }
    }

    /// Removes the group in every hierarchy, and those below it.
    ///
    /// A process that has just ended can keep its group busy for a moment, so a busy one is tried again; one that
    /// is gone already is fine.
    pub fn remove(&self) -> Result<()> {
        let mut patience = Patience::new(REMOVE_PATIENCE);
        let mut left: Vec<&Group> = self.legacy.iter().chain(&self.unified).collect();
        loop {
            let mut busy = Vec::new();
            let mut refused = None;
            for group in left {
                match remove_tree(&group.directory) {
                    Ok(()) => {}
                    Err(error) if error.errno() == Errno::BUSY => {
                        refused = Some(error);
                        busy.push(group);
                    }
                    Err(error) => return Err(error).context(|| what(group)),
                }
            }
            let Some(error) = refused else { return Ok(()) };
            if !patience.wait() {
                let count = self.pids().map_or(0, |pids| pids.len());
                return Err(Error::new(format!("the cgroup still holds {count} processes: {error}")));
            }
            left = busy;
        }
    }
}

fn wait_frozen(group: &Group) -> Result<()> {
    let mut patience = Patience::new(FREEZE_PATIENCE);
    loop {
        let frozen = file::entry(&group.file("cgroup.events"), "frozen").context(|| what(group))?;
        if frozen == Some(1) {
            return Ok(());
        }
        if !patience.wait() {
            file::write(&group.file("cgroup.freeze"), "0").context(|| what(group))?;
            return Err(not_frozen(group));
        }
    }
}

fn not_frozen(group: &Group) -> Error {
    Error::new(format!("{} did not freeze in {} s", what(group), FREEZE_PATIENCE.as_secs()))
        .hint("a process of it waits in the kernel, perhaps for a file system that does not answer")
}
