//! A further process in a container that runs.

use std::path::PathBuf;

use moat_linux::process::{self as sys, namespace};
use moat_model::id::ContainerId;
use moat_model::oci;

use super::{Running, check_console, load, write_pid};
use crate::host::Host;
use crate::launch::{self, Event, Order};
use crate::plan::{self, ExecRequest};
use crate::record::Recorder;
use crate::state::{Status, Store};
use crate::{Context, Error, Result};

/// What `exec` is asked beside the process.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// The unix socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the process's id.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// Whether a frozen container is allowed: the process then waits until it is thawed.
    pub ignore_paused: bool,
    /// A cgroup below the container's.
    pub cgroup: Option<String>,
}

/// Runs a further process in a container.
pub fn exec(
    store: &Store,
    id: &ContainerId,
    process: &oci::Process,
    options: &ExecOptions,
    host: &Host,
    detached: bool,
    recorder: &mut Recorder,
) -> Result<Running> {
    let (folder, state) = load(store, id)?;
    match state.status(&folder)? {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => return Err(Error::new(format!("cannot exec in container {id}: it is paused"))),
        other => return Err(Error::new(format!("cannot exec in container {id}: it is {}", other.name()))),
    }
    check_console(Some(process), options.console_socket.as_deref(), detached)?;
    let spec = folder.config()?;
    let container = sys::pidfd(state.pid)?;
    // The pidfd is of the process that was meant only if that one still lives.
    if !state.is_alive() {
        return Err(Error::new(format!("cannot exec in container {id}: it has stopped")));
    }
    let namespaces = differing_namespaces(state.pid)?;
    let (steps, mut warnings) = plan::plan_exec(&ExecRequest { process, spec: &spec, namespaces }, host)?;
    let group = match &options.cgroup {
        Some(below) => state.cgroup.below(below)?,
        None => state.cgroup.around(state.pid)?,
    };
    let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    let order = Order {
        steps: &steps,
        cgroup: &group,
        env: &process.env,
        preserve_fds: options.preserve_fds,
        state: state.to_oci(Status::Running),
        fifos: None,
        container: Some((container, namespaces)),
        dumpable: false,
        console_socket: options.console_socket.clone(),
        seccomp_agent: seccomp.map(|agent| (agent.listener_path.clone(), agent.listener_metadata.clone())),
    };
    let built = launch::build(order, recorder, &mut |event| match (event, options.pid_file.as_deref()) {
        (Event::Building(pid), Some(path)) => write_pid(path, pid),
        _ => Ok(()),
    })?;
    recorder.add_init(&steps, &built.times);
    warnings.dedup();
    Ok(Running { pid: built.pid, pidfd: built.pidfd, terminal: built.terminal, warnings, container: None })
}

/// The namespaces in which a process differs from this one: only those can and need be joined.
fn differing_namespaces(pid: i32) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    const FILES: [(&str, u64); 8] = [
        ("user", namespace::USER),
        ("pid", namespace::PID),
        ("mnt", namespace::MOUNT),
        ("uts", namespace::UTS),
        ("ipc", namespace::IPC),
        ("net", namespace::NETWORK),
        ("cgroup", namespace::CGROUP),
        ("time", namespace::TIME),
    ];
    let mut differing = 0;
    for (file, bit) in FILES {
        let of = |pid: &str| {
            let path = format!("/proc/{pid}/ns/{file}");
            match std::fs::metadata(&path) {
                Ok(found) => Ok(Some((found.dev(), found.ino()))),
                // A kernel that lacks this kind of namespace.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && bit == namespace::TIME => {
                    Ok(None)
                }
                Err(error) => Err(error).context(|| path),
            }
        };
        if of(&pid.to_string())? != of("self")? {
            differing |= bit;
        }
    }
    Ok(differing)
}
