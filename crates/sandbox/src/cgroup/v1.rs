//! Limits as the files of cgroup v1.

use moat_model::oci::{BlockIo, Cpu, Memory, Resources};

use super::operation::{Operation, Write};
use super::{Section, v2};
use crate::{Error, Result};

/// The limits of one section, as operations on files of a group that is not named yet.
pub(super) fn limits(section: Section, resources: &Resources) -> Result<Vec<Operation>> {
    match section {
        Section::Cpu => Ok(resources.cpu.as_ref().map_or(Vec::new(), cpu)),
        Section::Cpuset => Ok(resources.cpu.as_ref().map_or(Vec::new(), v2::cpuset)),
        Section::Memory => resources.memory.as_ref().map_or(Ok(Vec::new()), memory),
        Section::Pids => Ok(v2::pids(resources)),
        Section::Io => resources.block_io.as_ref().map_or(Ok(Vec::new()), blkio),
        Section::Hugetlb => v2::hugetlb(&resources.hugepage_limits, "limit_in_bytes"),
        Section::Rdma => v2::rdma(&resources.rdma),
        Section::NetClass => Ok(net_class(resources)),
        Section::NetPriority => net_priority(resources),
    }
}

fn cpu(cpu: &Cpu) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut realtime = Vec::new();
    if let Some(period) = cpu.realtime_period_us.filter(|period| *period != 0) {
        realtime.push(Write::new("cpu.rt_period_us", period, "cpu.realtimePeriod"));
    }
    if let Some(runtime) = cpu.realtime_runtime_us.filter(|runtime| *runtime != 0) {
        realtime.push(Write::new("cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime"));
    }
    operations.extend(v2::together(realtime));
    if let Some(idle) = cpu.idle {
        operations.push(Operation::Write(Write::new("cpu.idle", idle, "cpu.idle")));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        operations.push(Operation::Write(Write::new("cpu.shares", shares, "cpu.shares")));
    }
    let mut bandwidth = Vec::new();
    if let Some(period) = cpu.period_us.filter(|period| *period != 0) {
        bandwidth.push(Write::new("cpu.cfs_period_us", period, "cpu.period"));
    }
    if let Some(quota) = cpu.quota_us.filter(|quota| *quota != 0) {
        bandwidth.push(Write::new("cpu.cfs_quota_us", quota.max(-1), "cpu.quota"));
    }
    if let Some(burst) = cpu.burst_us {
        bandwidth.push(Write::new("cpu.cfs_burst_us", burst, "cpu.burst"));
    }
    operations.extend(v2::together(bandwidth));
    operations
}

fn memory(memory: &Memory) -> Result<Vec<Operation>> {
    let limit = v2::size(memory.limit_bytes, "memory.limit")?;
    let swap = v2::size(memory.swap_bytes, "memory.swap")?;
    let reservation = v2::size(memory.reservation_bytes, "memory.reservation")?;
    let kernel_tcp = v2::size(memory.kernel_tcp_bytes, "memory.kernelTCP")?;
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && swap < limit
    {
        return Err(Error::new(format!(
            "linux.resources.memory.swap {swap} counts memory and swap: it can not be less than memory.limit {limit}"
        )));
    }
    // Memory without limit leaves swap without one; the limit of both must never be the smaller one, and
    // which of the two has to go first depends on what is there.
    let mut both = Vec::new();
    if let Some(limit) = limit {
        both.push(Write::new("memory.limit_in_bytes", limit, "memory.limit"));
    }
    if let Some(swap) = swap.or(limit.filter(|limit| *limit == -1)) {
        let write = Write::new("memory.memsw.limit_in_bytes", swap, "memory.swap");
        both.push(if swap == -1 { write.or_skip() } else { write });
    }
    let mut operations: Vec<Operation> = v2::together(both).into_iter().collect();
    if let Some(soft) = reservation {
        let write = Write::new("memory.soft_limit_in_bytes", soft, "memory.reservation");
        operations.push(Operation::Write(write));
    }
    // `kernel` is left out: it has had no effect since Linux 5.4.
    if let Some(tcp) = kernel_tcp {
        let write = Write::new("memory.kmem.tcp.limit_in_bytes", tcp, "memory.kernelTCP");
        operations.push(Operation::Write(write));
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            return Err(Error::new(format!(
                "linux.resources.memory.swappiness {swappiness} is more than 100"
            )));
        }
        operations.push(Operation::Write(Write::new("memory.swappiness", swappiness, "memory.swappiness")));
    }
    if memory.disable_oom_killer == Some(true) {
        operations.push(Operation::Write(Write::new("memory.oom_control", 1, "memory.disableOOMKiller")));
    }
    Ok(operations)
}

fn blkio(block: &BlockIo) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    // BFQ's file; older kernels have CFQ's instead.
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        let write = Write::new("blkio.bfq.weight", weight, "blockIO.weight");
        operations.push(Operation::Write(write.or_instead("blkio.weight", weight)));
    }
    if let Some(weight) = block.leaf_weight.filter(|weight| *weight != 0) {
        let write = Write::new("blkio.leaf_weight", weight, "blockIO.leafWeight");
        operations.push(Operation::Write(write.or_skip()));
    }
    for entry in &block.weight_device {
        let key = "blockIO.weightDevice";
        let device = v2::device(entry.major, entry.minor, key)?;
        if let Some(weight) = entry.weight.filter(|weight| *weight != 0) {
            let value = format!("{device} {weight}");
            let write = Write::new("blkio.bfq.weight_device", &value, key);
            operations.push(Operation::Write(write.or_instead("blkio.weight_device", value)));
        }
        if let Some(weight) = entry.leaf_weight.filter(|weight| *weight != 0) {
            let write = Write::new("blkio.leaf_weight_device", format!("{device} {weight}"), key);
            operations.push(Operation::Write(write.or_skip()));
        }
    }
    let kinds = [
        (&block.throttle_read_bps_device, "read_bps", "blockIO.throttleReadBpsDevice"),
        (&block.throttle_write_bps_device, "write_bps", "blockIO.throttleWriteBpsDevice"),
        (&block.throttle_read_iops_device, "read_iops", "blockIO.throttleReadIOPSDevice"),
        (&block.throttle_write_iops_device, "write_iops", "blockIO.throttleWriteIOPSDevice"),
    ];
    for (list, name, key) in kinds {
        for entry in list {
            let line = format!("{} {}", v2::device(entry.major, entry.minor, key)?, entry.rate);
            operations.push(Operation::Write(Write::new(format!("blkio.throttle.{name}_device"), line, key)));
        }
    }
    Ok(operations)
}

fn net_class(resources: &Resources) -> Vec<Operation> {
    let class = resources.network.as_ref().and_then(|network| network.class_id).filter(|class| *class != 0);
    let write = class.map(|class| Operation::Write(Write::new("net_cls.classid", class, "network.classID")));
    write.into_iter().collect()
}

fn net_priority(resources: &Resources) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for entry in resources.network.iter().flat_map(|network| &network.priorities) {
        let (name, key) = (&entry.name, "network.priorities");
        if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(Error::new(format!(
                "linux.resources.{key} {name:?} is not the name of an interface"
            )));
        }
        let line = format!("{name} {}", entry.priority);
        operations.push(Operation::Write(Write::new("net_prio.ifpriomap", line, key)));
    }
    Ok(operations)
}
