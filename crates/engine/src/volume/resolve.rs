//! Which mounts a workload has, decided when it is created: its own, those of other workloads, the image's volumes.

use moat_model::workload::{MountSource, MountSpec, WorkloadSpec};

use super::{VolumeSpec, Volumes, volume_name};
use crate::oci::{RunConfig, check_target, same_place};
use crate::{Error, ErrorKind, Result};

/// The mounts of a workload, every volume made, named and held for it.
///
/// Errors: as [`decide`]; nothing is held and nothing anonymous is left.
pub(crate) fn resolve(
    volumes: &Volumes,
    workload: &str,
    spec: &WorkloadSpec,
    image: &RunConfig,
    others: &dyn Fn(&str) -> Result<Vec<MountSpec>>,
) -> Result<Vec<MountSpec>> {
    let mut found = decide(spec, image, others)?;
    let made = hold_all(volumes, workload, &mut found);
    if let Err(error) = made {
        // The first error is what the user has to know.
        let _ = volumes.release(&found, workload, true);
        return Err(error);
    }
    Ok(found)
}

/// The mounts of a workload; nothing is made.
///
/// What the user says about a place wins over `--volumes-from`, and both over the image's volumes. `others` gives the
/// mounts of another workload by name or id. Errors: a place that is none, or is named twice.
pub(crate) fn decide(
    spec: &WorkloadSpec,
    image: &RunConfig,
    others: &dyn Fn(&str) -> Result<Vec<MountSpec>>,
) -> Result<Vec<MountSpec>> {
    let mut found: Vec<MountSpec> = Vec::new();
    for mount in &spec.mounts {
        check_target(&mount.target)?;
        if found.iter().any(|known| same_place(&known.target, &mount.target)) {
            return Err(Error::invalid(format!("two mounts go to {}", mount.target)));
        }
        found.push(mount.clone());
    }
    for text in &spec.volumes_from {
        for mount in taken_from(text, others)? {
            if !found.iter().any(|known| same_place(&known.target, &mount.target)) {
                found.push(mount);
            }
        }
    }
    for target in &image.volumes {
        check_target(target)?;
        if !found.iter().any(|known| same_place(&known.target, target)) {
            found.push(anonymous(target));
        }
    }
    Ok(found)
}

fn anonymous(target: &str) -> MountSpec {
    let source = MountSource::Volume {
        name: None,
        no_copy: false,
        subpath: None,
        options: Default::default(),
        labels: Default::default(),
    };
    MountSpec { source, target: target.to_owned(), read_only: false, idmap: None }
}

/// Parses `NAME[:ro]`. What is in memory is not shared: each workload has its own.
fn taken_from(text: &str, others: &dyn Fn(&str) -> Result<Vec<MountSpec>>) -> Result<Vec<MountSpec>> {
    let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
    let read_only = match mode {
        "rw" => false,
        "ro" => true,
        _ => return Err(Error::invalid(format!("--volumes-from {text}: {mode:?} is neither ro nor rw"))),
    };
    let mut mounts = others(name)?;
    mounts.retain(|mount| !matches!(mount.source, MountSource::Tmpfs { .. }));
    mounts.iter_mut().for_each(|mount| mount.read_only |= read_only);
    Ok(mounts)
}

fn hold_all(volumes: &Volumes, workload: &str, mounts: &mut [MountSpec]) -> Result<()> {
    for mount in mounts.iter_mut() {
        let MountSource::Volume { name, no_copy: _, subpath: _, options, labels } = &mut mount.source else {
            continue;
        };
        let wish = VolumeSpec { name: name.clone(), labels: labels.clone(), options: options.clone() };
        loop {
            let volume = volumes.create_for(&wish, Some(workload))?;
            match volume.hold(workload) {
                // It was removed in this moment: another one is made.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                held => held?,
            }
            *name = Some(volume.name);
            break;
        }
    }
    debug_assert!(mounts.iter().all(|mount| {
        volume_name(mount).is_some() || !matches!(mount.source, MountSource::Volume { .. })
    }));
    Ok(())
}
