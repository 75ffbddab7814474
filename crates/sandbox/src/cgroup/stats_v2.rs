//! Statistics from the files of cgroup v2.

use std::collections::BTreeMap;

use super::stats::{
    BlkioEntry, BlkioStats, CpuStats, CpusetStats, HugetlbStats, MemoryEntry, MemoryEvents, MemoryStats,
    PidsStats, Pressure, PressureLine,
};
use super::{Group, file, stats};
use crate::{Context, Result};

pub(super) fn cpu(group: &Group, cpu: &mut CpuStats) -> Result<()> {
    let table = file::table(&group.file("cpu.stat"))?;
    let get = |name: &str| table.get(name).copied().unwrap_or(0);
    cpu.usage.total = get("usage_usec") * 1000;
    cpu.usage.user = get("user_usec") * 1000;
    cpu.usage.kernel = get("system_usec") * 1000;
    cpu.throttling.periods = get("nr_periods");
    cpu.throttling.throttled_periods = get("nr_throttled");
    cpu.throttling.throttled_time = get("throttled_usec") * 1000;
    Ok(())
}

pub(super) fn cpuset(group: &Group, cpuset: &mut CpusetStats) -> Result<()> {
    let text = |name: &str| file::read_optional(&group.file(name));
    cpuset.cpus = stats::list(&text("cpuset.cpus.effective")?.unwrap_or_default());
    cpuset.mems = stats::list(&text("cpuset.mems.effective")?.unwrap_or_default());
    Ok(())
}

pub(super) fn memory(group: &Group, memory: &mut MemoryStats) -> Result<()> {
    let number = |name: &str| file::number(&group.file(name));
    memory.raw = file::table(&group.file("memory.stat"))?;
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or(0);
    memory.cache = raw("file");
    memory.kernel.usage = raw("kernel");
    memory.kernel_tcp.usage = raw("sock");
    memory.event_count = events(&file::table(&group.file("memory.events"))?);
    memory.usage = MemoryEntry {
        limit: number("memory.max")?,
        usage: number("memory.current")?,
        max: number("memory.peak")?,
        failcnt: memory.event_count.max,
    };
    // The shape counts memory and swap, v2 counts swap alone.
    let swap_events = file::table(&group.file("memory.swap.events"))?;
    memory.swap = MemoryEntry {
        limit: number("memory.swap.max")?.saturating_add(memory.usage.limit),
        usage: number("memory.swap.current")?.saturating_add(memory.usage.usage),
        max: number("memory.swap.peak")?.saturating_add(memory.usage.max),
        failcnt: swap_events.get("fail").copied().unwrap_or(0),
    };
    Ok(())
}

/// memory.events, which counts the groups below too.
pub(super) fn events(table: &BTreeMap<String, u64>) -> MemoryEvents {
    let get = |name: &str| table.get(name).copied().unwrap_or(0);
    MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
    }
}

/// The files have one name in both versions.
pub(super) fn pids(group: &Group, pids: &mut PidsStats) -> Result<()> {
    pids.current = file::number(&group.file("pids.current"))?;
    let limit = file::number(&group.file("pids.max"))?;
    pids.limit = if limit == u64::MAX { 0 } else { limit };
    Ok(())
}

pub(super) fn io(group: &Group, blkio: &mut BlkioStats) -> Result<()> {
    let text = file::read_optional(&group.file("io.stat"))?.unwrap_or_default();
    parse_io(&text, blkio);
    Ok(())
}

/// Lines of `major:minor rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn parse_io(text: &str, blkio: &mut BlkioStats) {
    for line in text.lines() {
        let mut fields = line.split(' ');
        let device = fields.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let op = match name.as_bytes().first() {
                Some(b'r') => "Read",
                Some(b'w') => "Write",
                _ => "Discard",
            };
            let list = match name {
                "rbytes" | "wbytes" | "dbytes" => &mut blkio.io_service_bytes_recursive,
                "rios" | "wios" | "dios" => &mut blkio.io_serviced_recursive,
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value: file::parse_number(value) });
        }
    }
}

/// The sizes of huge pages that the group counts, by its files `hugetlb.SIZE` and `last`.
pub(super) fn page_sizes(group: &Group, last: &str) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(&group.directory).context(|| format!("cgroup {}", group.directory.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(last)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    Ok(names.filter_map(size).collect())
}

pub(super) fn hugetlb(group: &Group) -> Result<BTreeMap<String, HugetlbStats>> {
    let mut pages = BTreeMap::new();
    for size in page_sizes(group, ".current")? {
        let usage = file::number(&group.file(&format!("hugetlb.{size}.current")))?;
        let failcnt = file::entry(&group.file(&format!("hugetlb.{size}.events")), "max")?.unwrap_or(0);
        pages.insert(size, HugetlbStats { usage, max: 0, failcnt });
    }
    Ok(pages)
}

/// Pressure of `cpu`, `memory` or `io`, none when the kernel does not count it.
pub(super) fn pressure(group: &Group, of: &str) -> Result<Option<Pressure>> {
    let text = file::read_optional(&group.file(&format!("{of}.pressure")))?;
    Ok(text.as_deref().map(parse_pressure))
}

/// `some avg10=0.12 avg60=0.00 avg300=0.00 total=123`, and the same with `full`.
fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let to = match fields.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        *to = pressure_line(fields);
    }
    pressure
}

fn pressure_line<'text>(fields: impl Iterator<Item = &'text str>) -> PressureLine {
    let mut line = PressureLine::default();
    for (name, value) in fields.filter_map(|field| field.split_once('=')) {
        let percent = || value.parse().unwrap_or(0.0);
        match name {
            "avg10" => line.avg10 = percent(),
            "avg60" => line.avg60 = percent(),
            "avg300" => line.avg300 = percent(),
            "total" => line.total = file::parse_number(value),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_files() {
        let text = "some avg10=1.25 avg60=0.50 avg300=0.10 total=4711\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9";
        let pressure = parse_pressure(text);
        assert_eq!(pressure.some, PressureLine { avg10: 1.25, avg60: 0.5, avg300: 0.1, total: 4711 });
        assert_eq!(pressure.full.total, 9);
    }

    #[test]
    fn io_stat() {
        let mut blkio = BlkioStats::default();
        parse_io("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:0\n", &mut blkio);
        let bytes: Vec<_> =
            blkio.io_service_bytes_recursive.iter().map(|entry| (entry.op.as_str(), entry.value)).collect();
        assert_eq!(bytes, [("Read", 1), ("Write", 2), ("Discard", 5)]);
        assert_eq!(blkio.io_serviced_recursive.len(), 3);
        assert_eq!(blkio.io_serviced_recursive[0].minor, 16);
    }
}
