//! `moat ps`.

use clap::Args;
use moat_engine::{Engine, Timestamp, Workload, WorkloadState};
use moat_model::workload::{MountSource, NetworkMode, PortSpec, Protocol, Status, parse_exposed};

use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::flags::list::ListFlags;
use crate::format::{self, Column, Row, human};
use crate::line::Verb;
use crate::session::{Session, print};
use crate::shape::container::{command, exposed, health_suffix};
use crate::shape::host_config::network_mode;
use crate::shape::network::{ports_text, published};

#[derive(Args, Debug)]
pub(crate) struct Ps {
    /// All workloads, not only those that run
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    list: ListFlags,
    /// The newest ones, whatever their state
    #[arg(short = 'n', long, value_name = "NUMBER", allow_hyphen_values = true, default_value_t = -1, hide_default_value = true)]
    last: i64,
    /// The newest one, whatever its state
    #[arg(short, long)]
    latest: bool,
    /// Print all of everything
    #[arg(long)]
    no_trunc: bool,
    /// Print how much they wrote
    #[arg(short, long)]
    size: bool,
}

const COLUMNS: [Column; 14] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
];

const FILTERS: [&str; 14] = [
    "id", "name", "label", "label!", "status", "exited", "ancestor", "before", "since", "volume", "network",
    "publish", "expose", "health",
];

impl Verb for Ps {
    const NAME: &'static str = "ps";
    const ABOUT: &'static str = "List workloads";

    fn run(self, session: &Session) -> Result<u8> {
        let format = self.list.format()?;
        let filters = self.list.filters(&FILTERS)?;
        let engine = session.engine()?;
        let check = Check::new(&engine, &filters)?;
        let last = if self.latest { 1 } else { self.last };
        let all =
            self.all || last > 0 || !filters.of("status").is_empty() || !filters.of("exited").is_empty();
        let mut found = Vec::new();
        for workload in engine.list()? {
            let state = workload.state()?;
            let shown = all || state.is_running() || state.status == Status::Restarting;
            if shown && check.fits(&workload, &state) {
                found.push((workload, state));
            }
        }
        if last > 0 {
            found.truncate(usize::try_from(last).unwrap_or(usize::MAX));
        }
        if self.list.is_quiet() {
            let id = |workload: &Workload| match self.no_trunc {
                true => workload.id().to_string(),
                false => workload.id().short().to_string(),
            };
            print(&found.iter().map(|(workload, _)| format!("{}\n", id(workload))).collect::<String>())?;
            return Ok(0);
        }
        let rows: Result<Vec<Row>> =
            found.iter().map(|(workload, state)| self.row(workload, state)).collect();
        let mut shown = vec!["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
        shown.extend(self.size.then_some("Size"));
        print(&format::rows(&format, &shown, &COLUMNS, rows?)?)?;
        Ok(0)
    }
}

impl Ps {
    fn row(&self, workload: &Workload, state: &WorkloadState) -> Result<Row> {
        let (spec, record) = (workload.spec(), workload.record());
        let cut = |text: String, width| if self.no_trunc { text } else { human::ellipsis(&text, width) };
        let image = workload.image().ok();
        let line = command(spec, image).join(" ");
        let mut row = Row::default();
        row.set(
            "ID",
            if self.no_trunc { workload.id().to_string() } else { workload.id().short().to_string() },
        )
        .set("Image", spec.image.as_str())
        .set("Command", format!("\"{}\"", cut(line, 20)))
        .set("CreatedAt", human::local_time(record.created.nanoseconds().into()))
        .set("RunningFor", format!("{} ago", human::duration(since(record.created))))
        .set("Status", status(state))
        .set("State", state.status.name())
        .set("Ports", if state.is_running() { ports(workload)? } else { String::new() })
        .set("Names", workload.name())
        .set("Size", if self.size || self.list.names("Size") { size(workload)? } else { String::new() })
        .set("Mounts", cut(mounts(workload)?.join(","), 15))
        .set("LocalVolumes", volumes(workload)?.to_string())
        .set("Networks", networks(workload).join(","));
        row.labels(&labels(workload));
        Ok(row)
    }
}

/// Seconds since a moment.
pub(super) fn since(time: Timestamp) -> u64 {
    Timestamp::now().seconds().saturating_sub(time.seconds())
}

/// The labels of the image and, over them, those of the wish.
pub(super) fn labels(workload: &Workload) -> std::collections::BTreeMap<String, String> {
    let mut labels = workload.image().map(|image| image.config.config.labels.clone()).unwrap_or_default();
    labels.extend(workload.spec().labels.clone());
    labels
}

/// The state in words, as `Up 5 minutes (healthy)`.
pub(super) fn status(state: &WorkloadState) -> String {
    let ago = |time: Option<Timestamp>| time.map_or(String::new(), |time| human::duration(since(time)));
    let code = state.exit.as_ref().map_or(0, |exit| exit.code);
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Paused => format!("Up {} (Paused)", ago(state.started)),
        Status::Running => format!("Up {}{}", ago(state.started), health_suffix(state)),
        Status::Restarting => format!("Restarting ({code}) {} ago", ago(state.finished)),
        Status::Exited => format!("Exited ({code}) {} ago", ago(state.finished)),
    }
}

fn ports(workload: &Workload) -> Result<String> {
    let published = published(workload.attachment()?.as_ref());
    let is_published = |port: &(u16, Protocol)| published.iter().any(|one| (one.port, one.protocol) == *port);
    // With the host's network nothing is hidden that could be exposed.
    let mut silent: Vec<(u16, Protocol)> = match workload.spec().network.mode {
        NetworkMode::Host => Vec::new(),
        _ => exposed(workload).iter().flat_map(|text| parse_exposed(text).unwrap_or_default()).collect(),
    };
    silent.retain(|port| !is_published(port));
    silent.sort_unstable();
    Ok(ports_text(&published, &silent))
}

fn mounts(workload: &Workload) -> Result<Vec<String>> {
    let name = |mount: moat_model::workload::MountSpec| match mount.source {
        MountSource::Volume { name, .. } => name,
        MountSource::Bind { path, .. } => Some(path),
        MountSource::Tmpfs { .. } => None,
    };
    Ok(crate::shape::container::all_mounts(workload)?.into_iter().filter_map(name).collect())
}

/// The names of its networks.
fn networks(workload: &Workload) -> Vec<String> {
    let spec = workload.spec();
    match spec.network.mode {
        NetworkMode::Bridge => moat_engine::network_names(&spec.network),
        _ => vec![network_mode(&spec.network.mode, spec)],
    }
}

fn volumes(workload: &Workload) -> Result<usize> {
    let mounts = crate::shape::container::all_mounts(workload)?;
    Ok(mounts.iter().filter(|mount| matches!(mount.source, MountSource::Volume { .. })).count())
}

fn size(workload: &Workload) -> Result<String> {
    let (writable, total) = super::inspect::sizes(workload)?;
    Ok(format!("{} (virtual {})", human::short_size(writable), human::short_size(total)))
}

/// What the filters ask for, with names looked up once.
struct Check<'a> {
    filters: &'a Filters,
    images: Vec<String>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    codes: Vec<i32>,
}

impl<'a> Check<'a> {
    fn new(engine: &Engine, filters: &'a Filters) -> Result<Self> {
        const STATES: [&str; 6] = ["created", "running", "paused", "restarting", "exited", "dead"];
        if let Some(word) = filters.of("status").iter().find(|word| !STATES.contains(&word.as_str())) {
            return Err(Failure::new(format!("--filter status={word} is not one of {}", STATES.join(", "))));
        }
        const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
        if let Some(word) = filters.of("health").iter().find(|word| !HEALTH.contains(&word.as_str())) {
            return Err(Failure::new(format!("--filter health={word} is not one of {}", HEALTH.join(", "))));
        }
        let created = |key: &str| match filters.of(key) {
            [] => Ok(None),
            [name, ..] => Ok::<_, Failure>(Some(engine.find(name)?.record().created)),
        };
        let codes: Result<Vec<i32>> = filters
            .of("exited")
            .iter()
            .map(|code| {
                code.parse().map_err(|_| Failure::new(format!("--filter exited={code} is no exit code")))
            })
            .collect();
        // An ancestor that is not there has no workloads.
        let images = filters.of("ancestor").iter().filter_map(|name| engine.images().find(name).ok());
        Ok(Self {
            filters,
            images: images.map(|image| image.id.to_string()).collect(),
            before: created("before")?,
            since: created("since")?,
            codes: codes?,
        })
    }

    fn fits(&self, workload: &Workload, state: &WorkloadState) -> bool {
        let (spec, record, filters) = (workload.spec(), workload.record(), self.filters);
        let health = state.health.as_ref().map_or("none", |health| health.status.name());
        let code = state.exit.as_ref().map_or(0, |exit| exit.code);
        let mounts = crate::shape::container::all_mounts(workload).unwrap_or_default();
        let mounted = |wanted: &str| {
            mounts.iter().any(|mount| {
                mount.target == wanted
                    || match &mount.source {
                        MountSource::Volume { name, .. } => name.as_deref() == Some(wanted),
                        MountSource::Bind { path, .. } => path == wanted,
                        MountSource::Tmpfs { .. } => false,
                    }
            })
        };
        let exposes = |wanted: &str| {
            let wanted = crate::flags::port::expose(wanted).unwrap_or_default();
            exposed(workload).iter().any(|port| wanted.contains(port))
        };
        let publishes = |wanted: &str| {
            let wanted = parse_exposed(wanted).unwrap_or_default();
            let fits = |spec: &PortSpec| {
                wanted.iter().any(|(port, protocol)| {
                    spec.protocol == *protocol && (spec.ports.0..=spec.ports.1).contains(port)
                })
            };
            spec.network.ports.iter().any(fits)
        };
        filters.any("id", |id| record.id.starts_with(id))
            && filters.any("name", |name| workload.name().contains(name.trim_start_matches('/')))
            && filters.any("status", |word| word == state.status.name())
            && filters.any("health", |word| word == health)
            && (self.codes.is_empty() || (state.status == Status::Exited && self.codes.contains(&code)))
            && filters.any("ancestor", |name| self.images.contains(&record.image) || spec.image == name)
            && filters.any("volume", mounted)
            && filters.any("network", |name| networks(workload).iter().any(|one| one == name))
            && filters.any("expose", exposes)
            && filters.any("publish", publishes)
            && self.before.is_none_or(|time| record.created < time)
            && self.since.is_none_or(|time| record.created > time)
            && filters.labels(&labels(workload))
    }
}
