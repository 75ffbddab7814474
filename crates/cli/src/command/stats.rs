//! `moat stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use moat_engine::{Engine, Workload, WorkloadStats};
use moat_model::workload::Isolation;

use crate::failure::Result;
use crate::format::{self, Column, Format, Row, human};
use crate::line::Verb;
use crate::session::{Session, print};
use crate::terminal;

#[derive(Args, Debug)]
pub(crate) struct Stats {
    /// All workloads, not only those that run
    #[arg(short, long)]
    all: bool,
    /// Form of the answer: table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Print once and end
    #[arg(long)]
    no_stream: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Workload
    #[arg(value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

const COLUMNS: [Column; 10] = [
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("Pressure", "CPU/MEM/IO PRESSURE"),
];

const SHOWN: [&str; 9] =
    ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs", "Pressure"];

/// Time between two looks: a share of processor time needs two.
const INTERVAL: Duration = Duration::from_secs(1);

impl Verb for Stats {
    const NAME: &'static str = "stats";
    const ABOUT: &'static str = "Print what workloads use";

    fn run(self, session: &Session) -> Result<u8> {
        let format = Format::parse(self.format.as_deref())?;
        let engine = session.engine()?;
        let mut before = self.look(&engine)?;
        loop {
            std::thread::sleep(INTERVAL);
            let now = self.look(&engine)?;
            let rows = now.iter().map(|(id, (workload, stats))| {
                let earlier = before.get(id).and_then(|(_, stats)| stats.as_ref());
                self.row(workload, stats.as_ref(), earlier)
            });
            let text = format::rows(&format, &SHOWN, &COLUMNS, rows.collect())?;
            if self.no_stream {
                print(&text)?;
                return Ok(0);
            }
            // On a terminal each picture takes the place of the one before.
            let clear = if terminal::has_output() { "\x1b[H\x1b[2J" } else { "" };
            print(&format!("{clear}{text}"))?;
            before = now;
        }
    }
}

type Looked = BTreeMap<String, (Workload, Option<WorkloadStats>)>;

impl Stats {
    /// What each workload uses now; none for one that does not run.
    fn look(&self, engine: &Engine) -> Result<Looked> {
        let workloads = match self.workloads.as_slice() {
            [] => engine.list()?,
            names => names.iter().map(|name| engine.find(name)).collect::<moat_engine::Result<_>>()?,
        };
        let mut found = Looked::new();
        for workload in workloads {
            let stats = match workload.stats() {
                Ok(stats) => Some(stats),
                Err(_) if !workload.state()?.is_running() => None,
                // One guest that does not answer must not hide all others.
                Err(_) if self.workloads.is_empty() && workload.spec().isolation == Isolation::Microvm => {
                    None
                }
                Err(error) => return Err(error.into()),
            };
            if stats.is_some() || self.all || !self.workloads.is_empty() {
                found.insert(workload.id().to_string(), (workload, stats));
            }
        }
        Ok(found)
    }

    fn row(&self, workload: &Workload, stats: Option<&WorkloadStats>, before: Option<&WorkloadStats>) -> Row {
        let id = if self.no_trunc { workload.id().to_string() } else { workload.id().short().to_string() };
        let mut row = Row::default();
        row.set("ID", id.as_str()).set("Container", id).set("Name", workload.name());
        let Some(stats) = stats else {
            for field in ["CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs", "Pressure"] {
                row.set(field, "--");
            }
            return row;
        };
        let (used, limit) = memory(stats);
        let (received, sent) = network(stats);
        let (read, written) = blocks(stats);
        let percent = if limit == 0 { 0.0 } else { used as f64 * 100.0 / limit as f64 };
        row.set("CPUPerc", format!("{:.2}%", processor(stats, before)))
            .set("MemUsage", format!("{} / {}", human::memory(used), human::memory(limit)))
            .set("MemPerc", format!("{percent:.2}%"))
            .set("NetIO", format!("{} / {}", human::short_size(received), human::short_size(sent)))
            .set("BlockIO", format!("{} / {}", human::short_size(read), human::short_size(written)))
            .set("PIDs", stats.usage.pids.current.to_string())
            .set("Pressure", pressure(stats));
        row
    }
}

/// Processor time as a share of one processor.
fn processor(now: &WorkloadStats, before: Option<&WorkloadStats>) -> f64 {
    let Some(before) = before else { return 0.0 };
    let used = now.usage.cpu.usage.total.saturating_sub(before.usage.cpu.usage.total);
    let passed = now.time.nanoseconds().saturating_sub(before.time.nanoseconds());
    if passed == 0 { 0.0 } else { used as f64 * 100.0 / passed as f64 }
}

/// Memory without what the kernel could give back at once, and the limit.
fn memory(stats: &WorkloadStats) -> (u64, u64) {
    let memory = &stats.usage.memory;
    let idle = ["total_inactive_file", "inactive_file"].iter().find_map(|name| memory.raw.get(*name));
    let used = memory.usage.usage.saturating_sub(idle.copied().unwrap_or(0));
    let limit = match memory.usage.limit {
        0 => stats.host_memory_bytes,
        limit => limit.min(stats.host_memory_bytes),
    };
    (used, limit)
}

fn network(stats: &WorkloadStats) -> (u64, u64) {
    let sum = |of: fn(&moat_engine::InterfaceStats) -> u64| stats.interfaces.iter().map(of).sum();
    (sum(|interface| interface.received_bytes), sum(|interface| interface.sent_bytes))
}

fn blocks(stats: &WorkloadStats) -> (u64, u64) {
    let sum = |wanted: &str| {
        let entries = stats.usage.blkio.io_service_bytes_recursive.iter();
        let values = entries.filter(|entry| entry.op.eq_ignore_ascii_case(wanted)).map(|entry| entry.value);
        // A guest may say anything.
        values.fold(0, u64::saturating_add)
    };
    (sum("read"), sum("write"))
}

/// Shares of the last ten seconds in which something waited; `-` where the kernel does not tell.
fn pressure(stats: &WorkloadStats) -> String {
    let usage = &stats.usage;
    let shown = |percent: Option<f64>| percent.map_or("-".to_owned(), |percent| format!("{percent:.1}%"));
    let cpu = usage.cpu.psi.as_ref().map(|pressure| pressure.some.avg10);
    let memory = usage.memory.psi.as_ref().map(|pressure| pressure.some.avg10);
    let io = usage.blkio.psi.as_ref().map(|pressure| pressure.some.avg10);
    format!("{}/{}/{}", shown(cpu), shown(memory), shown(io))
}
