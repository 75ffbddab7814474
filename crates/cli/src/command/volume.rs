//! `moat volume ...`.

use std::collections::BTreeMap;

use clap::Args;
use moat_engine::volume::{Volume, VolumeSpec, Volumes};
use moat_engine::{Engine, Workload};
use moat_model::workload::MountSource;

use super::{each, each_line, inspect};
use crate::failure::{Failure, Result};
use crate::flags;
use crate::flags::list::{ListFlags, PruneFlags};
use crate::format::{self, Column, Row, human};
use crate::line::Verb;
use crate::session::{Session, print};
use crate::shape::{Document, object, texts};

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Driver: local
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Label, as NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", value_parser = flags::pair)]
    label: Vec<(String, String)>,
    /// Option of the driver: type=none, o=bind, device=PATH
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = flags::assignment)]
    opt: Vec<(String, String)>,
    /// Name
    #[arg(value_parser = flags::volume::volume_name)]
    name: Option<String>,
}

impl Verb for Create {
    const NAME: &'static str = "create";
    const ABOUT: &'static str = "Create a volume";

    fn run(self, session: &Session) -> Result<u8> {
        if self.driver != "local" {
            return Err(Failure::new(format!("--driver {}: the only driver is local", self.driver)));
        }
        let spec = VolumeSpec {
            name: self.name,
            labels: self.label.into_iter().collect(),
            options: self.opt.into_iter().collect(),
        };
        let volume = volumes(&session.engine()?).create(&spec)?;
        print(&format!("{}\n", volume.name))?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    list: ListFlags,
}

const COLUMNS: [Column; 6] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Size", "SIZE"),
];

impl Verb for List {
    const NAME: &'static str = "ls";
    const ABOUT: &'static str = "List volumes";

    fn run(self, session: &Session) -> Result<u8> {
        let format = self.list.format()?;
        let filters = self.list.filters(&["dangling", "driver", "label", "label!", "name"])?;
        let dangling = filters.truth("dangling")?;
        let mut found = Vec::new();
        for volume in volumes(&session.engine()?).list()? {
            let unused = match dangling {
                None => true,
                Some(dangling) => dangling == volume.users()?.is_empty(),
            };
            if unused
                && filters.any("driver", |driver| driver == "local")
                && filters.any("name", |name| volume.name.contains(name))
                && filters.labels(&volume.state.labels)
            {
                found.push(volume);
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        if self.list.is_quiet() {
            print(&each_line(&found.iter().map(|volume| volume.name.clone()).collect::<Vec<_>>()))?;
            return Ok(0);
        }
        let rows: Result<Vec<Row>> = found
            .iter()
            .map(|volume| {
                let mut row = Row::default();
                row.set("Driver", "local")
                    .set("Name", volume.name.as_str())
                    .set("Scope", "local")
                    .set("Mountpoint", volume.path()?.display().to_string())
                    .set("Size", "N/A");
                row.labels(&volume.state.labels);
                Ok(row)
            })
            .collect();
        print(&format::rows(&format, &["Driver", "Name"], &COLUMNS, rows?)?)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Volume
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

impl Verb for Inspect {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Print all about volumes";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        inspect::documents(&self.names, self.format.as_deref(), |name| document(&engine, name))
    }
}

/// A volume as `docker volume inspect` shows it.
pub(super) fn document(engine: &Engine, name: &str) -> Result<Document> {
    let volume = volumes(engine).find(name)?;
    let empty_as_null = |map: &BTreeMap<String, String>| match map.is_empty() {
        true => serde_json::Value::Null,
        false => texts(map),
    };
    Ok(object! {
        "CreatedAt": volume.state.created.to_string(),
        "Driver": "local",
        "Labels": empty_as_null(&volume.state.labels),
        "Mountpoint": volume.path()?.display().to_string(),
        "Name": volume.name.as_str(),
        "Options": empty_as_null(&volume.state.options),
        "Scope": "local",
    })
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// A volume that is not there is no fault
    #[arg(short, long)]
    force: bool,
    /// Volume
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

impl Verb for Remove {
    const NAME: &'static str = "rm";
    const ABOUT: &'static str = "Remove volumes";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        each(&self.names, |name| match volumes(&engine).remove(name) {
            Err(error) if self.force && error.kind() == moat_engine::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other?.name)),
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Volumes with a name, too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    prune: PruneFlags,
}

impl Verb for Prune {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Remove volumes that no workload uses";

    fn run(self, session: &Session) -> Result<u8> {
        let filters = self.prune.filters(&["label", "label!"])?;
        let what = if self.all { "all volumes" } else { "anonymous volumes" };
        if !self.prune.agreed(&format!("{what} that no workload uses"))? {
            return Ok(0);
        }
        let wanted = |volume: &Volume| filters.labels(&volume.state.labels);
        let removed = volumes(&session.engine()?).prune(self.all, &wanted)?;
        let mut text = String::new();
        if !removed.is_empty() {
            text += "Deleted Volumes:\n";
            text += &removed.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>();
            text += "\n";
        }
        let bytes = removed.iter().map(|volume| volume.bytes).sum();
        text += &format!("Total reclaimed space: {}\n", human::size(bytes));
        print(&text)?;
        Ok(0)
    }
}

/// The volumes of an engine.
pub(super) fn volumes(engine: &Engine) -> Volumes {
    Volumes::new(engine.roots().data.join("volumes"))
}

/// Where a workload's mount comes from on the host.
pub(crate) fn source(workload: &Workload, source: &MountSource) -> String {
    match source {
        MountSource::Volume { name: Some(name), .. } => {
            let found = volumes(workload.engine()).find(name).and_then(|volume| volume.path());
            found.map_or(String::new(), |path| path.display().to_string())
        }
        MountSource::Bind { path, .. } => path.clone(),
        MountSource::Volume { name: None, .. } | MountSource::Tmpfs { .. } => String::new(),
    }
}
