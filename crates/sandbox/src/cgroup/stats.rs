//! What a group uses, in the JSON shape of `runc events --stats`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CgroupState, Home, stats_v1, stats_v2};
use crate::Result;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn zero(value: &u64) -> bool {
    *value == 0
}

/// The `data` of an event of the type `stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// CPUs and memory nodes.
    pub cpuset: CpusetStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Block devices.
    pub blkio: BlkioStats,
    /// Huge pages by size.
    pub hugetlb: BTreeMap<String, HugetlbStats>,
    /// Always empty: the runtime knows no interfaces.
    pub network_interfaces: Vec<()>,
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    /// Time used.
    pub usage: CpuUsage,
    /// Time waited because of the quota.
    pub throttling: Throttling,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// CPU time used, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "zero")]
    pub total: u64,
    /// By CPU, v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// By CPU, in the kernel, v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// By CPU, in user space, v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
}

/// What the CPU quota did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Throttling {
    /// Periods with the group running.
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    /// Nanoseconds waited.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

/// CPUs and memory nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpusetStats {
    /// CPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// v1's cpuset.cpu_exclusive, and so on.
    pub cpu_exclusive: u64,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub mem_hardwall: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub mem_exclusive: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub memory_migrate: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub memory_spread_page: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub memory_spread_slab: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub memory_pressure: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub sched_load_balance: u64,
    #[allow(missing_docs, reason = "each is the v1 file of its name")]
    pub sched_relax_domain_level: i64,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// Page cache in bytes.
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap.
    pub swap: MemoryEntry,
    /// Kernel memory.
    pub kernel: MemoryEntry,
    /// Kernel memory of TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// memory.stat
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
    /// memory.events; on v1 only `oom_kill` is known.
    pub event_count: MemoryEvents,
}

/// One kind of memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEntry {
    /// The limit; the largest number when there is none.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// The most there was.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// How often the group met its memory limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEvents {
    /// Reclaimed although below `low`.
    #[serde(skip_serializing_if = "zero")]
    pub low: u64,
    /// Throttled above `high`.
    #[serde(skip_serializing_if = "zero")]
    pub high: u64,
    /// About to go above `max`.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// Allocations about to fail at the limit.
    #[serde(skip_serializing_if = "zero")]
    pub oom: u64,
    /// Processes killed.
    #[serde(skip_serializing_if = "zero")]
    pub oom_kill: u64,
    /// Whole groups killed.
    #[serde(skip_serializing_if = "zero")]
    pub oom_group_kill: u64,
}

/// Tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// The limit, 0 when there is none.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

/// Block devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlkioStats {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of operation on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioEntry {
    /// Major number.
    #[serde(skip_serializing_if = "zero")]
    pub major: u64,
    /// Minor number.
    #[serde(skip_serializing_if = "zero")]
    pub minor: u64,
    /// `Read`, `Write` and so on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// How much.
    #[serde(skip_serializing_if = "zero")]
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugetlbStats {
    /// Bytes now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// The most there was, v1 only.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information: how long tasks waited for a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PressureLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// A list like `0-2,7`.
pub(super) fn list(text: &str) -> Vec<u16> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

impl CgroupState {
    /// What the group uses now; what the host does not count is 0 or missing.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let unified = self.unified.as_ref();
        match (self.legacy_with("cpuacct"), unified) {
            (Some(group), _) => stats_v1::cpu_usage(group, &mut stats.cpu.usage)?,
            // cgroup2 counts time without its controller.
            (None, Some(group)) => stats_v2::cpu(group, &mut stats.cpu)?,
            (None, None) => {}
        }
        if let Some(group) = self.legacy_with("cpu") {
            stats_v1::throttling(group, &mut stats.cpu.throttling)?;
        }
        match self.home(("cpuset", "cpuset")) {
            Some(Home::V1(group)) => stats_v1::cpuset(group, &mut stats.cpuset)?,
            Some(Home::V2(group)) => stats_v2::cpuset(group, &mut stats.cpuset)?,
            None => {}
        }
        match self.home(("memory", "memory")) {
            Some(Home::V1(group)) => stats_v1::memory(group, &mut stats.memory)?,
            Some(Home::V2(group)) => stats_v2::memory(group, &mut stats.memory)?,
            None => {}
        }
        if let Some(Home::V1(group) | Home::V2(group)) = self.home(("pids", "pids")) {
            stats_v2::pids(group, &mut stats.pids)?;
        }
        match self.home(("blkio", "io")) {
            Some(Home::V1(group)) => stats_v1::blkio(group, &mut stats.blkio)?,
            Some(Home::V2(group)) => stats_v2::io(group, &mut stats.blkio)?,
            None => {}
        }
        match self.home(("hugetlb", "hugetlb")) {
            Some(Home::V1(group)) => stats.hugetlb = stats_v1::hugetlb(group)?,
            Some(Home::V2(group)) => stats.hugetlb = stats_v2::hugetlb(group)?,
            None => {}
        }
        if let Some(group) = unified {
            stats.cpu.psi = stats_v2::pressure(group, "cpu")?;
            stats.memory.psi = stats_v2::pressure(group, "memory")?;
            stats.blkio.psi = stats_v2::pressure(group, "io")?;
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(list(""), Vec::<u16>::new());
        assert_eq!(list("x,3"), [3]);
    }

    #[test]
    fn the_json_is_that_of_runc() {
        let mut stats = Stats::default();
        stats.cpu.usage.total = 7;
        stats.blkio.io_serviced_recursive =
            vec![BlkioEntry { major: 8, minor: 0, op: "Read".to_owned(), value: 3 }];
        let text = serde_json::to_string(&stats).unwrap();
        assert!(
            text.starts_with(r#"{"cpu":{"usage":{"total":7,"kernel":0,"user":0},"throttling":{}},"cpuset":"#),
            "{text}"
        );
        assert!(text.contains(r#""memory":{"usage":{"limit":0,"failcnt":0},"#), "{text}");
        assert!(text.contains(r#""ioServicedRecursive":[{"major":8,"op":"Read","value":3}]"#), "{text}");
        assert!(text.ends_with(r#""hugetlb":{},"network_interfaces":[]}"#), "{text}");
    }
}
