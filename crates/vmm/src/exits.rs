//! What every exit costs: counted by cause, device, register and direction, with the time in its handler.
//!
//! Each processor has a log of its own, so that counting takes no shared lock; a report adds them up. Where
//! the guest's symbols are known, the function that the guest was in is counted, too.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use crate::bus::Target;
use crate::kvm::{Access, Space, VmExit};
use crate::lock::lock;

/// Why the guest came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// An access to a port.
    Port,
    /// An access to an address without memory.
    Mmio,
    /// A denied model specific register.
    Msr,
    /// The guest halted.
    Halt,
    /// The monitor or a signal asked for it.
    Interrupt,
    /// The end of the guest: a triple fault, a failed entry, a system event.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    cause: Cause,
    device: Option<u16>,
    register: u64,
    write: bool,
    size: u8,
    /// The guest's instruction pointer's symbol.
    symbol: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    exits: u64,
    bytes: u64,
    time: Duration,
    longest: Duration,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.exits += other.exits;
        self.bytes += other.bytes;
        self.time += other.time;
        self.longest = self.longest.max(other.longest);
    }
}

/// A guest can name any address; so many different ones are told apart, the rest is counted in one line.
const MOST_KEYS: usize = 4096;

/// The exits of one processor.
#[derive(Debug, Default)]
pub struct ExitLog {
    tallies: Mutex<HashMap<Key, Tally>>,
}

impl ExitLog {
    /// Counts one exit, or one more part of the last.
    pub fn record(&self, exit: &VmExit, target: Option<Target>, symbol: Option<u32>, time: Duration) {
        let mut key = Key {
            cause: Cause::Interrupt,
            device: target.and_then(|target| target.device),
            register: target.map_or(0, |target| target.register),
            write: false,
            size: 0,
            symbol,
        };
        let mut tally = Tally { exits: 1, bytes: 0, time, longest: time };
        match *exit {
            VmExit::Io { space, size, access, part, .. } => {
                key.cause = if space == Space::Port { Cause::Port } else { Cause::Mmio };
                (key.write, key.size) = (matches!(access, Access::Write(_)), size);
                (tally.exits, tally.bytes) = (u64::from(!part), size.into());
            }
            VmExit::Msr { index, access } => {
                key.cause = Cause::Msr;
                (key.register, key.write) = (index.into(), matches!(access, Access::Write(_)));
                (key.size, tally.bytes) = (8, 8);
            }
            VmExit::Halted => key.cause = Cause::Halt,
            VmExit::Interrupted => {}
            _ => key.cause = Cause::End,
        }
        let mut tallies = lock(&self.tallies);
        if tallies.len() >= MOST_KEYS && !tallies.contains_key(&key) {
            (key.device, key.register, key.size, key.symbol) = (None, u64::MAX, 0, None);
        }
        tallies.entry(key).or_default().add(tally);
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExitRow {
    /// Why.
    pub cause: Cause,
    /// Whose register it was; `-` where no device is.
    pub device: String,
    /// The register: an offset in the device's window, a port or address without a device, an MSR.
    pub register: u64,
    /// `read` or `write`, `-` where it is neither.
    pub direction: &'static str,
    /// The width of an access in bytes.
    pub size: u8,
    /// The guest's function, where its symbols are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// How many.
    pub exits: u64,
    /// How many bytes went over.
    pub bytes: u64,
    /// The time in the handlers, in all.
    pub total_ns: u64,
    /// The longest time in one handler.
    pub longest_ns: u64,
}

/// All exits of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExitReport {
    /// Exits to the monitor, of all processors.
    pub exits: u64,
    /// The lines, the most frequent first.
    pub rows: Vec<ExitRow>,
    /// KVM's own statistics, summed over the processors: among them `exits`, which counts those that never
    /// left the kernel, too.
    pub kvm: std::collections::BTreeMap<String, u64>,
}

impl ExitReport {
    /// Adds the processors up.
    pub fn new<'a>(
        logs: impl IntoIterator<Item = &'a ExitLog>,
        names: &[String],
        symbol: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let mut sums: HashMap<Key, Tally> = HashMap::new();
        for log in logs {
            for (key, tally) in lock(&log.tallies).iter() {
                sums.entry(*key).or_default().add(*tally);
            }
        }
        let mut all: Vec<(Key, Tally)> = sums.into_iter().collect();
        all.sort_by_key(|(key, tally)| (std::cmp::Reverse(tally.exits), *key));
        let row = |(key, tally): &(Key, Tally)| ExitRow {
            cause: key.cause,
            device: key
                .device
                .and_then(|place| names.get(usize::from(place)))
                .map_or("-", String::as_str)
                .to_owned(),
            register: key.register,
            direction: match (key.cause, key.write) {
                (Cause::Port | Cause::Mmio | Cause::Msr, true) => "write",
                (Cause::Port | Cause::Mmio | Cause::Msr, false) => "read",
                _ => "-",
            },
            size: key.size,
            symbol: key.symbol.and_then(&symbol),
            exits: tally.exits,
            bytes: tally.bytes,
            total_ns: nanoseconds(tally.time),
            longest_ns: nanoseconds(tally.longest),
        };
        Self {
            exits: all.iter().map(|(_, tally)| tally.exits).sum(),
            rows: all.iter().map(row).collect(),
            kvm: std::collections::BTreeMap::new(),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl std::fmt::Display for ExitReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<9} {:<12} {:>10} {:<5} {:>4} {:>9} {:>10} {:>11} {:>9} {:>9}  symbol",
            "cause", "device", "register", "dir", "size", "exits", "bytes", "total us", "mean us", "max us"
        )?;
        for row in &self.rows {
            let cause = format!("{:?}", row.cause).to_lowercase();
            let micros = |ns: u64| ns as f64 / 1000.0;
            // A further part of a wide access counts no exit, but takes time.
            let mean = micros(row.total_ns) / row.exits.max(1) as f64;
            writeln!(
                f,
                "{cause:<9} {:<12} {:>#10x} {:<5} {:>4} {:>9} {:>10} {:>11.1} {mean:>9.2} {:>9.1}  {}",
                row.device,
                row.register,
                row.direction,
                row.size,
                row.exits,
                row.bytes,
                micros(row.total_ns),
                micros(row.longest_ns),
                row.symbol.as_deref().unwrap_or_default()
            )?;
        }
        writeln!(f, "exits to the monitor: {}", self.exits)?;
        for name in ["exits", "io_exits", "mmio_exits", "irq_exits", "halt_exits", "pf_taken", "pf_fixed"] {
            if let Some(value) = self.kvm.get(name) {
                writeln!(f, "kvm {name}: {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: u64, access: Access, part: bool) -> VmExit {
        VmExit::Io { space: Space::Port, address, size: 1, access, part }
    }

    #[test]
    fn processors_are_added_up_and_parts_are_no_exits() {
        let (first, second) = (ExitLog::default(), ExitLog::default());
        let target = Some(Target { device: Some(0), register: 5 });
        let time = Duration::from_micros(2);
        first.record(&port(0x3fd, Access::Read, false), target, None, time);
        second.record(&port(0x3fd, Access::Read, false), target, None, time * 3);
        second.record(&port(0x3fd, Access::Read, true), target, None, time);
        second.record(&VmExit::Msr { index: 0x3a, access: Access::Read }, None, None, time);
        let report = ExitReport::new([&first, &second], &["serial".to_owned()], |_| None);
        assert_eq!(report.exits, 3);
        let row = &report.rows[0];
        assert_eq!((row.device.as_str(), row.register, row.direction), ("serial", 5, "read"));
        assert_eq!((row.exits, row.bytes, row.total_ns, row.longest_ns), (2, 3, 10_000, 6_000));
        assert_eq!((report.rows[1].cause, report.rows[1].register), (Cause::Msr, 0x3a));
    }

    #[test]
    fn a_guest_that_touches_every_address_fills_no_memory() {
        let log = ExitLog::default();
        for address in 0..3 * MOST_KEYS as u64 {
            let target = Some(Target { device: None, register: address });
            log.record(&port(address, Access::Read, false), target, None, Duration::ZERO);
        }
        let report = ExitReport::new([&log], &[], |_| None);
        assert_eq!(report.rows.len(), MOST_KEYS + 1);
        assert_eq!(report.exits, 3 * MOST_KEYS as u64);
        assert_eq!(report.rows[0].register, u64::MAX);
    }
}
