//! The life of a container: create, start, run, execute in it, signal, delete.

mod end;
mod exec;

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use moat_linux::{fs, process as sys};
use moat_model::id::ContainerId;
use moat_model::oci::{self, Spec};
use rustix::event::{PollFd, PollFlags, poll};

use crate::cgroup::Operation;
use crate::host::Host;
use crate::launch::{self, Event, Order};
use crate::plan::{self, Plan, Request};
use crate::record::Recorder;
use crate::state::{ContainerState, Folder, Status, Store, process_start, replace};
use crate::{Context, Error, Result, hook};

pub use end::{delete, delete_ended, kill};
pub use exec::{ExecOptions, exec};

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

impl Running {
    /// The control groups of a container that was built by the call which gave this.
    pub fn cgroup(&self) -> Option<&crate::cgroup::CgroupState> {
        self.container.as_ref().map(|(_, state)| &state.cgroup)
    }
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
            let _ = end::clean(folder, &state, spec);
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
    recorder.step("save configuration and state", "", || folder.begin(state, config))?;
    let fifos = if options.wait_for_start {
        Some(recorder.step("make the exec FIFO", "mkfifo STATE/ID/exec.fifo", || make_fifos(folder))?)
    } else {
        None
    };
    let env = spec.process.as_ref().map_or(&[][..], |process| &process.env);
    let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    let order = Order {
        steps: &plan.steps,
        cgroup: &plan.cgroup,
        env,
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

/// Waits until a process has ended: its exit code, 128 plus the signal for one that was killed.
pub fn wait(running: &Running) -> Result<i32> {
    match sys::wait(running.pid, true)? {
        Some(status) => Ok(sys::exit_code(status)),
        None => Err(Error::new(format!("process {} has not ended", running.pid))),
    }
}
