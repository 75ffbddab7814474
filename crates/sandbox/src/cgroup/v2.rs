//! Limits as the files of cgroup v2. The specification's units are v1's; this is where they are converted.

use std::collections::BTreeMap;

use moat_model::oci::{BlockIo, Cpu, HugepageLimit, Memory, Rdma, Resources};

use super::Section;
use super::operation::{Operation, Write};
use crate::{Error, Result};

/// What is in force before an update, where a new value depends on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Present {
    /// memory.max
    pub(super) memory_bytes: Option<i64>,
    /// The first word of cpu.max.
    pub(super) quota: Option<String>,
}

/// The limits of one section, as operations on files of a group that is not named yet.
pub(super) fn limits(section: Section, resources: &Resources, present: &Present) -> Result<Vec<Operation>> {
    match section {
        Section::Cpu => resources.cpu.as_ref().map_or(Ok(Vec::new()), |wanted| cpu(wanted, present)),
        Section::Cpuset => Ok(resources.cpu.as_ref().map_or(Vec::new(), cpuset)),
        Section::Memory => resources.memory.as_ref().map_or(Ok(Vec::new()), |wanted| memory(wanted, present)),
        Section::Pids => Ok(pids(resources)),
        Section::Io => resources.block_io.as_ref().map_or(Ok(Vec::new()), io),
        Section::Hugetlb => hugetlb(&resources.hugepage_limits, "max"),
        Section::Rdma => rdma(&resources.rdma),
        Section::NetClass | Section::NetPriority => Ok(Vec::new()),
    }
}

fn no_counterpart<T>(key: &str) -> Result<T> {
    Err(Error::new(format!("linux.resources.{key} has no counterpart in cgroup v2")))
}

/// cpu.weight (1 to 10000, default 100) from cpu.shares (2 to 262144, default 1024).
///
/// The formula of crun 1.23 and runc 1.3.2 on: a curve through the three fixed points, log10(weight) =
/// (l² + 125 l) / 612 − 7 / 34 where l = log2(shares). The older linear one made 39 of the default 1024, so that
/// a container had less than half the weight of any process beside it.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            // Rounded up to hit the fixed point at 1024, whatever the last bit of the logarithm.
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10_f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

fn cpu(cpu: &Cpu, present: &Present) -> Result<Vec<Operation>> {
    if cpu.realtime_runtime_us.is_some_and(|time| time != 0) {
        return no_counterpart("cpu.realtimeRuntime");
    }
    if cpu.realtime_period_us.is_some_and(|time| time != 0) {
        return no_counterpart("cpu.realtimePeriod");
    }
    let mut operations = Vec::new();
    if let Some(idle) = cpu.idle {
        operations.push(Operation::Write(Write::new("cpu.idle", idle, "cpu.idle")));
    }
    // An idle group has the least weight, and the kernel refuses another.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        operations.push(Operation::Write(Write::new("cpu.weight", weight_of_shares(shares), "cpu.shares")));
    }
    let quota = cpu.quota_us.filter(|quota| *quota != 0);
    let period = cpu.period_us.filter(|period| *period != 0);
    let mut bandwidth = Vec::new();
    if quota.is_some() || period.is_some() {
        let first = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(_) => "max".to_owned(),
            None => present.quota.clone().unwrap_or_else(|| "max".to_owned()),
        };
        // Without a second word the period stays as it is.
        let value = period.map_or(first.clone(), |period| format!("{first} {period}"));
        let key = if quota.is_some() { "cpu.quota" } else { "cpu.period" };
        bandwidth.push(Write::new("cpu.max", value, key));
    }
    if let Some(burst) = cpu.burst_us {
        bandwidth.push(Write::new("cpu.max.burst", burst, "cpu.burst"));
    }
    operations.extend(together(bandwidth));
    Ok(operations)
}

/// One write, or several that bound each other.
pub(super) fn together(mut writes: Vec<Write>) -> Option<Operation> {
    match writes.len() {
        0 => None,
        1 => writes.pop().map(Operation::Write),
        _ => Some(Operation::WriteTogether(writes)),
    }
}

/// The files have one name in both versions.
pub(super) fn cpuset(cpu: &Cpu) -> Vec<Operation> {
    let lists = [("cpuset.cpus", &cpu.cpus, "cpu.cpus"), ("cpuset.mems", &cpu.mems, "cpu.mems")];
    let given = lists.into_iter().filter(|(_, list, _)| !list.is_empty());
    given.map(|(file, list, key)| Operation::Write(Write::new(file, list, key))).collect()
}

/// A size of the specification: 0 sets nothing, as everywhere in the field; -1 is unlimited.
pub(super) fn size(value: Option<i64>, key: &str) -> Result<Option<i64>> {
    match value {
        None | Some(0) => Ok(None),
        Some(value) if value < -1 => {
            Err(Error::new(format!("linux.resources.{key} {value} is neither -1 nor a number of bytes")))
        }
        value => Ok(value),
    }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// memory.swap.max counts swap alone, the specification's `swap` counts memory too.
fn swap_alone(limit: Option<i64>, swap: Option<i64>, present: &Present) -> Result<Option<i64>> {
    let refused = |why: &str| Err(Error::new(format!("linux.resources.memory.swap {why}")));
    match (limit.or(present.memory_bytes), swap) {
        // As on v1: without a limit of memory there is none of swap.
        (_, None) => Ok(limit.filter(|limit| *limit == -1)),
        (_, Some(-1)) => Ok(Some(-1)),
        (None | Some(-1), Some(_)) => refused("counts memory and swap: it needs memory.limit"),
        (Some(limit), Some(swap)) if swap < limit => {
            refused(&format!("{swap} counts memory and swap: it can not be less than memory.limit {limit}"))
        }
        (Some(limit), Some(swap)) => Ok(Some(swap - limit)),
    }
}

fn memory(memory: &Memory, present: &Present) -> Result<Vec<Operation>> {
    // `kernel` is left out: it has had no effect since Linux 5.4.
    if memory.kernel_tcp_bytes.is_some_and(|bytes| bytes > 0) {
        return no_counterpart("memory.kernelTCP");
    }
    if memory.swappiness.is_some() {
        return no_counterpart("memory.swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        return no_counterpart("memory.disableOOMKiller");
    }
    let limit = size(memory.limit_bytes, "memory.limit")?;
    let swap = size(memory.swap_bytes, "memory.swap")?;
    let reservation = size(memory.reservation_bytes, "memory.reservation")?;
    let mut operations = Vec::new();
    if memory.check_before_update == Some(true) {
        let sizes = [(swap, "memory.swap"), (limit, "memory.limit")];
        for (bytes, key) in sizes.into_iter().filter_map(|(size, key)| Some((size?, key))) {
            if let Ok(limit_bytes) = u64::try_from(bytes) {
                let key = format!("linux.resources.{key}");
                operations.push(Operation::CheckMemory { usage: "memory.current".into(), limit_bytes, key });
            }
        }
    }
    if let Some(alone) = swap_alone(limit, swap, present)? {
        let write = Write::new("memory.swap.max", or_max(alone), "memory.swap");
        // A kernel without swap has nothing to forbid or to leave unlimited.
        operations.push(Operation::Write(if alone <= 0 { write.or_skip() } else { write }));
    }
    if let Some(limit) = limit {
        operations.push(Operation::Write(Write::new("memory.max", or_max(limit), "memory.limit")));
    }
    if let Some(low) = reservation {
        operations.push(Operation::Write(Write::new("memory.low", or_max(low), "memory.reservation")));
    }
    Ok(operations)
}

/// The file has one name in both versions.
pub(super) fn pids(resources: &Resources) -> Vec<Operation> {
    let limit = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0);
    let write = limit.map(|limit| Operation::Write(Write::new("pids.max", or_max(limit), "pids.limit")));
    write.into_iter().collect()
}

/// io.weight (1 to 10000) from blkio.weight (10 to 1000).
pub(super) fn io_weight(weight: u16) -> u64 {
    let weight = u64::from(weight.clamp(10, 1000));
    1 + (weight - 10) * 9999 / 990
}

/// `major:minor` of a block device.
pub(super) fn device(major: i64, minor: i64, key: &str) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::new(format!("linux.resources.{key} {major}:{minor} is not a device number"))),
    }
}

fn io(block: &BlockIo) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    // BFQ has a file of its own; without it the weight is that of the io.cost controller. leafWeight has had no
    // effect since Linux 5.0.
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        let write = Write::new("io.bfq.weight", weight, "blockIO.weight");
        operations.push(Operation::Write(write.or_instead("io.weight", io_weight(weight))));
    }
    for entry in &block.weight_device {
        let key = "blockIO.weightDevice";
        let device = device(entry.major, entry.minor, key)?;
        if let Some(weight) = entry.weight.filter(|weight| *weight != 0) {
            let write = Write::new("io.bfq.weight", format!("{device} {weight}"), key);
            let other = format!("{device} {}", io_weight(weight));
            operations.push(Operation::Write(write.or_instead("io.weight", other)));
        }
    }
    let kinds = [
        (&block.throttle_read_bps_device, "rbps", "blockIO.throttleReadBpsDevice"),
        (&block.throttle_write_bps_device, "wbps", "blockIO.throttleWriteBpsDevice"),
        (&block.throttle_read_iops_device, "riops", "blockIO.throttleReadIOPSDevice"),
        (&block.throttle_write_iops_device, "wiops", "blockIO.throttleWriteIOPSDevice"),
    ];
    // One write for each device.
    let mut devices: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for (list, name, key) in kinds {
        for entry in list {
            let device = device(entry.major, entry.minor, key)?;
            let rate = if entry.rate == 0 { "max".to_owned() } else { entry.rate.to_string() };
            let line = devices.entry(device.clone()).or_insert((device, key));
            line.0.push_str(&format!(" {name}={rate}"));
        }
    }
    operations
        .extend(devices.into_values().map(|(line, key)| Operation::Write(Write::new("io.max", line, key))));
    Ok(operations)
}

/// `last` is `max` on v2 and `limit_in_bytes` on v1.
pub(super) fn hugetlb(limits: &[HugepageLimit], last: &str) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for limit in limits {
        let (size, key) = (&limit.page_size, "hugepageLimits");
        let digits = size.trim_end_matches(['K', 'M', 'G', 'B']);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) || !size.ends_with('B') {
            return Err(Error::new(format!("linux.resources.{key} {size:?} is not a page size like 2MB")));
        }
        let write = |file: String| Write::new(file, limit.limit_bytes, key);
        operations.push(Operation::Write(write(format!("hugetlb.{size}.{last}"))));
        // Reserved pages too (Linux 5.7): else a map that is never touched takes all of the host's.
        operations.push(Operation::Write(write(format!("hugetlb.{size}.rsvd.{last}")).or_skip()));
    }
    Ok(operations)
}

/// The file has one name in both versions.
pub(super) fn rdma(devices: &BTreeMap<String, Rdma>) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for (name, limit) in devices {
        if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(Error::new(format!("linux.resources.rdma {name:?} is not the name of a device")));
        }
        let mut line = name.clone();
        let parts = [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)];
        for (part, most) in parts.into_iter().filter_map(|(part, most)| Some((part, most?))) {
            line.push_str(&format!(" {part}={most}"));
        }
        if line != *name {
            operations.push(Operation::Write(Write::new("rdma.max", line, "rdma")));
        }
    }
    Ok(operations)
}

/// One entry of `unified`: its controller (none for cgroup.*) and its writes.
pub(super) fn unified(name: &str, value: &str) -> Result<(Option<String>, Vec<Operation>)> {
    let key = format!("unified[{name}]");
    let refused = |why: &str| Err(Error::new(format!("linux.resources.unified {name:?} {why}")));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let Some((controller, parameter)) = name.split_once('.') else {
        return refused("is not of the form controller.parameter");
    };
    if controller.is_empty() || parameter.is_empty() || name.contains("..") || !name.bytes().all(plain) {
        return refused("is not the name of a cgroup file");
    }
    // What makes, empties, stops or kills groups belongs to the runtime.
    const OWN: [&str; 4] =
        ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure", "cgroup.subtree_control"];
    if controller == "cgroup" && !OWN.contains(&name) {
        return refused("is the runtime's to write");
    }
    // Files like io.max take one device per write.
    let lines = value.lines().map(|line| Operation::Write(Write::new(name, line.trim(), &key)));
    let controller = (controller != "cgroup").then(|| controller.to_owned());
    Ok((controller, lines.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        let pairs: Vec<_> = [2, 3, 10, 102, 512, 1023, 1024, 2048, 10_000, 262_143, 262_144, u64::MAX]
            .map(weight_of_shares)
            .into();
        assert_eq!(pairs, [1, 2, 4, 17, 59, 100, 100, 174, 627, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn io_weights() {
        assert_eq!([0, 10, 100, 500, 1000, 2000].map(io_weight), [1, 1, 910, 4950, 10_000, 10_000]);
    }

    #[test]
    fn swap_is_counted_alone() {
        let none = Present::default();
        assert_eq!(swap_alone(Some(100), Some(150), &none), Ok(Some(50)));
        assert_eq!(swap_alone(Some(100), Some(100), &none), Ok(Some(0)));
        assert_eq!(swap_alone(Some(100), Some(-1), &none), Ok(Some(-1)));
        assert_eq!(swap_alone(Some(-1), None, &none), Ok(Some(-1)));
        assert_eq!(swap_alone(Some(100), None, &none), Ok(None));
        let present = Present { memory_bytes: Some(100), quota: None };
        assert_eq!(swap_alone(None, Some(150), &present), Ok(Some(50)));
        assert_eq!(
            swap_alone(None, Some(150), &none).unwrap_err().to_string(),
            "linux.resources.memory.swap counts memory and swap: it needs memory.limit"
        );
        assert_eq!(
            swap_alone(Some(100), Some(50), &none).unwrap_err().to_string(),
            "linux.resources.memory.swap 50 counts memory and swap: it can not be less than memory.limit 100"
        );
    }

    #[test]
    fn unified_names_are_checked() {
        let sentence = |name: &str| unified(name, "1").unwrap_err().to_string();
        assert_eq!(
            sentence("memory"),
            "linux.resources.unified \"memory\" is not of the form controller.parameter"
        );
        for name in ["../memory.max", "memory.max/../x", "memory..max", ".max", "memory.", "memory.\n"] {
            assert!(sentence(name).contains("is not"), "{name:?}");
        }
        assert_eq!(
            sentence("cgroup.procs"),
            "linux.resources.unified \"cgroup.procs\" is the runtime's to write"
        );
        let (controller, operations) = unified("io.max", "8:0 rbps=1\n8:16 wbps=2\n").unwrap();
        assert_eq!((controller.as_deref(), operations.len()), (Some("io"), 2));
        assert_eq!(unified("cgroup.max.depth", "3").unwrap().0, None);
    }
}
