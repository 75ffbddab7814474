//! Workloads: finding them, and what can be done with one.

mod folder;
mod name;
mod state;

pub use name::{WorkloadId, check_name};
pub use state::{
    ExitStatus, Health, HealthResult, HealthState, OomVictim, ProcessState, WorkloadRecord, WorkloadState,
};

pub(crate) use folder::{Folder, Lock};

use crate::{Engine, Error, Result, file};

/// The shortest part of an id that is taken for one.
const MIN_PREFIX: usize = 1;

/// A workload that exists.
#[derive(Clone, Debug)]
pub struct Workload {
    engine: Engine,
    folder: Folder,
    record: WorkloadRecord,
}

impl Engine {
    /// All workloads, the newest first. One that is being created or removed in this moment is left out.
    pub fn list(&self) -> Result<Vec<Workload>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.roots().workloads())? {
            if let Some(id) = WorkloadId::parse(&name) {
                found.extend(self.load(id)?);
            }
        }
        found.sort_by_key(|workload: &Workload| std::cmp::Reverse(workload.record.created));
        Ok(found)
    }

    /// The workload of a name, an id, or the beginning of an id.
    ///
    /// Errors: there is none; the beginning fits several.
    pub fn find(&self, name_or_id: &str) -> Result<Workload> {
        let missing = || {
            Error::not_found(format!("workload {name_or_id:?} does not exist"))
                .hint("`moat ps -a` lists those that do")
        };
        let text = name_or_id.strip_prefix('/').unwrap_or(name_or_id);
        if let Some(id) = WorkloadId::parse(text) {
            return self.load(id)?.ok_or_else(missing);
        }
        if let Some(id) = name::holder(self.roots(), text)? {
            return self.load(id)?.ok_or_else(missing);
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.len() < MIN_PREFIX || !digits {
            return Err(missing());
        }
        let names = file::names_in(&self.roots().workloads())?;
        let mut fitting =
            names.iter().filter(|name| name.starts_with(text)).filter_map(|name| WorkloadId::parse(name));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => self.load(id)?.ok_or_else(missing),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("{text:?} is the beginning of several workloads' ids"))
                    .hint("give more digits"))
            }
            _ => Err(missing()),
        }
    }

    fn load(&self, id: WorkloadId) -> Result<Option<Workload>> {
        let folder = Folder::new(self.roots(), id);
        Ok(folder.record()?.map(|record| Workload { engine: self.clone(), folder, record }))
    }
}

impl Workload {
    /// Its id.
    pub fn id(&self) -> &WorkloadId {
        &self.folder.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What was asked for.
    pub fn spec(&self) -> &moat_model::workload::WorkloadSpec {
        &self.record.spec
    }

    /// What is saved of it beside its state.
    pub fn record(&self) -> &WorkloadRecord {
        &self.record
    }

    /// The engine that it belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}
