//! What a workload uses, and the processes in it.

use std::path::Path;

use moat_model::agent::{Answer, ProcessRow, Request};
use moat_model::network::EndpointState;
use moat_sandbox::cgroup::Stats;
use moat_sandbox::container;

use crate::guest::{unexpected, words};
use crate::launch::sandbox_id;
use crate::{Context, Error, Result, Timestamp, Workload};

/// What a workload uses, counted at one moment.
#[derive(Clone, Debug)]
pub struct WorkloadStats {
    /// When.
    pub time: Timestamp,
    /// What its control groups count: processors, memory, tasks, block devices, pressure.
    pub usage: Stats,
    /// Its network interfaces but loopback.
    pub interfaces: Vec<InterfaceStats>,
    /// Processors of the host.
    pub processors: u32,
    /// Memory of the host.
    pub host_memory_bytes: u64,
}

/// What a network interface has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Its name in the workload.
    pub name: String,
    /// Bytes.
    pub received_bytes: u64,
    /// Packets.
    pub received_packets: u64,
    /// Packets that were damaged.
    pub received_errors: u64,
    /// Packets that found no room.
    pub received_dropped: u64,
    /// Bytes.
    pub sent_bytes: u64,
    /// Packets.
    pub sent_packets: u64,
    /// Packets that could not be sent.
    pub sent_errors: u64,
    /// Packets that found no room.
    pub sent_dropped: u64,
}

impl InterfaceStats {
    /// What one end of a wire has sent, the other has received.
    fn seen_from_inside(&self, name: String) -> Self {
        Self {
            name,
            received_bytes: self.sent_bytes,
            received_packets: self.sent_packets,
            received_errors: self.sent_errors,
            received_dropped: self.sent_dropped,
            sent_bytes: self.received_bytes,
            sent_packets: self.received_packets,
            sent_errors: self.received_errors,
            sent_dropped: self.received_dropped,
        }
    }
}

/// A process of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// As the host sees it.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its effective user on the host.
    pub user: u32,
    /// Time on processors so far.
    pub cpu_ms: u64,
    /// Milliseconds since it was started.
    pub age_ms: u64,
    /// Memory that it holds.
    pub resident_bytes: u64,
    /// Device number of its terminal, 0 for none.
    pub terminal: u32,
    /// R, S, D, Z and so on.
    pub state: char,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its arguments joined by spaces, its name in brackets where it has none.
    pub command: String,
}

impl Workload {
    /// What it uses now.
    ///
    /// Errors: it does not run.
    pub fn stats(&self) -> Result<WorkloadStats> {
        let state = self.state()?;
        if self.is_microvm() {
            return self.stats_of_guest();
        }
        let (_, sandbox) =
            container::load(&self.engine().sandbox(), &sandbox_id(self)?).map_err(|_| self.not_running())?;
        let devices = std::fs::read_to_string(format!("/proc/{}/net/dev", state.process.pid));
        Ok(WorkloadStats {
            time: Timestamp::now(),
            usage: sandbox.cgroup.stats()?,
            interfaces: interfaces(&devices.map_err(|_| self.not_running())?),
            processors: processors()?,
            host_memory_bytes: host_memory()?,
        })
    }

    /// Its processes, as the host sees them.
    ///
    /// Errors: it does not run.
    pub fn top(&self) -> Result<Vec<ProcessInfo>> {
        let state = self.state()?;
        if self.is_microvm() {
            return self.top_of_guest();
        }
        let (_, sandbox) =
            container::load(&self.engine().sandbox(), &sandbox_id(self)?).map_err(|_| self.not_running())?;
        let mut pids = sandbox.cgroup.pids()?;
        if pids.is_empty() {
            // It has no control group of its own: its PID namespace tells.
            pids = in_namespace_of(state.process.pid)?;
        }
        pids.sort_unstable();
        pids.dedup();
        let clock = Clock::read()?;
        // One that has ended meanwhile is left out.
        Ok(pids.into_iter().filter_map(|pid| process(pid, &clock)).collect())
    }

    /// As the guest's kernel counts it, but for the network: that is counted at the host's side.
    fn stats_of_guest(&self) -> Result<WorkloadStats> {
        let (agent, _) = self.guest().map_err(|_| self.not_running())?;
        let answer = agent.ask(&Request::Stats)?;
        let Answer::Stats { container, memory } = answer else { return Err(unexpected(&answer)) };
        let usage = serde_json::from_value(container);
        let devices = std::fs::read_to_string("/proc/net/dev").context(|| "/proc/net/dev")?;
        let devices = interfaces(&devices);
        let places = self.attachment()?.into_iter().flat_map(|attachment| attachment.endpoints);
        let of_place = |place: EndpointState| {
            let device = devices.iter().find(|device| device.name == place.device)?;
            Some(device.seen_from_inside(place.interface))
        };
        Ok(WorkloadStats {
            time: Timestamp::now(),
            usage: usage
                .map_err(|error| Error::new(words(&error.to_string())))
                .context(|| "the guest's figures")?,
            interfaces: places.filter_map(of_place).collect(),
            processors: processors()?,
            host_memory_bytes: memory.total_bytes,
        })
    }

    /// As the guest's kernel numbers them, who says no more of them.
    fn top_of_guest(&self) -> Result<Vec<ProcessInfo>> {
        let (agent, _) = self.guest().map_err(|_| self.not_running())?;
        let answer = agent.ask(&Request::Processes)?;
        let Answer::Processes { list } = answer else { return Err(unexpected(&answer)) };
        let info = |row: ProcessRow| ProcessInfo {
            pid: row.pid,
            parent: row.parent,
            user: row.uid,
            cpu_ms: row.cpu_ms,
            state: '?',
            command: words(&row.command),
            ..ProcessInfo::default()
        };
        Ok(list.into_iter().map(info).collect())
    }

    fn not_running(&self) -> Error {
        Error::conflict(format!("workload {} is not running", self.name()))
    }
}

/// How many processors are online.
pub(crate) fn processors() -> Result<u32> {
    let text = std::fs::read_to_string("/proc/stat").context(|| "/proc/stat")?;
    let of_one = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    Ok(text.lines().filter(of_one).count() as u32)
}

/// The memory of the host, in bytes.
pub(crate) fn host_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context(|| "/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::new("/proc/meminfo has no MemTotal"))
}

/// Reads /proc/PID/net/dev.
fn interfaces(text: &str) -> Vec<InterfaceStats> {
    let line = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> =
            counts.split_ascii_whitespace().map(|count| count.parse().unwrap_or(0)).collect();
        let count = |index: usize| counts.get(index).copied().unwrap_or(0);
        let name = name.trim();
        (name != "lo").then(|| InterfaceStats {
            name: name.to_owned(),
            received_bytes: count(0),
            received_packets: count(1),
            received_errors: count(2),
            received_dropped: count(3),
            sent_bytes: count(8),
            sent_packets: count(9),
            sent_errors: count(10),
            sent_dropped: count(11),
        })
    };
    text.lines().filter_map(line).collect()
}

/// What turns the kernel's ticks into times.
struct Clock {
    uptime_ms: u64,
    ticks_per_second: u64,
    page_bytes: u64,
}

impl Clock {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/uptime").context(|| "/proc/uptime")?;
        let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Ok(Self {
            uptime_ms: (seconds * 1000.0) as u64,
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            page_bytes: rustix::param::page_size() as u64,
        })
    }

    fn milliseconds(&self, ticks: u64) -> u64 {
        ticks * 1000 / self.ticks_per_second.max(1)
    }
}

/// Processes in the PID namespace of another, and those below it.
fn in_namespace_of(first: i32) -> Result<Vec<i32>> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(first) else { return Ok(Vec::new()) };
    let names = crate::file::names_in(Path::new("/proc"))?;
    let pids = names.iter().filter_map(|name| name.parse::<i32>().ok());
    Ok(pids.filter(|pid| namespace(*pid).as_ref() == Some(&wanted)).collect())
}

/// Reads /proc/PID; `None` for a process that is gone.
fn process(pid: i32, clock: &Clock) -> Option<ProcessInfo> {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let user = user.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let command = String::from_utf8_lossy(&read("cmdline")?).trim_end_matches('\0').replace('\0', " ");
    let mut info = parse_stat(&stat, clock)?;
    info.pid = pid;
    info.user = user;
    info.command = if command.is_empty() { format!("[{}]", info.name) } else { command };
    Some(info)
}

/// Reads /proc/PID/stat, proc(5).
fn parse_stat(stat: &str, clock: &Clock) -> Option<ProcessInfo> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once(" (")?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first field after the name is number 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let count = |number: usize| field(number)?.parse::<u64>().ok();
    Some(ProcessInfo {
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        terminal: field(7)?.parse::<i64>().ok()? as u32,
        cpu_ms: clock.milliseconds(count(14)? + count(15)?),
        age_ms: clock.uptime_ms.saturating_sub(clock.milliseconds(count(22)?)),
        resident_bytes: count(24)? * clock.page_bytes,
        name: name.to_owned(),
        ..ProcessInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let clock = Clock { uptime_ms: 100_000, ticks_per_second: 100, page_bytes: 4096 };
        let line = "42 (a) b (c) S 7 42 42 34816 42 4194304 1 0 0 0 150 50 0 0 20 0 1 0 9000 1000 25 18446744073709551615";
        let info = parse_stat(line, &clock).unwrap();
        assert_eq!((info.name.as_str(), info.state, info.parent), ("a) b (c", 'S', 7));
        assert_eq!(
            (info.cpu_ms, info.age_ms, info.resident_bytes, info.terminal),
            (2000, 10_000, 102_400, 34816)
        );
        assert_eq!(parse_stat("42 (x", &clock), None);
    }

    #[test]
    fn interfaces_but_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo:  5 1 0 0 0 0 0 0  5 1 0 0 0 0 0 0\n  eth0: 10 2 1 3 0 0 0 0 20 4 5 6 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].received_bytes, found[0].received_dropped), (10, 3));
        assert_eq!((found[0].sent_bytes, found[0].sent_errors, found[0].sent_dropped), (20, 5, 6));
    }
}
