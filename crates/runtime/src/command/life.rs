//! `start`, `state`, `kill`, `delete`.

use moat_model::oci;
use moat_sandbox::container;
use moat_sandbox::record::Recorder;
use moat_sandbox::{Error, Result};
use serde::Serialize;

use super::build::parse_stop;
use super::oom::Kills;
use super::output::print;
use super::{Session, container_id};
use crate::cli::{DeleteArgs, Id, KillArgs, StartArgs};

pub(crate) fn start(session: &Session<'_>, args: &StartArgs) -> Result<u8> {
    let mut recorder = Recorder::new(false, parse_stop(args.stop_after.as_deref())?);
    let warnings = container::start(&session.store, &container_id(&args.id)?, &mut recorder)?;
    warnings.iter().for_each(|warning| session.log.warn(warning));
    Ok(0)
}

/// The state of the specification, with what runc adds to it, and why the kernel killed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FullState {
    #[serde(flatten)]
    state: oci::State,
    rootfs: std::path::PathBuf,
    created: String,
    owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom: Option<Kills>,
}

pub(crate) fn state(session: &Session<'_>, args: &Id) -> Result<u8> {
    let (folder, state) = container::load(&session.store, &container_id(&args.id)?)?;
    let status = state.status(&folder)?;
    let full = FullState {
        state: state.to_oci(status),
        rootfs: state.rootfs.clone(),
        created: state.created.clone(),
        owner: if state.owner == 0 { String::new() } else { state.owner.to_string() },
        oom: Kills::new(&state.cgroup.oom()?),
    };
    let text = serde_json::to_string_pretty(&full).map_err(|error| Error::new(error.to_string()))?;
    print(&format!("{text}\n"))?;
    Ok(0)
}

pub(crate) fn kill(session: &Session<'_>, args: &KillArgs) -> Result<u8> {
    let number = moat_linux::process::signal_number(&args.signal)
        .ok_or_else(|| Error::new(format!("{:?} is not a signal", args.signal)))?;
    container::kill(&session.store, &container_id(&args.id)?, number, args.all)?;
    Ok(0)
}

pub(crate) fn delete(session: &Session<'_>, args: &DeleteArgs) -> Result<u8> {
    let mut recorder = Recorder::new(false, parse_stop(args.stop_after.as_deref())?);
    let warnings = container::delete(&session.store, &container_id(&args.id)?, args.force, &mut recorder)?;
    warnings.iter().for_each(|warning| session.log.warn(warning));
    Ok(0)
}
