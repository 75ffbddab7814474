//! The program, its environment and who it is.

use std::path::{Path, PathBuf};

use super::RunConfig;
use moat_linux::credentials::limit_names;
use moat_model::oci::{Process, Rlimit, User};
use moat_model::workload::{LimitsSpec, WorkloadSpec};

use super::{HostFacts, Inputs, capabilities, labels};
use crate::user::Identity;
use crate::{Error, Result};

/// Where programs are looked for when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(inputs: &Inputs<'_>, host_name: &str) -> Result<Process> {
    let (spec, identity) = (inputs.spec, inputs.identity);
    let capabilities = capabilities::set(spec, inputs.host.sandbox.bounding)?;
    Ok(Process {
        terminal: spec.tty,
        user: user(identity),
        args: command(spec, inputs.image)?,
        env: environment(spec, inputs.image, host_name, &identity.home)?,
        cwd: working_directory(spec.workdir.as_deref(), &inputs.image.working_dir),
        capabilities: Some(capabilities::sets(capabilities, identity.uid)),
        rlimits: rlimits(&spec.limits)?,
        no_new_privileges: spec.security.no_new_privileges,
        apparmor_profile: labels::apparmor(spec, inputs.host)?,
        selinux_label: labels::process(inputs)?,
        oom_score_adj: spec.limits.oom_score_adj,
        ..Process::default()
    })
}

fn user(identity: &Identity) -> User {
    User { uid: identity.uid, gid: identity.gid, umask: None, additional_gids: identity.groups.clone() }
}

/// What is run: entrypoint and command, by Docker's rules. An entrypoint of the user's takes the image's command
/// away with the image's entrypoint, since the one was written for the other.
pub fn command(spec: &WorkloadSpec, image: &RunConfig) -> Result<Vec<String>> {
    let none = Vec::new();
    let entrypoint = spec.entrypoint.as_ref().or(image.entrypoint.as_ref()).unwrap_or(&none);
    let cmd = if spec.command.is_empty() && spec.entrypoint.is_none() {
        image.cmd.as_ref().unwrap_or(&none)
    } else {
        &spec.command
    };
    // `--entrypoint ""` arrives as one empty word from Docker's clients.
    let entrypoint = entrypoint.iter().filter(|word| !(entrypoint.len() == 1 && word.is_empty()));
    let words: Vec<String> = entrypoint.chain(cmd).cloned().collect();
    match words.first() {
        None => Err(Error::new(format!("image {} names no command and none was given", spec.image))
            .hint("give one after the image")),
        Some(first) if first.is_empty() => Err(Error::new("the name of the program to run is empty")),
        Some(_) => Ok(words),
    }
}

/// The environment: Docker's defaults, the user's variables, those of the image that the user did not name, and HOME
/// from the image's passwd where nobody named it.
pub fn environment(
    spec: &WorkloadSpec,
    image: &RunConfig,
    host_name: &str,
    home: &str,
) -> Result<Vec<String>> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={host_name}")];
    if spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    let named = |wanted: &str| spec.env.iter().any(|entry| name(entry) == wanted);
    for entry in &spec.env {
        put(&mut env, entry)?;
    }
    for entry in image.env.iter().filter(|entry| !named(name(entry))) {
        put(&mut env, entry)?;
    }
    add_home(&mut env, home);
    Ok(env)
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// Sets a variable; a name alone removes it.
fn put(env: &mut Vec<String>, entry: &str) -> Result<()> {
    let wanted = name(entry);
    if wanted.is_empty() || entry.contains('\0') {
        return Err(Error::new(format!("environment variable {entry:?} is not of the form NAME=value")));
    }
    if wanted.len() == entry.len() {
        env.retain(|known| name(known) != wanted);
    } else if let Some(known) = env.iter_mut().find(|known| name(known) == wanted) {
        entry.clone_into(known);
    } else {
        env.push(entry.to_owned());
    }
    Ok(())
}

fn add_home(env: &mut Vec<String>, home: &str) {
    if !env.iter().any(|known| name(known) == "HOME") {
        env.push(format!("HOME={home}"));
    }
}

/// The user's, else the image's, else the root; a relative one is relative to the root.
fn working_directory(wanted: Option<&str>, image: &str) -> PathBuf {
    Path::new("/").join(wanted.filter(|path| !path.is_empty()).unwrap_or(image))
}

fn rlimits(limits: &LimitsSpec) -> Result<Vec<Rlimit>> {
    let one = |limit: &moat_model::workload::UlimitSpec| {
        if !limit_names().any(|name| name == limit.name) {
            return Err(Error::new(format!("--ulimit {}: there is no such limit", limit.name))
                .hint(format!("it is one of {}", limit_names().collect::<Vec<_>>().join(", "))));
        }
        if limit.soft > limit.hard {
            return Err(Error::new(format!(
                "--ulimit {}: the soft limit {} is above the hard limit {}",
                limit.name, limit.soft, limit.hard
            )));
        }
        let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
        Ok(Rlimit { kind, hard: limit.hard, soft: limit.soft })
    };
    limits.ulimits.iter().map(one).collect()
}

/// The signal that asks a workload to end: the user's, else the image's, else SIGTERM; a name with or without `SIG`,
/// or a number.
pub fn stop_signal<'a>(spec: &'a WorkloadSpec, image: &'a RunConfig) -> &'a str {
    let image = image.stop_signal.as_deref().filter(|signal| !signal.is_empty());
    spec.stop_signal.as_deref().or(image).unwrap_or("SIGTERM")
}

/// What a further process in a running workload is to be.
#[derive(Clone, Debug, Default)]
pub struct ExecWish {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, over the workload's own; a name alone removes one.
    pub env: Vec<String>,
    /// In place of the workload's.
    pub workdir: Option<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// All capabilities that the host can give.
    pub privileged: bool,
}

/// A further process in a running workload, whose first process is `first`. `identity` is that of the user who was
/// asked for, or none for the workload's own.
pub fn exec_process(
    wish: &ExecWish,
    first: &Process,
    (spec, image): (&WorkloadSpec, &RunConfig),
    host: &HostFacts,
    identity: Option<&Identity>,
) -> Result<Process> {
    if wish.command.first().is_none_or(String::is_empty) {
        return Err(Error::new("no command was given to exec"));
    }
    let mut env = first.env.clone();
    if wish.tty && !env.iter().any(|known| name(known) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for entry in &wish.env {
        put(&mut env, entry)?;
    }
    let mut process = Process {
        terminal: wish.tty,
        console_size: None,
        args: wish.command.clone(),
        env,
        oom_score_adj: None,
        ..first.clone()
    };
    if let Some(workdir) = &wish.workdir {
        process.cwd = Path::new("/").join(workdir);
    }
    if let Some(identity) = identity {
        process.user = user(identity);
        let own = format!("HOME={}", identity.home);
        // HOME is of the workload's user unless somebody set it on purpose.
        let set = |list: &[String]| list.iter().any(|entry| name(entry) == "HOME");
        if ![&spec.env, &image.env, &wish.env].into_iter().any(|list| set(list)) {
            put(&mut process.env, &own)?;
        }
    }
    let limit = match &first.capabilities {
        _ if wish.privileged => host.sandbox.bounding,
        Some(own) => capabilities::limit(own),
        None => return Ok(process),
    };
    process.capabilities = Some(capabilities::sets(limit, process.user.uid));
    Ok(process)
}
