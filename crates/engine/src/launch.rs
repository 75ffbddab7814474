//! All that a monitor has to know of its workload, gathered before it is forked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use moat_image::RunConfig;
use moat_linux::process as sys;
use moat_model::id::ContainerId;
use moat_model::oci as model;
use moat_model::workload::Isolation as Wall;
use moat_sandbox::host::Host;
use moat_sandbox::state::Store;

use crate::events::{self, Action, Event, EventType};
use crate::guest::GuestState;
use crate::health::Checker;
use crate::isolation::{Container, Isolation, MicroVm};
use crate::network::{HostMounts, Network};
use crate::oci::{self, ExecWish, HealthCheck, HostFacts, IdMaps};
use crate::workload::Folder;
use crate::{Context, Engine, Error, Result, Timestamp, Workload, WorkloadRecord};

/// How long `stop` waits where nobody has said.
const STOP_TIMEOUT_S: u64 = 10;

#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) engine: Engine,
    pub(crate) folder: Folder,
    pub(crate) record: WorkloadRecord,
    pub(crate) image: RunConfig,
    /// Topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// The same, as the store knows them.
    pub(crate) image_layers: Vec<moat_image::Layer>,
    pub(crate) mount_point: PathBuf,
    pub(crate) sandbox_id: ContainerId,
    pub(crate) facts: HostFacts,
    pub(crate) stop_signal: i32,
    health: Option<HealthCheck>,
    pub(crate) user_xattr: bool,
}

impl Launch {
    /// Gathers it.
    ///
    /// Errors: the image is gone; a wish that can not be fulfilled.
    pub(crate) fn new(workload: &Workload) -> Result<Self> {
        let (engine, record) = (workload.engine(), workload.record());
        let image = workload.image()?;
        let run = &image.config.config;
        let signal = oci::stop_signal(&record.spec, run);
        let host = Host::detect()?;
        let mut wish = run.clone();
        if moat_image::is_built_in(image)? {
            // It shows them beside its own; no other program is told.
            let (name, facts) = moat_image::hello_environment();
            wish.env.push(format!("{name}={facts}"));
        }
        Ok(Self {
            engine: engine.clone(),
            folder: workload.folder().clone(),
            record: record.clone(),
            layers: engine.images().layer_paths(image),
            image_layers: image.layers.iter().rev().cloned().collect(),
            mount_point: engine.roots().mount_point(),
            sandbox_id: sandbox_id(workload)?,
            stop_signal: sys::signal_number(signal).ok_or_else(|| {
                Error::invalid(format!("stop signal {signal:?} is neither a name nor a number"))
            })?,
            health: oci::health(record.spec.health.as_ref(), run)?,
            user_xattr: host.in_user_namespace,
            facts: HostFacts::detect(host)?,
            image: wish,
        })
    }

    /// The wall.
    pub(crate) fn isolation(&self) -> Box<dyn Isolation + '_> {
        match self.record.spec.isolation {
            Wall::Container => Box::new(Container::new(self.store(), self.facts.sandbox.clone())),
            Wall::Microvm => Box::new(MicroVm::new(self)),
        }
    }

    /// The sandbox's containers.
    pub(crate) fn store(&self) -> Store {
        Store::new(self.engine.roots().sandbox())
    }

    /// Makes its place on the network, as its record says now: it may have joined networks since the monitor began.
    pub(crate) fn prepare_network(&self, host: &HostMounts) -> Result<Network> {
        match self.folder.record()? {
            Some(record) => Network::prepare(&self.engine, &self.folder, (&record, &self.image), host),
            None => Network::prepare(&self.engine, &self.folder, (&self.record, &self.image), host),
        }
    }

    /// The id mappings of its user namespace, where it has one.
    pub(crate) fn id_maps(&self) -> Result<Option<IdMaps>> {
        oci::user_namespace(self.record.spec.userns.as_deref(), None)
    }

    /// A further process, as a health check wants it: of the workload's own user.
    pub(crate) fn exec_process(&self, wish: &ExecWish) -> Result<model::Process> {
        let first = match self.record.spec.isolation {
            Wall::Microvm => GuestState::load(&self.folder.run)?.config,
            Wall::Container => {
                let (folder, _) = moat_sandbox::container::load(&self.store(), &self.sandbox_id)?;
                folder.config()?.process.ok_or_else(|| Error::new("the configuration has no process"))?
            }
        };
        oci::exec_process(wish, &first, (&self.record.spec, &self.image), &self.facts, None)
    }

    pub(crate) fn health_checker(&self) -> Option<Checker> {
        self.health.clone().map(Checker::new)
    }

    pub(crate) fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.record.spec.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S))
    }

    pub(crate) fn event(&self, action: Action, more: &[(&str, String)]) -> Result<()> {
        tell(&self.engine, &self.record, action, more)
    }

    /// Removes the workload, which has ended.
    pub(crate) fn remove(&self) -> Result<()> {
        self.folder.remove_run()?;
        crate::workload::remove_files(&self.engine, &self.folder, &self.record, true)
    }
}

/// The sandbox knows a workload by its id.
pub(crate) fn sandbox_id(workload: &Workload) -> Result<ContainerId> {
    ContainerId::new(workload.id().as_str()).map_err(|error| Error::new(error.to_string()))
}

/// How long `stop` waits before it kills, in milliseconds; -1 of the image is for ever, as Docker has it.
pub(crate) fn stop_timeout_ms(workload: &Workload) -> Result<Option<u64>> {
    let of_image = || -> Result<Option<i64>> { Ok(workload.image()?.config.config.stop_timeout) };
    let seconds = match workload.spec().stop_timeout_s {
        Some(seconds) => seconds,
        None => match of_image()? {
            Some(seconds) => match u64::try_from(seconds) {
                Ok(seconds) => seconds,
                Err(_) => return Ok(None),
            },
            None => STOP_TIMEOUT_S,
        },
    };
    Ok(Some(seconds.saturating_mul(1000)))
}

/// Writes an event of a workload down.
pub(crate) fn tell(
    engine: &Engine,
    record: &WorkloadRecord,
    action: Action,
    more: &[(&str, String)],
) -> Result<()> {
    let mut attributes: BTreeMap<String, String> = record.spec.labels.clone();
    attributes.insert("image".to_owned(), record.spec.image.clone());
    attributes.insert("name".to_owned(), record.name.clone());
    attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let event = Event {
        time: Timestamp::now(),
        kind: EventType::Container,
        action,
        id: record.id.clone(),
        attributes,
    };
    events::append(&engine.roots().events(), &event).context(|| format!("event {}", action.name()))
}
