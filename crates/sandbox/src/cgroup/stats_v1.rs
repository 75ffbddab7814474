//! Statistics from the files of cgroup v1.

use std::collections::BTreeMap;

use super::stats::{BlkioEntry, BlkioStats, CpuUsage, CpusetStats, HugetlbStats, MemoryEntry, MemoryStats};
use super::{Group, Throttling, file, stats, stats_v2};
use crate::Result;

/// cpuacct.stat counts in USER_HZ, which is 100 for every program.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn cpu_usage(group: &Group, usage: &mut CpuUsage) -> Result<()> {
    usage.total = file::number(&group.file("cpuacct.usage"))?;
    let ticks = file::table(&group.file("cpuacct.stat"))?;
    let time = |name: &str| ticks.get(name).copied().unwrap_or(0) * NANOSECONDS_PER_TICK;
    (usage.user, usage.kernel) = (time("user"), time("system"));
    // "cpu user system", then a line for each.
    let all = file::read_optional(&group.file("cpuacct.usage_all"))?.unwrap_or_default();
    for line in all.lines().skip(1) {
        let mut fields = line.split(' ').skip(1).map(file::parse_number);
        let (user, kernel) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
        usage.percpu_user.push(user);
        usage.percpu_kernel.push(kernel);
    }
    let percpu = file::read_optional(&group.file("cpuacct.usage_percpu"))?.unwrap_or_default();
    usage.percpu = percpu.split_whitespace().map(file::parse_number).collect();
    Ok(())
}

pub(super) fn throttling(group: &Group, throttling: &mut Throttling) -> Result<()> {
    let table = file::table(&group.file("cpu.stat"))?;
    let get = |name: &str| table.get(name).copied().unwrap_or(0);
    throttling.periods = get("nr_periods");
    throttling.throttled_periods = get("nr_throttled");
    throttling.throttled_time = get("throttled_time");
    Ok(())
}

pub(super) fn cpuset(group: &Group, cpuset: &mut CpusetStats) -> Result<()> {
    let text = |name: &str| file::read_optional(&group.file(&format!("cpuset.{name}")));
    cpuset.cpus = stats::list(&text("cpus")?.unwrap_or_default());
    cpuset.mems = stats::list(&text("mems")?.unwrap_or_default());
    for (name, value) in [
        ("cpu_exclusive", &mut cpuset.cpu_exclusive),
        ("mem_hardwall", &mut cpuset.mem_hardwall),
        ("mem_exclusive", &mut cpuset.mem_exclusive),
        ("memory_migrate", &mut cpuset.memory_migrate),
        ("memory_spread_page", &mut cpuset.memory_spread_page),
        ("memory_spread_slab", &mut cpuset.memory_spread_slab),
        ("memory_pressure", &mut cpuset.memory_pressure),
        ("sched_load_balance", &mut cpuset.sched_load_balance),
    ] {
        *value = file::number(&group.file(&format!("cpuset.{name}")))?;
    }
    let level = text("sched_relax_domain_level")?;
    cpuset.sched_relax_domain_level = level.and_then(|level| level.parse().ok()).unwrap_or(0);
    Ok(())
}

pub(super) fn memory(group: &Group, memory: &mut MemoryStats) -> Result<()> {
    let entry = |kind: &str| -> Result<MemoryEntry> {
        let number = |name: &str| file::number(&group.file(&format!("memory.{kind}{name}")));
        Ok(MemoryEntry {
            limit: number("limit_in_bytes")?,
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        })
    };
    memory.usage = entry("")?;
    memory.swap = entry("memsw.")?;
    memory.kernel = entry("kmem.")?;
    memory.kernel_tcp = entry("kmem.tcp.")?;
    memory.raw = file::table(&group.file("memory.stat"))?;
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    memory.event_count.oom_kill = file::entry(&group.file("memory.oom_control"), "oom_kill")?.unwrap_or(0);
    Ok(())
}

pub(super) fn blkio(group: &Group, blkio: &mut BlkioStats) -> Result<()> {
    // A device under the BFQ scheduler counts in BFQ's files, any other in those of the throttling.
    let read = |name: &str| -> Result<Vec<BlkioEntry>> {
        let bfq = file::read_optional(&group.file(&format!("blkio.bfq.{name}_recursive")))?;
        let entries = parse(&bfq.unwrap_or_default());
        if !entries.is_empty() {
            return Ok(entries);
        }
        let throttle = file::read_optional(&group.file(&format!("blkio.throttle.{name}_recursive")))?;
        Ok(parse(&throttle.unwrap_or_default()))
    };
    blkio.io_service_bytes_recursive = read("io_service_bytes")?;
    blkio.io_serviced_recursive = read("io_serviced")?;
    Ok(())
}

/// Lines of `major:minor Operation value`; the last line is a total.
fn parse(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = fields.next()?.split_once(':')?;
        let (op, value) = (fields.next()?.to_owned(), fields.next()?);
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some(BlkioEntry { major, minor, op, value: file::parse_number(value) })
    };
    text.lines().filter_map(entry).collect()
}

pub(super) fn hugetlb(group: &Group) -> Result<BTreeMap<String, HugetlbStats>> {
    let mut pages = BTreeMap::new();
    for size in stats_v2::page_sizes(group, ".usage_in_bytes")? {
        let number = |name: &str| file::number(&group.file(&format!("hugetlb.{size}.{name}")));
        let (usage, max) = (number("usage_in_bytes")?, number("max_usage_in_bytes")?);
        let failcnt = number("failcnt")?;
        pages.insert(size, HugetlbStats { usage, max, failcnt });
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices() {
        let entries = parse("8:0 Read 4096\n8:0 Write 7\n8:0 Total 4103\nTotal 4103\n");
        assert_eq!(entries.len(), 3);
        assert_eq!((entries[1].major, entries[1].op.as_str(), entries[1].value), (8, "Write", 7));
    }
}
