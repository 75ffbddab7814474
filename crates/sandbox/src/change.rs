//! Changing a container that runs: pause, resume, limits.

use moat_model::id::ContainerId;
use moat_model::oci::Resources;
use serde_json::{Map, Value};

use crate::cgroup::{CgroupState, Operation};
use crate::container::load;
use crate::plan::with_default_devices;
use crate::state::{ContainerState, Folder, Status, Store, replace};
use crate::{Context, Error, Result};

/// Freezes every process of a container.
///
/// Errors: the container does not run; it has no cgroup with a freezer.
pub fn pause(store: &Store, id: &ContainerId) -> Result<()> {
    let (folder, state) = locked(store, id)?;
    match state.status(&folder)? {
        Status::Running | Status::Created => {
            state.cgroup.freeze().context(|| format!("pause container {id}"))
        }
        other => Err(refused("pause", id, "container not running", other)),
    }
}

/// Lets the processes of a paused container run again.
///
/// Errors: the container is not paused.
pub fn resume(store: &Store, id: &ContainerId) -> Result<()> {
    let (folder, state) = locked(store, id)?;
    match state.status(&folder)? {
        Status::Paused => state.cgroup.thaw().context(|| format!("resume container {id}")),
        other => Err(refused("resume", id, "container not paused", other)),
    }
}

/// Changes the limits that `resources` names, in force and in the saved configuration.
///
/// Errors: the container does not run; a limit was refused, and then all are as before.
pub fn update(store: &Store, id: &ContainerId, resources: &Resources) -> Result<()> {
    let (folder, state) = locked(store, id)?;
    let status = state.status(&folder)?;
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(refused("update", id, "container not running", status));
    }
    let config = folder.config()?;
    let mut before = config.linux.and_then(|linux| linux.resources).unwrap_or_default();
    let mut wanted = with_default_devices(resources);
    if resources.devices == before.devices {
        // Container managers send the whole section: what does not change is not touched.
        wanted.devices.clear();
        before.devices.clear();
    }
    let what = || format!("update container {id}");
    let operations = state.cgroup.plan_update(&wanted).context(what)?;
    if let Err(error) = apply(&operations) {
        put_back(&state.cgroup, &before);
        return Err(error).context(what);
    }
    save(&folder, resources).context(what)
}

fn locked(store: &Store, id: &ContainerId) -> Result<(Folder, ContainerState)> {
    let (mut folder, _) = load(store, id)?;
    folder.lock()?;
    // Whoever held the lock may have changed it.
    let (_, state) = load(store, id)?;
    Ok((folder, state))
}

fn refused(verb: &str, id: &ContainerId, why: &str, status: Status) -> Error {
    Error::new(format!("cannot {verb} container {id}: {why} (it is {})", status.name()))
}

fn apply(operations: &[Operation]) -> Result<()> {
    operations.iter().try_for_each(Operation::apply)
}

/// The refusal is what the user has to know; what the configuration never named has no value to go back to.
fn put_back(group: &CgroupState, before: &Resources) {
    if let Ok(operations) = group.plan_update(&with_default_devices(before)) {
        for operation in operations {
            let _ = operation.apply();
        }
    }
}

/// Writes the new limits over the old ones in the saved configuration, which keeps all else, known or not.
fn save(folder: &Folder, resources: &Resources) -> Result<()> {
    let path = folder.complete();
    let invalid = |error: serde_json::Error| Error::new(format!("{}: {error}", path.display()));
    let text = std::fs::read(&path).context(|| path.display().to_string())?;
    let mut state: Value = serde_json::from_slice(&text).map_err(invalid)?;
    let changes = serde_json::to_value(resources).map_err(invalid)?;
    let mut wrapped = changes;
    for key in ["resources", "linux", "config"] {
        wrapped = Value::Object(Map::from_iter([(key.to_owned(), wrapped)]));
    }
    merge(&mut state, wrapped);
    replace(&path, &serde_json::to_vec(&state).map_err(invalid)?, 0o600)
}

/// Objects are merged; any other value takes the place of the old one.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge;

    #[test]
    fn only_what_is_named_changes() {
        let mut config =
            json!({"linux": {"resources": {"memory": {"limit": 1, "swap": 2}, "pids": null}, "x": 1}});
        merge(&mut config, json!({"linux": {"resources": {"memory": {"limit": 7}, "pids": {"limit": 3}}}}));
        let expected = json!({"linux": {"resources": {"memory": {"limit": 7, "swap": 2}, "pids": {"limit": 3}}, "x": 1}});
        assert_eq!(config, expected);
    }
}
