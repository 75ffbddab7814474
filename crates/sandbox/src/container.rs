//! The life of a container: create, start, run, execute in it, signal, delete.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use moat_linux::process::{self as sys, namespace};
use moat_linux::{Errno, fs};
use moat_model::id::ContainerId;
use moat_model::oci::{self, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::cgroup::Operation;
use crate::host::Host;
use crate::launch::{self, Event, Order};
use crate::plan::{self, ExecRequest, Plan, Request};
use crate::record::Recorder;
use crate::state::{ContainerState, Folder, Status, Store, process_start, replace};
use crate::{Context, Error, Result, hook};

/// What `create` and `run` are asked beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// The unix socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the first process's id.
    pub pid_file: Option<PathBuf>,
    /// MS_MOVE instead of pivot_root(2).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// PID 1 is Moat's own init.
    pub init: bool,
    /// Whether the program waits for `start`.
    pub wait_for_start: bool,
}

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

/// A process that runs, or waits for `start`.
#[derive(Debug)]
pub struct Running {
    /// As the host sees it. The caller is its parent.
    pub pid: i32,
    /// Becomes readable when the process ends.
    pub pidfd: OwnedFd,
    /// The terminal's master, where no socket took it.
    pub terminal: Option<OwnedFd>,
    /// What stopped nothing but should be told.
    pub warnings: Vec<String>,
    /// The container, when it was built by this call.
    container: Option<(Folder, ContainerState)>,
}

/// Plans a container without making anything.
pub fn plan_only(id: &ContainerId, spec: &Spec, options: &CreateOptions, host: &Host) -> Result<Plan> {
    let host = within_reach(host, spec, id)?;
    plan::plan(&request(id, spec, options), &host)
}

/// The host as the runtime can use it: who is not root may make cgroups only where they were delegated.
fn within_reach<'a>(host: &'a Host, spec: &Spec, id: &ContainerId) -> Result<Cow<'a, Host>> {
    if !host.rootless() {
        return Ok(Cow::Borrowed(host));
    }
    let mut host = host.clone();
    let path = spec.linux.as_ref().map_or("", |linux| linux.cgroups_path.as_str());
    host.cgroups.probe(path, id.as_str())?;
    Ok(Cow::Owned(host))
}

fn request<'a>(id: &'a ContainerId, spec: &'a Spec, options: &'a CreateOptions) -> Request<'a> {
    Request {
        id,
        bundle: &options.bundle,
        spec,
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        init: options.init,
        wait_for_start: options.wait_for_start,
    }
}

/// Builds a container from `spec`, whose text is `config`.
///
/// With [`CreateOptions::wait_for_start`] its program waits for [`start`], else it runs when this returns.
/// Errors: a sentence that names the object. Nothing of the container is left behind.
pub fn create(
    store: &Store,
    id: &ContainerId,
    spec: &Spec,
    config: &[u8],
    options: &CreateOptions,
    host: &Host,
    recorder: &mut Recorder,
) -> Result<Running> {
    check_console(spec.process.as_ref(), options.console_socket.as_deref(), options.wait_for_start)?;
    let plan = plan_only(id, spec, options, host)?;
    let mut folder = recorder.step("claim the name", "mkdir STATE/ID", || store.claim(id))?;
    let root = spec.root.as_ref().map(|root| root.path.as_path()).unwrap_or(Path::new(""));
    let mut state = ContainerState {
        id: id.to_string(),
        bundle: options.bundle.clone(),
        rootfs: options.bundle.join(root),
        pid: 0,
        pid_start_ticks: 0,
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: host.user,
        cgroup: plan.cgroup.clone(),
        annotations: spec.annotations.clone(),
    };
    let mut made = Vec::new();
    match build(&mut folder, &mut state, &mut made, (spec, config), options, &plan, recorder) {
        Ok(mut running) => {
            running.warnings.splice(0..0, plan.warnings);
            folder.unlock();
            running.container = Some((folder, state));
            Ok(running)
        }
        Err(error) => {
            // A group that was refused because it is somebody else's is left alone.
            state.cgroup = state.cgroup.made_by(&made);
            // The first error is what the user has to know; the repair is `delete --force`.
            let _ = clean(folder, &state, spec);
            Err(error)
        }
    }
}

fn check_console(process: Option<&oci::Process>, socket: Option<&Path>, detached: bool) -> Result<()> {
    let terminal = process.is_some_and(|process| process.terminal);
    match (terminal, socket) {
        (true, None) if detached => {
            Err(Error::new("process.terminal needs --console-socket when nobody stays to serve it"))
        }
        (false, Some(_)) => Err(Error::new("--console-socket needs process.terminal in the configuration")),
        _ => Ok(()),
    }
}

fn build(
    folder: &mut Folder,
    state: &mut ContainerState,
    made: &mut Vec<Operation>,
    (spec, config): (&Spec, &[u8]),
    options: &CreateOptions,
    plan: &Plan,
    recorder: &mut Recorder,
) -> Result<Running> {
    recorder.step("save configuration and state", "", || {
        folder.save_config(config)?;
        folder.save(state)
    })?;
    let fifos = if options.wait_for_start {
        Some(recorder.step("make the exec FIFO", "mkfifo STATE/ID/exec.fifo", || make_fifos(folder))?)
    } else {
        None
    };
    let process = spec.process.clone().unwrap_or_default();
    let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    let order = Order {
        steps: &plan.steps,
        cgroup: &plan.cgroup,
        env: &process.env,
        preserve_fds: options.preserve_fds,
        state: state.to_oci(Status::Creating),
        fifos,
        container: None,
        dumpable: plan.new_user_namespace,
        console_socket: options.console_socket.clone(),
        seccomp_agent: seccomp.map(|agent| (agent.listener_path.clone(), agent.listener_metadata.clone())),
    };
    let built = launch::build(order, recorder, &mut |event| match event {
        Event::Grouped(operation) => {
            made.push(operation.clone());
            Ok(())
        }
        Event::InChild => {
            folder.unlock();
            Ok(())
        }
        Event::Building(pid) => {
            state.pid = pid;
            state.pid_start_ticks = process_start(pid).unwrap_or(0);
            folder.stage(state)?;
            if options.wait_for_start { Ok(()) } else { complete(folder, options, pid) }
        }
        Event::Ready(pid) if options.wait_for_start => complete(folder, options, pid),
        Event::Ready(_) => Ok(()),
    })?;
    recorder.add_init(&plan.steps, &built.times);
    let mut warnings = Vec::new();
    if !options.wait_for_start
        && let Some(hooks) = &spec.hooks
    {
        warnings = hook::run_lenient("poststart", &hooks.poststart, &state.to_oci(Status::Running));
    }
    Ok(Running { pid: built.pid, pidfd: built.pidfd, terminal: built.terminal, warnings, container: None })
}

/// From here on the container exists for everybody.
fn complete(folder: &Folder, options: &CreateOptions, pid: i32) -> Result<()> {
    folder.commit()?;
    options.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid))
}

fn write_pid(path: &Path, pid: i32) -> Result<()> {
    replace(path, pid.to_string().as_bytes(), 0o644)
}

/// Both ends are open in init before the folder is out of its reach; it is a reader and a writer of each,
/// so that it blocks in read(2) and a `start` that comes never blocks in open(2).
fn make_fifos(folder: &Folder) -> Result<(OwnedFd, OwnedFd)> {
    let make = |path: PathBuf| -> Result<OwnedFd> {
        fs::mkfifo(&path, 0o600)?;
        Ok(fs::open(&path, rustix::fs::OFlags::RDWR)?)
    };
    Ok((make(folder.exec_fifo())?, make(folder.status_fifo())?))
}

/// The folder and the state of a container that was created completely.
pub fn load(store: &Store, id: &ContainerId) -> Result<(Folder, ContainerState)> {
    let folder = store.open(id)?;
    match folder.load()? {
        Some(state) => Ok((folder, state)),
        None => Err(Error::new(format!("container {id} was not created completely"))
            .hint(format!("if no create is at work, remove it with `delete --force {id}`"))),
    }
}

/// Lets the program of a created container run.
///
/// Errors: the container is not in status created; the program can not be executed.
pub fn start(store: &Store, id: &ContainerId, recorder: &mut Recorder) -> Result<Vec<String>> {
    let (mut folder, state) = load(store, id)?;
    folder.lock()?;
    match state.status(&folder)? {
        Status::Created => {}
        Status::Stopped => return Err(Error::new(format!("cannot start container {id}: it has stopped"))),
        Status::Running => {
            return Err(Error::new(format!("cannot start container {id}: it is running already")));
        }
        other => return Err(Error::new(format!("cannot start container {id}: it is {}", other.name()))),
    }
    let open = |path: PathBuf, write: bool| {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(!write).write(write).custom_flags(nonblocking).open(&path);
        opened.context(|| format!("start container {id}: {}", path.display()))
    };
    let mut status = open(folder.status_fifo(), false)?;
    recorder.step("release the program", "echo 0 > STATE/ID/exec.fifo", || {
        open(folder.exec_fifo(), true)?.write_all(b"0").context(|| "exec.fifo")
    })?;
    recorder.step("remove the FIFO", "rm STATE/ID/exec.fifo", || {
        std::fs::remove_file(folder.exec_fifo()).context(|| "exec.fifo")
    })?;
    let failure =
        recorder.step("wait for execution", "", || read_to_end(&mut status).context(|| "status.fifo"))?;
    if !failure.is_empty() {
        let told = serde_json::from_slice::<Error>(&failure);
        return Err(told.unwrap_or_else(|_| Error::new(format!("container {id} failed to start"))));
    }
    let _ = std::fs::remove_file(folder.status_fifo());
    let spec = folder.config()?;
    let hooks = spec.hooks.unwrap_or_default();
    Ok(hook::run_lenient("poststart", &hooks.poststart, &state.to_oci(Status::Running)))
}

/// Reads until the last writer is gone. The descriptor is non-blocking since it was opened so.
fn read_to_end(file: &mut std::fs::File) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut part = [0_u8; 4096];
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok(all),
            Ok(count) => all.extend(part.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*file, PollFlags::IN)], None).map_err(std::io::Error::from)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
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

/// Sends a signal to the first process, or with `all` to every process of the container.
pub fn kill(store: &Store, id: &ContainerId, number: i32, all: bool) -> Result<()> {
    let (folder, state) = load(store, id)?;
    let status = state.status(&folder)?;
    if all {
        return signal_all(&state, number);
    }
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(Error::new(format!("cannot kill container {id}: container not running")));
    }
    let pidfd = sys::pidfd(state.pid)?;
    if !state.is_alive() {
        return Err(Error::new(format!("cannot kill container {id}: container not running")));
    }
    sys::signal(pidfd.as_fd(), number).context(|| format!("kill container {id}"))?;
    if number == Signal::KILL.as_raw() && status == Status::Paused {
        // A v1 freezer keeps the signal until the group is thawed.
        state.cgroup.thaw()?;
    }
    Ok(())
}

fn signal_all(state: &ContainerState, number: i32) -> Result<()> {
    if number == Signal::KILL.as_raw() {
        return state.cgroup.kill_all();
    }
    for pid in state.cgroup.pids()? {
        match sys::kill(pid, number) {
            Err(error) if error.errno() != Errno::SRCH => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Deletes a container that has stopped, or with `force` whatever is left of it.
///
/// Gives warnings of poststop hooks. With `force` a container that does not exist is no error.
pub fn delete(store: &Store, id: &ContainerId, force: bool, recorder: &mut Recorder) -> Result<Vec<String>> {
    let mut folder = match store.open(id) {
        Err(_) if force => return Ok(Vec::new()),
        other => other?,
    };
    folder.lock()?;
    let state = match folder.load() {
        Ok(Some(state)) if state.pid == 0 && force => {
            return recorder
                .step("remove what a killed create has left", "", || remove_unfinished(folder, &state));
        }
        Ok(Some(state)) => state,
        Ok(None) if !force => return load(store, id).map(|_| Vec::new()),
        Err(error) if !force => return Err(error),
        _ => {
            recorder.step("remove the state folder", "rm -r STATE/ID", || folder.remove())?;
            return Ok(Vec::new());
        }
    };
    let status = state.status(&folder)?;
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::new(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        )));
    }
    let hooks = folder.config().ok().and_then(|spec| spec.hooks).unwrap_or_default();
    remove(folder, &state, status, &hooks, recorder)
}

/// Deletes a container that [`create`] has just built and whose first process has ended: what `run` does at
/// its end, without reading again what is known.
pub fn delete_ended(
    running: Running,
    hooks: Option<&oci::Hooks>,
    recorder: &mut Recorder,
) -> Result<Vec<String>> {
    let Some((mut folder, state)) = running.container else { return Ok(Vec::new()) };
    folder.lock()?;
    remove(folder, &state, Status::Stopped, &hooks.cloned().unwrap_or_default(), recorder)
}

fn remove(
    folder: Folder,
    state: &ContainerState,
    status: Status,
    hooks: &oci::Hooks,
    recorder: &mut Recorder,
) -> Result<Vec<String>> {
    let idle = status == Status::Stopped
        && recorder.step("remove the cgroup", "rmdir CGROUP", || state.cgroup.remove_idle())?;
    if !idle {
        recorder.step("kill what is left", "kill -9 $PID", || end_all(state))?;
        recorder.step("remove the cgroup", "rmdir CGROUP", || state.cgroup.remove())?;
    }
    let warnings = hook::run_lenient("poststop", &hooks.poststop, &state.to_oci(Status::Stopped));
    recorder.step("remove the state folder", "rm -r STATE/ID", || folder.remove())?;
    Ok(warnings)
}

/// Removes what is left of a create that was killed. Init has seen that death and ends by itself. Until all
/// groups were made nobody knows whether they are the container's own, so those are only removed where
/// nothing is in them.
fn remove_unfinished(folder: Folder, state: &ContainerState) -> Result<Vec<String>> {
    match folder.load_staged() {
        Some(built) => {
            end_all(&built)?;
            built.cgroup.remove()?;
        }
        None => state.cgroup.remove_empty()?,
    }
    folder.remove()?;
    Ok(Vec::new())
}

/// Kills the first process and everything in the cgroup, and waits for the first.
fn end_all(state: &ContainerState) -> Result<()> {
    if state.is_alive()
        && let Ok(pidfd) = sys::pidfd(state.pid)
        && state.is_alive()
    {
        match sys::signal(pidfd.as_fd(), Signal::KILL.as_raw()) {
            Err(error) if error.errno() != Errno::SRCH => return Err(error.into()),
            _ => {}
        }
        state.cgroup.thaw()?;
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended =
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).map_err(std::io::Error::from)?;
        if ended == 0 {
            return Err(Error::new(format!("process {} of container {} does not end", state.pid, state.id)));
        }
    }
    state.cgroup.kill_all()
}

/// Removes what a failed `create` has made.
fn clean(folder: Folder, state: &ContainerState, spec: &Spec) -> Result<()> {
    end_all(state)?;
    state.cgroup.remove()?;
    let hooks = spec.hooks.clone().unwrap_or_default();
    hook::run_lenient("poststop", &hooks.poststop, &state.to_oci(Status::Stopped));
    folder.remove()
}

/// Waits until a process has ended: its exit code, 128 plus the signal for one that was killed.
pub fn wait(running: &Running) -> Result<i32> {
    match sys::wait(running.pid, true)? {
        Some(status) => Ok(sys::exit_code(status)),
        None => Err(Error::new(format!("process {} has not ended", running.pid))),
    }
}
