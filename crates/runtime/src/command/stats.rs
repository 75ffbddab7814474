//! `stats`: what a container uses, once, for people.

use moat_sandbox::Result;
use moat_sandbox::cgroup::{MemoryEntry, MemoryEvents, Pressure, Stats};

use super::Session;
use super::events::running;
use super::output::{json_line, print, table};
use crate::cli::{Format, StatsArgs};

pub(crate) fn stats(session: &Session<'_>, args: &StatsArgs) -> Result<u8> {
    let stats = running(session, &args.id)?.cgroup.stats()?;
    print(&match args.format {
        Format::Json => json_line(&stats)?,
        Format::Table => rows(&stats),
    })?;
    Ok(0)
}

fn rows(stats: &Stats) -> String {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: String| rows.push([name.to_owned(), value]);
    add("WHAT", "VALUE".to_owned());
    let usage = &stats.cpu.usage;
    let (total, user, system) = (seconds(usage.total), seconds(usage.user), seconds(usage.kernel));
    add("cpu", format!("{total} (user {user}, system {system})"));
    let throttling = &stats.cpu.throttling;
    if throttling.periods > 0 {
        let (periods, throttled) = (throttling.periods, throttling.throttled_periods);
        let waited = seconds(throttling.throttled_time);
        add("throttled", format!("{throttled} of {periods} periods, {waited}"));
    }
    let memory = &stats.memory;
    add("memory", entry(&memory.usage));
    add("with swap", entry(&memory.swap));
    add("page cache", size(memory.cache));
    add("memory events", events(&memory.event_count));
    let limit = if stats.pids.limit == 0 { "no limit".to_owned() } else { stats.pids.limit.to_string() };
    add("tasks", format!("{} of {limit}", stats.pids.current));
    for (kind, op) in [("read", "Read"), ("written", "Write")] {
        let of = |entries: &[moat_sandbox::cgroup::BlkioEntry]| -> u64 {
            entries.iter().filter(|entry| entry.op == op).map(|entry| entry.value).sum()
        };
        let (bytes, calls) =
            (of(&stats.blkio.io_service_bytes_recursive), of(&stats.blkio.io_serviced_recursive));
        add(kind, format!("{} in {calls} operations", size(bytes)));
    }
    for (of, psi) in [("cpu", &stats.cpu.psi), ("memory", &stats.memory.psi), ("io", &stats.blkio.psi)] {
        if let Some(psi) = psi {
            add(&format!("{of} pressure"), pressure(psi));
        }
    }
    table(&rows)
}

fn seconds(nanoseconds: u64) -> String {
    format!("{:.3} s", nanoseconds as f64 / 1e9)
}

/// Limits above this mean that there is none: v1 writes the largest page number in bytes.
const NO_LIMIT: u64 = i64::MAX as u64 / 2;

fn entry(entry: &MemoryEntry) -> String {
    let limit = if entry.limit >= NO_LIMIT { "no limit".to_owned() } else { size(entry.limit) };
    format!(
        "{} of {limit}, at most {}, limit hit {} times",
        size(entry.usage),
        size(entry.max),
        entry.failcnt
    )
}

/// Bytes in the unit that leaves one to four digits before the point.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = if unit == "B" { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn events(events: &MemoryEvents) -> String {
    let all = [
        ("low", events.low),
        ("high", events.high),
        ("max", events.max),
        ("oom", events.oom),
        ("oom_kill", events.oom_kill),
        ("oom_group_kill", events.oom_group_kill),
    ];
    let seen: Vec<String> =
        all.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    if seen.is_empty() { "none".to_owned() } else { seen.join(", ") }
}

fn pressure(pressure: &Pressure) -> String {
    let (some, full) = (&pressure.some, &pressure.full);
    format!(
        "some {:.2} %, full {:.2} % of the last 10 s; {} and {} in all",
        some.avg10,
        full.avg10,
        seconds(some.total * 1000),
        seconds(full.total * 1000)
    )
}

#[cfg(test)]
mod tests {
    use super::{rows, size};

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(20 << 20), "20.0 MiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn a_table_without_numbers() {
        let text = rows(&moat_sandbox::cgroup::Stats::default());
        assert!(text.contains("memory events   none\n"), "{text}");
    }
}
