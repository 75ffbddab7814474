//! Limits and weights, in the units of the kernel's interfaces.

use serde::{Deserialize, Serialize};

/// A limit on a block device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimit {
    /// The device's path on the host.
    pub path: String,
    /// Bytes or operations a second, or a weight from 10 to 1000.
    pub value: u64,
}

/// A resource limit of setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UlimitSpec {
    /// Name without `RLIMIT_`, in lower case.
    pub name: String,
    /// Soft limit; u64::MAX is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// Limits and weights; absent is unlimited, or the kernel's default weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsSpec {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Memory that is given back first.
    pub memory_reservation_bytes: Option<u64>,
    /// Memory and swap together; -1 is unlimited swap.
    pub memory_swap_bytes: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// The kernel does not kill it when memory runs out; refused on cgroup v2.
    pub oom_kill_disable: bool,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Billionths of a processor (`--cpus`).
    pub nano_cpus: Option<u64>,
    /// Weight from 2 to 262144; 1024 is the default.
    pub cpu_shares: Option<u64>,
    /// Length of a CFS period.
    pub cpu_period_us: Option<u64>,
    /// Time on processors within a period.
    pub cpu_quota_us: Option<i64>,
    /// Length of a real-time period.
    pub cpu_rt_period_us: Option<u64>,
    /// Real-time share within a period.
    pub cpu_rt_runtime_us: Option<i64>,
    /// Processors, as in `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Tasks; -1 is unlimited.
    pub pids: Option<i64>,
    /// Weight from 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Weights of devices.
    pub blkio_weight_device: Vec<DeviceLimit>,
    /// Bytes a second.
    pub device_read_bps: Vec<DeviceLimit>,
    /// Bytes a second.
    pub device_write_bps: Vec<DeviceLimit>,
    /// Operations a second.
    pub device_read_iops: Vec<DeviceLimit>,
    /// Operations a second.
    pub device_write_iops: Vec<DeviceLimit>,
    /// Limits of setrlimit(2).
    pub ulimits: Vec<UlimitSpec>,
}
