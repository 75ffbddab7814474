//! `moat system ...` and `moat info`.

use clap::Args;
use moat_engine::volume::Volume;
use moat_engine::{Engine, Finding, PruneSpec};
use serde::Serialize;

use super::images::short_id;
use super::ps;
use crate::failure::Result;
use crate::filter::Filters;
use crate::flags::list::PruneFlags;
use crate::format::{self, Column, Format, Row, human, table};
use crate::host::{self, Fact, Grade};
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Mend what is found
    #[arg(long)]
    repair: bool,
    /// Read and hash every blob of every image, too
    #[arg(long)]
    deep: bool,
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// What was found, for `--format`.
#[derive(Serialize)]
struct Report {
    #[serde(rename = "Host")]
    host: Vec<ReportedFact>,
    #[serde(rename = "Findings")]
    findings: Vec<ReportedFinding>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReportedFact {
    topic: &'static str,
    grade: &'static str,
    finding: String,
    remedy: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReportedFinding {
    path: String,
    fault: String,
    repair: Option<String>,
}

impl Verb for Check {
    const NAME: &'static str = "check";
    const ABOUT: &'static str = "Tell what the host can do, and find and mend what was left half-done";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let facts = host::examine();
        let findings = engine.check(self.repair, self.deep)?;
        let open = findings.iter().filter(|finding| !is_mended(finding)).count();
        if self.format.is_some() {
            let report = Report {
                host: facts
                    .into_iter()
                    .map(|fact| ReportedFact {
                        topic: fact.topic,
                        grade: fact.grade.word(),
                        finding: fact.finding,
                        remedy: fact.remedy,
                    })
                    .collect(),
                findings: findings
                    .into_iter()
                    .map(|finding| ReportedFinding {
                        path: finding.path.display().to_string(),
                        fault: finding.fault,
                        repair: finding.repair,
                    })
                    .collect(),
            };
            print(&format::documents(self.format.as_deref(), &[report])?)?;
        } else {
            print(&(host_text(&facts) + &findings_text(&engine, &findings, self.repair)))?;
        }
        Ok(u8::from(open > 0))
    }
}

fn is_mended(finding: &Finding) -> bool {
    finding.repair.as_ref().is_some_and(|repair| !repair.starts_with("could not"))
}

fn host_text(facts: &[Fact]) -> String {
    let mut text = String::from("Host\n");
    let width = facts.iter().map(|fact| fact.topic.len()).max().unwrap_or(0);
    for fact in facts {
        text += &format!("  {:width$}  {:7}  {}\n", fact.topic, fact.grade.word(), fact.finding);
        if let (Some(remedy), true) = (&fact.remedy, fact.grade != Grade::Good) {
            text += &format!("  {:width$}  {:7}  hint: {remedy}\n", "", "");
        }
    }
    text
}

fn findings_text(engine: &Engine, findings: &[Finding], repair: bool) -> String {
    let mut text = format!("\nState in {}\n", engine.roots().data.display());
    for finding in findings {
        text += &format!("  {finding}\n");
    }
    match (findings.len(), repair) {
        (0, _) => text += "  everything is as it should be\n",
        (count, false) => text += &format!("  {count} found; `moat system check --repair` mends\n"),
        (count, true) => text += &format!("  {count} found\n"),
    }
    text
}

#[derive(Args, Debug)]
pub(crate) struct DiskFree {
    /// Form of the answer: table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Print each image, workload and volume
    #[arg(short, long)]
    verbose: bool,
}

const USAGE: [Column; 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

impl Verb for DiskFree {
    const NAME: &'static str = "df";
    const ABOUT: &'static str = "Print how much is on the disk";

    fn run(self, session: &Session) -> Result<u8> {
        let format = Format::parse(self.format.as_deref())?;
        let engine = session.engine()?;
        if self.verbose {
            print(&verbose(&engine)?)?;
            return Ok(0);
        }
        let shown = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];
        print(&format::rows(&format, &shown, &USAGE, usage(&engine)?)?)?;
        Ok(0)
    }
}

/// A line of `system df`.
fn line(kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64) -> Row {
    let share = if bytes == 0 { 0 } else { (u128::from(reclaimable) * 100 / u128::from(bytes)).min(100) };
    let mut row = Row::default();
    row.set("Type", kind)
        .set("TotalCount", total.to_string())
        .set("Active", active.to_string())
        .set("Size", human::size(bytes))
        .set("Reclaimable", format!("{} ({share}%)", human::size(reclaimable)));
    row
}

fn usage(engine: &Engine) -> Result<Vec<Row>> {
    let found = engine.disk_usage()?;
    let images = &found.images;
    let active = images.images.iter().filter(|image| image.holders > 0).count();
    let running = found.workloads.iter().filter(|one| one.running).count();
    let sum = |wanted: bool, of: fn(&moat_engine::WorkloadUsage) -> u64| {
        found.workloads.iter().filter(|one| wanted || !one.running).map(of).sum::<u64>()
    };
    let (mut volumes, mut used, mut bytes, mut free) = (0, 0, 0, 0);
    for volume in super::volume::volumes(engine).list()? {
        let (size, idle) = (volume.size_bytes()?, volume.users()?.is_empty());
        volumes += 1;
        bytes += size;
        used += usize::from(!idle);
        free += if idle { size } else { 0 };
    }
    Ok(vec![
        line(
            "Images",
            images.images.len(),
            active,
            images.layers_bytes + images.erofs_bytes + images.blobs_bytes,
            images.reclaimable_bytes,
        ),
        line(
            "Containers",
            found.workloads.len(),
            running,
            sum(true, |one| one.written_bytes),
            sum(false, |one| one.written_bytes),
        ),
        line(
            "Logs",
            found.workloads.len(),
            running,
            sum(true, |one| one.log_bytes),
            sum(false, |one| one.log_bytes),
        ),
        line("Local Volumes", volumes, used, bytes, free),
    ])
}

fn verbose(engine: &Engine) -> Result<String> {
    let found = engine.disk_usage()?;
    let cells = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut images =
        vec![cells(&["REPOSITORY", "TAG", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"])];
    for usage in &found.images.images {
        let name = usage.image.names.first();
        images.push(vec![
            name.map_or("<none>".to_owned(), moat_engine::image::Reference::repository),
            name.and_then(|name| name.tag()).unwrap_or("<none>").to_owned(),
            short_id(&usage.image),
            human::size(usage.shared_bytes + usage.unique_bytes),
            human::size(usage.shared_bytes),
            human::size(usage.unique_bytes),
            usage.holders.to_string(),
        ]);
    }
    let mut workloads = vec![cells(&["CONTAINER ID", "IMAGE", "SIZE", "LOGS", "STATUS", "NAMES"])];
    for usage in &found.workloads {
        workloads.push(vec![
            usage.workload.id().short().to_string(),
            usage.workload.spec().image.clone(),
            human::size(usage.written_bytes),
            human::size(usage.log_bytes),
            ps::status(&usage.workload.state()?),
            usage.workload.name().to_owned(),
        ]);
    }
    let mut volumes = vec![cells(&["VOLUME NAME", "LINKS", "SIZE"])];
    for volume in super::volume::volumes(engine).list()? {
        let (links, size) = (volume.users()?.len().to_string(), human::size(volume.size_bytes()?));
        volumes.push(vec![volume.name, links, size]);
    }
    Ok(format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}",
        table::align(&images),
        table::align(&workloads),
        table::align(&volumes)
    ))
}

/// What the flags choose of workloads and images.
fn chosen(flags: &PruneFlags) -> Result<(PruneSpec, Filters)> {
    let (filters, until) = flags.chosen(&["until", "label"])?;
    Ok((PruneSpec { until, labels: filters.of("label").to_vec(), ..PruneSpec::default() }, filters))
}

#[derive(Args, Debug)]
pub(crate) struct PruneContainers {
    #[command(flatten)]
    prune: PruneFlags,
}

impl Verb for PruneContainers {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Remove workloads that do not run";

    fn run(self, session: &Session) -> Result<u8> {
        let (mut spec, _) = chosen(&self.prune)?;
        spec.workloads = true;
        if !self.prune.agreed("all workloads that do not run")? {
            return Ok(0);
        }
        let pruned = session.engine()?.prune(&spec)?;
        print(&(ids("Deleted Containers:", &pruned.workloads) + &reclaimed(pruned.reclaimed_bytes)))?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// All images that no workload uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Anonymous volumes, too
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    prune: PruneFlags,
}

impl Verb for Prune {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Remove workloads that do not run, and networks and images that nothing uses";

    fn run(self, session: &Session) -> Result<u8> {
        let (mut spec, filters) = chosen(&self.prune)?;
        (spec.workloads, spec.images, spec.all_images) = (true, true, self.all);
        let images = if self.all { "all images that no workload uses" } else { "images without a name" };
        let volumes = if self.volumes { ", anonymous volumes that no workload uses" } else { "" };
        let what = format!("workloads that do not run, networks that no workload uses, {images}{volumes}");
        if !self.prune.agreed(&what)? {
            return Ok(0);
        }
        let engine = session.engine()?;
        let mut pruned = engine.prune(&spec)?;
        let mut text = ids("Deleted Containers:", &pruned.workloads);
        text += &super::network::prune(&engine, &filters, spec.until)?;
        if self.volumes {
            let removed = super::volume::volumes(&engine)
                .prune(false, &|volume: &Volume| filters.labels(&volume.state.labels))?;
            pruned.reclaimed_bytes += removed.iter().map(|volume| volume.bytes).sum::<u64>();
            let names: Vec<String> = removed.into_iter().map(|volume| volume.name).collect();
            text += &ids("Deleted Volumes:", &names);
        }
        let untagged = pruned.images.untagged.iter().map(|name| format!("untagged: {name}"));
        let deleted = pruned.images.deleted.iter().map(|id| format!("deleted: {id}"));
        text += &ids("Deleted Images:", &untagged.chain(deleted).collect::<Vec<_>>());
        print(&(text + &reclaimed(pruned.reclaimed_bytes)))?;
        Ok(0)
    }
}

fn ids(title: &str, lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!("{title}\n{}\n\n", lines.join("\n")),
    }
}

fn reclaimed(bytes: u64) -> String {
    format!("Total reclaimed space: {}\n", human::size(bytes))
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// What `info` tells, in Docker's names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    containers: usize,
    containers_running: usize,
    containers_paused: usize,
    containers_stopped: usize,
    images: usize,
    server_version: &'static str,
    driver: &'static str,
    cgroup_version: String,
    security_options: Vec<String>,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    #[serde(rename = "NCPU")]
    processors: u32,
    mem_total: u64,
    name: String,
    docker_root_dir: String,
    rootless: bool,
}

impl Verb for Info {
    const NAME: &'static str = "info";
    const ABOUT: &'static str = "Print facts about the engine and its host";

    fn run(self, session: &Session) -> Result<u8> {
        let info = session.engine()?.info()?;
        let told = Told {
            containers: info.running + info.paused + info.stopped,
            containers_running: info.running,
            containers_paused: info.paused,
            containers_stopped: info.stopped,
            images: info.images,
            server_version: env!("CARGO_PKG_VERSION"),
            driver: "overlay",
            cgroup_version: info.cgroup_version.to_string(),
            security_options: info.security.iter().map(|name| format!("name={name}")).collect(),
            kernel_version: info.kernel,
            operating_system: info.operating_system,
            os_type: "linux",
            architecture: info.architecture,
            processors: info.processors,
            mem_total: info.memory_bytes,
            name: info.host_name,
            docker_root_dir: info.data_root,
            rootless: info.rootless,
        };
        if self.format.is_some() {
            print(&format::documents(self.format.as_deref(), &[told])?)?;
            return Ok(0);
        }
        print(&format!(
            "Containers: {}\n Running: {}\n Paused: {}\n Stopped: {}\nImages: {}\nServer Version: {}\n\
             Storage Driver: {}\nCgroup Version: {}\nSecurity Options: {}\nKernel Version: {}\n\
             Operating System: {}\nOSType: {}\nArchitecture: {}\nCPUs: {}\nTotal Memory: {}\nName: {}\n\
             Root Dir: {}\nRootless: {}\n",
            told.containers,
            told.containers_running,
            told.containers_paused,
            told.containers_stopped,
            told.images,
            told.server_version,
            told.driver,
            told.cgroup_version,
            info.security.join(" "),
            told.kernel_version,
            told.operating_system,
            told.os_type,
            told.architecture,
            told.processors,
            human::memory(told.mem_total),
            told.name,
            told.docker_root_dir,
            told.rootless,
        ))?;
        Ok(0)
    }
}
