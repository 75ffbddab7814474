//! A workload as `docker inspect` shows a container.

use std::collections::BTreeSet;

use moat_engine::image::{Image, RunConfig};
use moat_engine::{Health, JailState, Timestamp, Workload, WorkloadState};
use moat_model::workload::{HealthProbe, HealthSpec, MountSource, MountSpec, Status, WorkloadSpec};
use serde_json::{Value, json};

use super::host_config::host_config;
use super::{Document, list_or_null, object, set_or_null, texts};
use crate::failure::Result;

/// What Go has for "never".
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

/// The document of a workload.
pub(crate) fn container(workload: &Workload, sizes: Option<(u64, u64)>) -> Result<Document> {
    let state = workload.state()?;
    let (spec, record) = (workload.spec(), workload.record());
    let image = workload.image().ok();
    let command = command(spec, image);
    let (path, arguments) = command
        .split_first()
        .map_or((String::new(), Vec::new()), |(path, rest)| (path.clone(), rest.to_vec()));
    let files = workload.engine().roots().data.join("workloads").join(workload.id().as_str());
    let file = |name: &str| files.join(name).display().to_string();
    let mut document = object! {
        "Id": record.id.as_str(),
        "Created": record.created.to_string(),
        "Path": path,
        "Args": arguments,
        "State": state_document(&state),
        "Image": record.image.as_str(),
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": if spec.log.keep { file("log/json.log") } else { String::new() },
        "Name": format!("/{}", workload.name()),
        "RestartCount": state.restart_count,
        "Driver": "overlay",
        "Platform": "linux",
        "AppArmorProfile": spec.security.apparmor.clone().unwrap_or_default(),
        "ExecIDs": Value::Null,
        "HostConfig": host_config(spec),
    };
    if let (Document::Object(fields), Some((writable, total))) = (&mut document, sizes) {
        fields.push(("SizeRw", writable.into()));
        fields.push(("SizeRootFs", total.into()));
    }
    if let Document::Object(fields) = &mut document {
        fields.push(("Mounts", mounts(workload)?.into()));
        fields.push(("Config", config(workload, image)));
        if let Some(jail) = workload.jail()? {
            fields.push(("Jail", jail_document(&jail)));
        }
        fields.push(("NetworkSettings", super::network::settings(workload, &state)?));
    }
    Ok(document)
}

/// What its first process is: entry point and command, as the image and the wish together say.
pub(crate) fn command(spec: &WorkloadSpec, image: Option<&Image>) -> Vec<String> {
    let of_image = image.map(|image| &image.config.config);
    let entrypoint = match &spec.entrypoint {
        Some(own) => own.clone(),
        None => of_image.and_then(|config| config.entrypoint.clone()).unwrap_or_default(),
    };
    let command = match (spec.command.is_empty(), &spec.entrypoint) {
        (false, _) => spec.command.clone(),
        // Another entry point has no use for the image's arguments.
        (true, Some(_)) => Vec::new(),
        (true, None) => of_image.and_then(|config| config.cmd.clone()).unwrap_or_default(),
    };
    entrypoint.into_iter().chain(command).collect()
}

/// What is around the monitor of a microVM. Docker has nothing of the kind.
fn jail_document(jail: &JailState) -> Document {
    object! {
        "User": jail.user,
        "Group": jail.group,
        "Namespaces": json!(jail.namespaces),
        "Cgroup": jail.cgroup.as_str(),
        "Capabilities": jail.capabilities,
        "NoNewPrivileges": jail.no_new_privileges,
        "SeccompFilters": jail.seccomp_filters,
        "LandlockVersion": jail.landlock_version,
        "Root": json!(jail.root),
    }
}

fn state_document(state: &WorkloadState) -> Document {
    let exit = state.exit.clone().unwrap_or_default();
    let time = |time: Option<Timestamp>| time.map_or(NEVER.to_owned(), |time| time.to_string());
    let mut document = object! {
        "Status": state.status.name(),
        "Running": state.is_running() || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": exit.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": if state.is_running() { state.process.pid } else { 0 },
        "ExitCode": if state.is_running() { 0 } else { exit.code },
        "Error": exit.error.or_else(|| state.trouble.clone()).unwrap_or_default(),
        "StartedAt": time(state.started),
        "FinishedAt": time(state.finished),
    };
    if let (Document::Object(fields), Some(health)) = (&mut document, &state.health) {
        let log: Vec<Value> = health
            .log
            .iter()
            .map(|check| {
                json!({"Start": check.start.to_string(), "End": check.end.to_string(),
                    "ExitCode": check.exit_code, "Output": check.output})
            })
            .collect();
        fields.push((
            "Health",
            object! {
                "Status": health.status.name(),
                "FailingStreak": health.failing_streak,
                "Log": log,
            },
        ));
    }
    document
}

/// The health in the words of `ps`.
pub(crate) fn health_suffix(state: &WorkloadState) -> &'static str {
    match state.health.as_ref().map(|health| health.status) {
        None => "",
        Some(Health::Starting) => " (health: starting)",
        Some(Health::Healthy) => " (healthy)",
        Some(Health::Unhealthy) => " (unhealthy)",
    }
}

/// The ports that a workload serves, as its image and its user say. What is no port is left out.
pub(crate) fn exposed(workload: &Workload) -> BTreeSet<String> {
    let image = workload.image().map(|image| image.config.config.exposed_ports.clone()).unwrap_or_default();
    let all = image.into_iter().chain(workload.spec().network.expose.clone());
    all.flat_map(|text| crate::flags::port::expose(&text).unwrap_or_default()).collect()
}

/// What a workload starts with: the image's configuration and the wish together.
fn merged(spec: &WorkloadSpec, image: RunConfig) -> RunConfig {
    let mut labels = image.labels.clone();
    labels.extend(spec.labels.clone());
    let cmd = match (spec.command.is_empty(), &spec.entrypoint) {
        (false, _) => Some(spec.command.clone()),
        (true, Some(_)) => None,
        (true, None) => image.cmd.clone(),
    };
    RunConfig {
        user: spec.user.clone().unwrap_or(image.user),
        exposed_ports: image.exposed_ports.into_iter().chain(spec.network.expose.clone()).collect(),
        env: environment(&image.env, &spec.env),
        entrypoint: match &spec.entrypoint {
            Some(own) => Some(own.clone()).filter(|own| !own.is_empty()),
            None => image.entrypoint,
        },
        cmd,
        working_dir: spec.workdir.clone().unwrap_or(image.working_dir),
        labels,
        stop_signal: spec.stop_signal.clone().or(image.stop_signal),
        stop_timeout: spec
            .stop_timeout_s
            .and_then(|seconds| i64::try_from(seconds).ok())
            .or(image.stop_timeout),
        ..image
    }
}

fn config(workload: &Workload, image: Option<&Image>) -> Document {
    let spec = workload.spec();
    let config = merged(spec, image.map(|image| image.config.config.clone()).unwrap_or_default());
    object! {
        "Hostname": spec.hostname.clone().unwrap_or_else(|| workload.id().short().to_string()),
        "Domainname": spec.domainname.clone().unwrap_or_default(),
        "User": config.user,
        "AttachStdin": spec.stdin_once,
        "ExposedPorts": set_or_null(&config.exposed_ports),
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": spec.stdin_once,
        "Env": config.env,
        "Cmd": list_or_null(config.cmd.unwrap_or_default()),
        "Healthcheck": spec.health.as_ref().map_or(Value::Null, health_check),
        "Image": spec.image.as_str(),
        "Volumes": set_or_null(&config.volumes),
        "WorkingDir": config.working_dir,
        "Entrypoint": list_or_null(config.entrypoint.unwrap_or_default()),
        "Labels": texts(&config.labels),
        "StopSignal": config.stop_signal.unwrap_or_else(|| "SIGTERM".to_owned()),
        "StopTimeout": config.stop_timeout.map_or(Value::Null, Value::from),
    }
}

/// The image's variables with those of the wish in their place; a name alone removes one.
fn environment(image: &[String], own: &[String]) -> Vec<String> {
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = Vec::new();
    for variable in image.iter().chain(own) {
        let known = all.iter().position(|other| name(other) == name(variable));
        match (known, variable.contains('=')) {
            (Some(at), true) => variable.clone_into(&mut all[at]),
            (Some(at), false) => drop(all.remove(at)),
            (None, true) => all.push(variable.clone()),
            (None, false) => {}
        }
    }
    all
}

fn health_check(spec: &HealthSpec) -> Value {
    let test = match &spec.probe {
        HealthProbe::None => vec!["NONE".to_owned()],
        HealthProbe::Image => Vec::new(),
        HealthProbe::Exec { command } => std::iter::once("CMD".to_owned()).chain(command.clone()).collect(),
        HealthProbe::Shell { line } => vec!["CMD-SHELL".to_owned(), line.clone()],
        // Docker has no words for these two.
        HealthProbe::Http { port, path } => vec!["HTTP".to_owned(), format!("{port}{path}")],
        HealthProbe::Tcp { port } => vec!["TCP".to_owned(), port.to_string()],
    };
    let nanoseconds = |ms: Option<u64>| ms.unwrap_or(0).saturating_mul(1_000_000);
    json!({
        "Test": test,
        "Interval": nanoseconds(spec.interval_ms),
        "Timeout": nanoseconds(spec.timeout_ms),
        "StartPeriod": nanoseconds(spec.start_period_ms),
        "StartInterval": nanoseconds(spec.start_interval_ms),
        "Retries": spec.retries.unwrap_or(0),
    })
}

/// The mounts that were asked for.
pub(crate) fn all_mounts(workload: &Workload) -> Result<Vec<MountSpec>> {
    Ok(workload.spec().mounts.clone())
}

/// The mounts of a workload.
fn mounts(workload: &Workload) -> Result<Vec<Value>> {
    let shown = |mount: MountSpec| {
        let source = crate::command::volume::source(workload, &mount.source);
        let (kind, name, propagation) = match mount.source {
            MountSource::Volume { name, .. } => ("volume", name, String::new()),
            MountSource::Bind { propagation, .. } => {
                ("bind", None, propagation.unwrap_or_else(|| "rprivate".to_owned()))
            }
            MountSource::Tmpfs { .. } => ("tmpfs", None, String::new()),
        };
        let mut shown = json!({"Type": kind, "Source": source, "Destination": mount.target,
            "Mode": "", "RW": !mount.read_only, "Propagation": propagation});
        if let (Some(fields), Some(name)) = (shown.as_object_mut(), name) {
            fields.insert("Name".to_owned(), name.into());
            fields.insert("Driver".to_owned(), "local".into());
        }
        shown
    };
    Ok(all_mounts(workload)?.into_iter().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use moat_engine::image::{Image, ImageConfig};
    use moat_model::workload::WorkloadSpec;

    use super::{command, environment};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_process() {
        let mut config = ImageConfig::default();
        config.config.entrypoint = Some(words("/entry"));
        config.config.cmd = Some(words("serve"));
        let digest = moat_engine::image::Digest::of(b"");
        let image = Image {
            id: digest,
            config,
            names: Vec::new(),
            digests: Vec::new(),
            manifest: digest,
            created: None,
            stored: String::new(),
            size_bytes: 0,
            layers: Vec::new(),
        };
        let of = |own: Option<&str>, given: &str| {
            let spec =
                WorkloadSpec { entrypoint: own.map(words), command: words(given), ..WorkloadSpec::default() };
            command(&spec, Some(&image)).join(" ")
        };
        assert_eq!(of(None, ""), "/entry serve");
        assert_eq!(of(None, "help me"), "/entry help me");
        assert_eq!(of(Some("/bin/sh"), ""), "/bin/sh");
        assert_eq!(of(Some(""), "ls"), "ls");
    }

    #[test]
    fn variables_replace_those_of_the_image() {
        assert_eq!(environment(&words("A=1 B=2 C=3"), &words("B=x A D=4")), words("B=x C=3 D=4"));
    }
}
