//! Scheduling: policy, I/O priority, CPU affinity, NUMA memory policy.

use crate::{Result, named, syscall};

/// `struct sched_attr` of sched_setattr(2), without the utilisation clamps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Filled in by [`set_scheduler`].
    pub size: u32,
    /// SCHED_*
    pub policy: u32,
    /// SCHED_FLAG_*
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Nanoseconds, SCHED_DEADLINE.
    pub runtime_ns: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub deadline_ns: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub period_ns: u64,
}

/// sched_setattr(2) on this process.
pub fn set_scheduler(mut attributes: Attributes) -> Result<()> {
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: the structure carries its size and lives through the call.
    let returned = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    named(syscall(returned), "sched_setattr", || format!("{attributes:?}")).map(drop)
}

/// ioprio_set(2) on this process: class 1 real-time, 2 best effort, 3 idle; priority 0 to 7.
pub fn set_io_priority(class: u32, priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    let value = class << IOPRIO_CLASS_SHIFT | priority;
    // SAFETY: takes integers.
    let returned = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    named(syscall(returned), "ioprio_set", || format!("class {class}, priority {priority}")).map(drop)
}

/// sched_setaffinity(2) on this process: the CPUs it may run on.
pub fn set_affinity(cpus: &[u32]) -> Result<()> {
    let mask = bit_mask(cpus);
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: length in bytes and pointer belong to one vector.
    let returned = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, mask.as_ptr()) };
    named(syscall(returned), "sched_setaffinity", || format!("{cpus:?}")).map(drop)
}

/// set_mempolicy(2): `mode` is MPOL_* with its flags.
pub fn set_memory_policy(mode: i32, nodes: &[u32]) -> Result<()> {
    let mask = bit_mask(nodes);
    // The kernel reads one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { mask.len() * 64 + 1 };
    let pointer = if nodes.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // SAFETY: the mask has at least the number of bits that is given, rounded up to whole words.
    let returned = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    named(syscall(returned), "set_mempolicy", || format!("{mode:#x}, nodes {nodes:?}")).map(drop)
}

fn bit_mask(numbers: &[u32]) -> Vec<u64> {
    let words = numbers.iter().max().map_or(1, |most| *most as usize / 64 + 1);
    let mut mask = vec![0_u64; words];
    for number in numbers {
        if let Some(word) = mask.get_mut(*number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }
    mask
}
