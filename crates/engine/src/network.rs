//! The one place where the network of a workload is prepared before its wall is built, and released after it fell.

use std::path::PathBuf;

use moat_model::workload::{NetworkMode, WorkloadSpec};

use crate::workload::Folder;
use crate::{Engine, Error, Result, WorkloadRecord};

/// The network of a workload that runs.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// The namespace that it joins; `None` is one of its own with nothing but loopback, or the host's.
    pub(crate) namespace: Option<PathBuf>,
}

impl Network {
    /// Prepares what the workload asked for.
    ///
    /// Errors: a network that does not exist, or that can not be had.
    pub(crate) fn prepare(engine: &Engine, folder: &Folder, record: &WorkloadRecord) -> Result<Self> {
        let _ = folder;
        match &record.spec.network.mode {
            NetworkMode::None | NetworkMode::Host => Ok(Self::default()),
            NetworkMode::Path(path) => Ok(Self { namespace: Some(PathBuf::from(path)) }),
            NetworkMode::Container(other) => {
                Ok(Self { namespace: Some(engine.find(other)?.namespace("net")?) })
            }
            NetworkMode::Bridge => Err(unsupported()),
        }
    }

    /// Gives back what was prepared.
    pub(crate) fn release(self) -> Result<()> {
        Ok(())
    }
}

/// Refuses at once what no start could give.
pub(crate) fn check(spec: &WorkloadSpec) -> Result<()> {
    match spec.network.mode {
        NetworkMode::Bridge => Err(unsupported()),
        _ => Ok(()),
    }
}

fn unsupported() -> Error {
    Error::invalid("a workload can not be connected to a network yet")
        .hint("run it with `--network none` or `--network host`")
}
