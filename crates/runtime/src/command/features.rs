//! `features`: what this runtime understands (specification, "Features Structure").
//!
//! Every list comes from the table that the configuration is read by, so it can not tell a lie.

use moat_linux::capability;
use moat_model::oci::{self, Hooks, NamespaceKind};
use moat_sandbox::{Error, Result, plan, seccomp};
use serde_json::{Value, json};

use super::output::print;

/// The first version whose configurations are understood.
const OLDEST: &str = "1.0.0";

pub(crate) fn features() -> Result<u8> {
    let text = serde_json::to_string_pretty(&value()).map_err(|error| Error::new(error.to_string()))?;
    print(&format!("{text}\n"))?;
    Ok(0)
}

fn value() -> Value {
    let hooks: Vec<&str> = Hooks::default().kinds().iter().map(|(name, _)| *name).collect();
    json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": oci::VERSION,
        "hooks": hooks,
        "mountOptions": plan::mount_options(),
        "linux": linux(),
        "annotations": { "moat.runtime.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

fn linux() -> Value {
    json!({
        "namespaces": NamespaceKind::ALL,
        "capabilities": capability::NAMES.as_slice(),
        "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
        "seccomp": seccomp_value(),
        "apparmor": { "enabled": true },
        "selinux": { "enabled": true },
        "intelRdt": { "enabled": false },
        "mountExtensions": { "idmap": { "enabled": true } },
        "netDevices": { "enabled": true },
        "memoryPolicy": {
            "modes": names(&plan::MEMORY_POLICY_MODES),
            "flags": names(&plan::MEMORY_POLICY_FLAGS),
        },
    })
}

fn seccomp_value() -> Value {
    let mut archs: Vec<&str> = seccomp::architectures().collect();
    archs.sort_unstable();
    json!({
        "enabled": true,
        "actions": names(&seccomp::ACTIONS),
        "operators": seccomp::OPERATORS,
        "archs": archs,
        "knownFlags": names(&seccomp::FLAGS),
        "supportedFlags": seccomp::supported_flags(),
    })
}

fn names<T>(table: &[(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(name, _)| *name).collect()
}
