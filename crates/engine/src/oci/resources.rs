//! Limits and weights in the runtime specification's words, by Docker's rules.

use std::collections::BTreeMap;

use moat_model::oci::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};
use moat_model::workload::{DeviceLimit, LimitsSpec};

use super::HostFacts;
use crate::{Error, Result};

/// Major and minor numbers of the block devices that limits name, by their path.
pub type BlockDevices = BTreeMap<String, (u32, u32)>;

/// What is least: the kernel needs some pages to start a program at all. As Docker has it.
const LEAST_MEMORY_BYTES: u64 = 6 << 20;

/// The length of a CFS period where none is said.
const PERIOD_US: u64 = 100_000;

/// The resources that `limits` ask for, without devices.
pub fn resources(limits: &LimitsSpec, host: &HostFacts, devices: &BlockDevices) -> Result<Resources> {
    let pids = limits.pids.map(|limit| Pids { limit: Some(if limit == 0 { -1 } else { limit }) });
    Ok(Resources {
        memory: memory(limits, host)?,
        cpu: cpu(limits, host)?,
        pids,
        block_io: block_io(limits, devices)?,
        ..Resources::default()
    })
}

fn memory(limits: &LimitsSpec, host: &HostFacts) -> Result<Option<Memory>> {
    check_memory(limits, host)?;
    let limit = limits.memory_bytes.map(|bytes| signed(bytes, "--memory")).transpose()?;
    let reservation = limits.memory_reservation_bytes;
    let memory = Memory {
        limit_bytes: limit,
        reservation_bytes: reservation.map(|bytes| signed(bytes, "--memory-reservation")).transpose()?,
        swap_bytes: match (limits.memory_swap_bytes, limit) {
            (Some(0) | None, None) => None,
            // As much swap as memory, where the kernel can count it.
            (Some(0) | None, Some(limit)) if host.swap_limit => Some(limit.saturating_mul(2)),
            (Some(0) | None, Some(_)) => None,
            (Some(swap), _) => Some(swap),
        },
        swappiness: limits.memory_swappiness,
        disable_oom_killer: limits.oom_kill_disable.then_some(true),
        ..Memory::default()
    };
    Ok((memory != Memory::default()).then_some(memory))
}

fn check_memory(limits: &LimitsSpec, host: &HostFacts) -> Result<()> {
    let refuse = |sentence: String| Err(Error::new(sentence));
    let memory = limits.memory_bytes;
    if let Some(bytes) = memory.filter(|bytes| *bytes < LEAST_MEMORY_BYTES) {
        return refuse(format!("--memory {bytes}: at least {LEAST_MEMORY_BYTES} bytes (6 MiB) are needed"));
    }
    if let (Some(memory), Some(reservation)) = (memory, limits.memory_reservation_bytes)
        && reservation > memory
    {
        return refuse(format!("--memory-reservation {reservation} is more than --memory {memory}"));
    }
    match (limits.memory_swap_bytes.filter(|swap| *swap != 0), memory) {
        (None, _) => {}
        (Some(swap), _) if swap < -1 => {
            return refuse(format!("--memory-swap {swap} is neither a size nor -1"));
        }
        (Some(_), _) if !host.swap_limit => {
            return Err(Error::new("--memory-swap: this kernel can not limit swap")
                .hint("on cgroup v1 the kernel counts swap when it was booted with swapaccount=1"));
        }
        (Some(swap), None) if swap > 0 => {
            return refuse(format!("--memory-swap {swap} needs --memory: it is the sum of memory and swap"));
        }
        (Some(swap), Some(memory)) if swap > 0 && swap.unsigned_abs() < memory => {
            return refuse(format!(
                "--memory-swap {swap} is less than --memory {memory}: it is the sum of both"
            ));
        }
        _ => {}
    }
    if let Some(swappiness) = limits.memory_swappiness {
        if swappiness > 100 {
            return refuse(format!("--memory-swappiness {swappiness} is not within 0 to 100"));
        }
        if host.is_unified() {
            return refuse("--memory-swappiness has no counterpart in cgroup v2".to_owned());
        }
    }
    if limits.oom_kill_disable && host.is_unified() {
        return refuse("--oom-kill-disable has no counterpart in cgroup v2".to_owned());
    }
    Ok(())
}

fn signed(bytes: u64, flag: &str) -> Result<i64> {
    i64::try_from(bytes).map_err(|_| Error::new(format!("{flag} {bytes} is more than a machine can have")))
}

fn cpu(limits: &LimitsSpec, host: &HostFacts) -> Result<Option<Cpu>> {
    let mut cpu = Cpu {
        shares: limits.cpu_shares.filter(|shares| *shares != 0),
        quota_us: limits.cpu_quota_us.filter(|quota| *quota != 0),
        period_us: limits.cpu_period_us.filter(|period| *period != 0),
        realtime_period_us: limits.cpu_rt_period_us.filter(|period| *period != 0),
        realtime_runtime_us: limits.cpu_rt_runtime_us.filter(|runtime| *runtime != 0),
        cpus: limits.cpuset_cpus.clone().unwrap_or_default(),
        mems: limits.cpuset_mems.clone().unwrap_or_default(),
        ..Cpu::default()
    };
    check_cpu(&cpu, host)?;
    if let Some(nano) = limits.nano_cpus.filter(|nano| *nano != 0) {
        cpu.quota_us = Some(quota(nano, limits, host)?);
        cpu.period_us = Some(PERIOD_US);
    }
    Ok((cpu != Cpu::default()).then_some(cpu))
}

fn check_cpu(cpu: &Cpu, host: &HostFacts) -> Result<()> {
    for (list, flag) in [(&cpu.cpus, "--cpuset-cpus"), (&cpu.mems, "--cpuset-mems")] {
        if !list.is_empty() && !is_list(list) {
            return Err(Error::new(format!("{flag} {list:?} is not a list of numbers and ranges"))
                .hint("as in 0-2,4"));
        }
    }
    if let Some(period) = cpu.period_us.filter(|period| !(1_000..=1_000_000).contains(period)) {
        return Err(Error::new(format!("--cpu-period {period} is not within 1000 to 1000000 microseconds")));
    }
    if let Some(quota) = cpu.quota_us.filter(|quota| (1..1_000).contains(quota) || *quota < -1) {
        return Err(Error::new(format!("--cpu-quota {quota} is less than 1000 microseconds")));
    }
    if (cpu.realtime_runtime_us.is_some() || cpu.realtime_period_us.is_some()) && host.is_unified() {
        return Err(Error::new("--cpu-rt-runtime and --cpu-rt-period have no counterpart in cgroup v2"));
    }
    if let (Some(runtime), period) = (cpu.realtime_runtime_us, cpu.realtime_period_us.unwrap_or(1_000_000))
        && runtime > 0
        && runtime.unsigned_abs() > period
    {
        return Err(Error::new(format!("--cpu-rt-runtime {runtime} is more than its period {period}")));
    }
    Ok(())
}

/// Time on processors within a period that is worth so many billionths of one.
fn quota(nano: u64, limits: &LimitsSpec, host: &HostFacts) -> Result<i64> {
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        return Err(Error::new("--cpus says the same as --cpu-quota and --cpu-period: give one of them"));
    }
    if nano > u64::from(host.processors).saturating_mul(1_000_000_000) {
        return Err(Error::new(format!(
            "--cpus {} is more than the {} processors of this host",
            fraction(nano),
            host.processors
        )));
    }
    let quota = nano.saturating_mul(PERIOD_US) / 1_000_000_000;
    if quota < 1_000 {
        return Err(Error::new(format!(
            "--cpus {} is less than 0.01, the least that can be given",
            fraction(nano)
        )));
    }
    Ok(i64::try_from(quota).unwrap_or(i64::MAX))
}

fn fraction(nano: u64) -> f64 {
    nano as f64 / 1e9
}

/// Numbers and ranges with commas between, as cpuset(7) reads them.
fn is_list(text: &str) -> bool {
    let number = |text: &str| super::namespaces::strict_u32(text).filter(|_| !text.is_empty());
    text.split(',').all(|part| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
    })
}

fn block_io(limits: &LimitsSpec, devices: &BlockDevices) -> Result<Option<BlockIo>> {
    let weight = |value: u64, what: &str| {
        let fits = u16::try_from(value).ok().filter(|weight| (10..=1000).contains(weight));
        fits.ok_or_else(|| Error::new(format!("{what} {value} is not within 10 to 1000")))
    };
    let number = |limit: &DeviceLimit| {
        let found = devices.get(&limit.path);
        found
            .map(|(major, minor)| (i64::from(*major), i64::from(*minor)))
            .ok_or_else(|| Error::new(format!("{} is not a block device", limit.path)))
    };
    let throttle = |list: &[DeviceLimit]| -> Result<Vec<ThrottleDevice>> {
        let one = |limit: &DeviceLimit| {
            let (major, minor) = number(limit)?;
            Ok(ThrottleDevice { major, minor, rate: limit.value })
        };
        list.iter().map(one).collect()
    };
    let weighted = |limit: &DeviceLimit| -> Result<WeightDevice> {
        let (major, minor) = number(limit)?;
        let weight = Some(weight(limit.value, "--blkio-weight-device")?);
        Ok(WeightDevice { major, minor, weight, leaf_weight: None })
    };
    let common = limits.blkio_weight.filter(|weight| *weight != 0);
    let block_io = BlockIo {
        weight: common.map(|value| weight(value.into(), "--blkio-weight")).transpose()?,
        weight_device: limits.blkio_weight_device.iter().map(weighted).collect::<Result<_>>()?,
        throttle_read_bps_device: throttle(&limits.device_read_bps)?,
        throttle_write_bps_device: throttle(&limits.device_write_bps)?,
        throttle_read_iops_device: throttle(&limits.device_read_iops)?,
        throttle_write_iops_device: throttle(&limits.device_write_iops)?,
        ..BlockIo::default()
    };
    Ok((block_io != BlockIo::default()).then_some(block_io))
}
