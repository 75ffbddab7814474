//! What a machine can not have, refused before anything is made.

use std::path::Path;

use moat_model::workload::{HealthProbe, MountSource, NamespaceMode, NetworkMode, WorkloadSpec};

use crate::{Context, Error, Result};

/// What a folder of the host in a guest would need.
pub(super) fn no_folders() -> Error {
    Error::invalid("a microVM can not share folders of the host yet")
        .hint("mount single files, or copy folders with `moat cp`")
}

/// Refuses what no machine could give.
pub(crate) fn check(spec: &WorkloadSpec) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::invalid(format!("{what} is not possible with --isolation microvm yet")));
    for mount in &spec.mounts {
        let folder = match &mount.source {
            MountSource::Volume { .. } => true,
            MountSource::Bind { path, .. } => !Path::new(path).is_file(),
            MountSource::Tmpfs { .. } => false,
        };
        if folder {
            return Err(no_folders()).context(|| format!("mount {}", mount.target));
        }
    }
    if !spec.volumes_from.is_empty() {
        return Err(no_folders()).context(|| "--volumes-from");
    }
    if !spec.devices.is_empty() {
        return refuse("a device of the host (--device)");
    }
    let modes = [("--pid", &spec.pid), ("--ipc", &spec.ipc), ("--uts", &spec.uts)];
    if let Some((flag, _)) = modes.iter().find(|(_, mode)| !matches!(mode, NamespaceMode::Private)) {
        return refuse(&format!("a namespace of others ({flag})"));
    }
    match &spec.network.mode {
        NetworkMode::Bridge | NetworkMode::None => {}
        other => {
            return Err(Error::invalid(format!(
                "a microVM has network devices of its own kernel: it can not share those of others (--network {})",
                other.name()
            ))
            .hint("name a network, on which the others are, too; or use --network none"));
        }
    }
    if matches!(
        spec.health.as_ref().map(|health| &health.probe),
        Some(HealthProbe::Tcp { .. } | HealthProbe::Http { .. })
    ) {
        return refuse("a health check over the network");
    }
    if crate::rootless::is_inside() {
        return Err(Error::invalid(
            "a microVM needs root on the host, to give its monitor a user of its own",
        )
        .hint("run it as root, or as a container"));
    }
    virtualization()
}

/// A machine needs a processor that runs guests by itself. Nothing weaker takes its place.
fn virtualization() -> Result<()> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context(|| "/proc/cpuinfo")?;
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let hint =
        "use a host that has it, or run the workload as a container, with the walls that a container has";
    if !flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Err(Error::invalid(
            "this host has no hardware virtualization for a microVM: its processors show neither VMX nor SVM",
        )
        .hint(hint));
    }
    if !Path::new("/dev/kvm").exists() {
        return Err(Error::invalid("this host has no /dev/kvm for a microVM")
            .hint("load the module kvm_intel or kvm_amd"));
    }
    Ok(())
}
