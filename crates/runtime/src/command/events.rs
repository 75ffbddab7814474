//! `events`: statistics and kills for lack of memory, a line of JSON each.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use moat_linux::{Errno, process};
use moat_sandbox::cgroup::{self, OomWatch};
use moat_sandbox::state::{ContainerState, Status};
use moat_sandbox::{Error, Result, container};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::oom::Victim;
use super::output::{json_line, print};
use super::{Session, container_id, units};
use crate::cli::EventsArgs;

/// One line.
#[derive(Serialize)]
struct Event<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    data: T,
}

/// The data of an `oom` line.
#[derive(Serialize)]
struct OomData<'a> {
    cgroup: &'a str,
    /// Kills in all.
    count: u64,
    /// Those of this line.
    victims: Vec<Victim>,
}

/// How long a memory event may run ahead of the kill that it announces, and how often that is looked up:
/// v1 tells that the limit was met, and kills after it.
const AHEAD: Duration = Duration::from_secs(1);
const LOOK_UP: Duration = Duration::from_millis(10);

pub(crate) fn events(session: &Session<'_>, args: &EventsArgs) -> Result<u8> {
    let interval = units::duration("--interval", &args.interval)?;
    let state = running(session, &args.id)?;
    if args.stats {
        print(&stats_line(&state)?)?;
        return Ok(0);
    }
    let pidfd = process::pidfd(state.pid)?;
    let told = state.cgroup.oom()?;
    let mut follower = Follower {
        watch: state.cgroup.oom_watch()?,
        told,
        next_stats: Instant::now() + interval,
        look_until: None,
        interval,
        state,
        pidfd,
    };
    // The pidfd is of the process that was meant only if that one still lives.
    if follower.state.is_alive() {
        follower.follow()?;
    }
    Ok(0)
}

/// The state of a container that has processes to tell of.
pub(crate) fn running(session: &Session<'_>, id: &str) -> Result<ContainerState> {
    let (folder, state) = container::load(&session.store, &container_id(id)?)?;
    match state.status(&folder)? {
        Status::Stopped | Status::Creating => {
            Err(Error::new(format!("container with id {id} is not running")))
        }
        _ => Ok(state),
    }
}

fn stats_line(state: &ContainerState) -> Result<String> {
    json_line(&Event { kind: "stats", id: &state.id, data: state.cgroup.stats()? })
}

/// What is awaited, and what was told already.
struct Follower {
    state: ContainerState,
    pidfd: OwnedFd,
    watch: Option<OomWatch>,
    told: cgroup::Oom,
    interval: Duration,
    next_stats: Instant,
    look_until: Option<Instant>,
}

impl Follower {
    /// Prints lines until the container has ended.
    fn follow(&mut self) -> Result<()> {
        // Since the count was read, before the watch was there.
        self.tell_kills()?;
        loop {
            let (ended, memory_event) = self.wait()?;
            if let (true, Some(watch)) = (memory_event, &self.watch) {
                watch.drain();
                self.look_until = Some(Instant::now() + AHEAD);
            }
            if self.look_until.is_some() || ended {
                self.tell_kills()?;
            }
            if ended {
                return Ok(());
            }
            let now = Instant::now();
            self.look_until = self.look_until.filter(|end| now < *end);
            if now >= self.next_stats {
                self.next_stats = now + self.interval;
                match stats_line(&self.state) {
                    // The group is removed when the container is.
                    Err(_) if !self.state.is_alive() => {}
                    other => print(&other?)?,
                }
            }
        }
    }

    /// Waits for the container's end, a memory event, or the time of the next line.
    fn wait(&self) -> Result<(bool, bool)> {
        let pause = self.next_stats.saturating_duration_since(Instant::now());
        let pause = if self.look_until.is_some() { pause.min(LOOK_UP) } else { pause };
        let limit = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        };
        let mut ready = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        ready.extend(self.watch.iter().map(|watch| PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)));
        match poll(&mut ready, Some(&limit)) {
            Err(Errno::INTR) => return Ok((false, false)),
            other => other.map_err(std::io::Error::from)?,
        };
        let seen = |index: usize| ready.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok((seen(0), seen(1)))
    }

    /// A line for the kills since the last one.
    fn tell_kills(&mut self) -> Result<()> {
        if self.state.cgroup.oom_kills()? <= self.told.kills {
            return Ok(());
        }
        let oom = self.state.cgroup.oom()?;
        let new = oom.victims.iter().filter(|victim| !self.told.victims.contains(victim));
        let data = OomData { cgroup: &oom.group, count: oom.kills, victims: new.map(Victim::from).collect() };
        print(&json_line(&Event { kind: "oom", id: &self.state.id, data })?)?;
        self.told = oom;
        Ok(())
    }
}
