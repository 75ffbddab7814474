//! Labels of Linux security modules: AppArmor profiles and SELinux contexts.

use moat_model::workload::WorkloadSpec;

use super::{HostFacts, Inputs};
use crate::{Error, Result};

/// The AppArmor profile. Moat loads none of its own, so there is none unless one is named.
pub(super) fn apparmor(spec: &WorkloadSpec, host: &HostFacts) -> Result<String> {
    match spec.security.apparmor.as_deref() {
        None | Some("" | "unconfined") => Ok(String::new()),
        Some(profile) if host.sandbox.apparmor => Ok(profile.to_owned()),
        Some(profile) => {
            Err(Error::new(format!("--security-opt apparmor={profile}: AppArmor is not active on this host")))
        }
    }
}

/// The parts of an SELinux context.
struct Context {
    user: String,
    role: String,
    kind: String,
    level: String,
    file_kind: String,
}

/// What `label=` says; `None` without SELinux or where it is disabled for the workload.
fn context(inputs: &Inputs<'_>) -> Result<Option<Context>> {
    let (spec, host) = (inputs.spec, inputs.host);
    let mut context = Context {
        user: "system_u".to_owned(),
        role: "system_r".to_owned(),
        kind: "container_t".to_owned(),
        level: level(inputs.id),
        file_kind: "container_file_t".to_owned(),
    };
    let mut disabled = spec.privileged;
    for part in &spec.security.label {
        let (key, value) = part.split_once(':').unwrap_or((part, ""));
        let field = match key {
            "disable" if value.is_empty() => {
                disabled = true;
                continue;
            }
            "user" => &mut context.user,
            "role" => &mut context.role,
            "type" => &mut context.kind,
            "level" => &mut context.level,
            "filetype" => &mut context.file_kind,
            _ => {
                return Err(Error::new(format!(
                    "--security-opt label={part}: {key:?} is no part of a label"
                ))
                .hint("it is one of disable, user:, role:, type:, level:, filetype:"));
            }
        };
        if value.is_empty() {
            return Err(Error::new(format!("--security-opt label={part} has no value")));
        }
        if !host.sandbox.selinux {
            return Err(Error::new(format!(
                "--security-opt label={part}: SELinux is not active on this host"
            )));
        }
        value.clone_into(field);
    }
    Ok((host.sandbox.selinux && !disabled).then_some(context))
}

/// Two categories of 1024 that hold workloads apart from each other, drawn from the id, which is random.
fn level(id: &str) -> String {
    let number = |from: usize| {
        let digits = id.get(from..from + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        digits.unwrap_or(0) % 1024
    };
    let (one, other) = (number(0), number(4));
    let other = if one == other { (one + 1) % 1024 } else { other };
    format!("s0:c{},c{}", one.min(other), one.max(other))
}

/// The context of the process.
pub(super) fn process(inputs: &Inputs<'_>) -> Result<String> {
    let found = context(inputs)?;
    Ok(found.map_or_else(String::new, |own| format!("{}:{}:{}:{}", own.user, own.role, own.kind, own.level)))
}

/// The context of its files.
pub(super) fn mount(inputs: &Inputs<'_>) -> Result<String> {
    let found = context(inputs)?;
    Ok(found.map_or_else(String::new, |own| format!("{}:object_r:{}:{}", own.user, own.file_kind, own.level)))
}
