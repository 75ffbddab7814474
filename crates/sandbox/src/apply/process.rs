//! The process itself: environment, credentials, filter, program.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use moat_linux::capability::{self, Set};
use moat_linux::{Errno, credentials, net, process as sys, sched};
use rustix::fs::{Access, AtFlags, CWD};

use super::Init;
use crate::seccomp::Filter;
use crate::step::{Action, Sets};
use crate::sync::FromInit;
use crate::{Context, Error, Result};

/// What belongs to the namespaces and to the scheduler.
pub(super) fn environment(action: &Action) -> Result<()> {
    match action {
        Action::Harden => Ok(sys::set_dumpable(false)?),
        Action::TimeOffsets(offsets) => {
            let lines: String =
                offsets.iter().map(|(clock, secs, nanos)| format!("{clock} {secs} {nanos}\n")).collect();
            write_proc("/proc/self/timens_offsets", &lines)
        }
        Action::LoopbackUp => Ok(net::bring_loopback_up()?),
        Action::HostName(name) => Ok(sys::set_host_name(name)?),
        Action::DomainName(name) => Ok(sys::set_domain_name(name)?),
        Action::Sysctl { name, value } => {
            write_proc(&sysctl_path(name), value).context(|| format!("linux.sysctl {name}"))
        }
        Action::Keyring(name) => join_keyring(name),
        Action::Label { module, text } => {
            let path = match *module {
                "apparmor" if Path::new("/proc/self/attr/apparmor").exists() => {
                    "/proc/self/attr/apparmor/exec"
                }
                _ => "/proc/self/attr/exec",
            };
            write_proc(path, text).context(|| format!("{module} label {text}"))
        }
        Action::Scheduler(attributes) => {
            Ok(sched::set_scheduler(*attributes).context(|| "process.scheduler")?)
        }
        Action::IoPriority { class, priority } => {
            Ok(sched::set_io_priority(*class, *priority).context(|| "process.ioPriority")?)
        }
        Action::MemoryPolicy { mode, nodes } => {
            Ok(sched::set_memory_policy(*mode, nodes).context(|| "linux.memoryPolicy")?)
        }
        Action::Affinity(cpus) => Ok(sched::set_affinity(cpus).context(|| "process.execCPUAffinity")?),
        Action::Personality(persona) => Ok(sys::set_personality(*persona)?),
        _ => Err(Error::new(format!("{action}: not a step of the environment"))),
    }
}

/// A file of the host's /proc, which is in reach until the root changes. What it acts on are the
/// namespaces of the caller.
fn write_proc(path: &str, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).context(|| path.to_owned())?;
    file.write_all(text.as_bytes()).context(|| format!("write {text:?} to {path}"))
}

/// Dots separate the parts of a name, unless slashes do: then dots belong to the parts (sysctl.d(5)).
fn sysctl_path(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name.as_bytes().get(at));
    if first == Some(&b'/') {
        format!("/proc/sys/{name}")
    } else {
        format!("/proc/sys/{}", name.replace('.', "/"))
    }
}

fn join_keyring(name: &str) -> Result<()> {
    let text = c_string(name)?;
    match sys::join_session_keyring(&text) {
        Ok(_) => Ok(()),
        // A kernel without keyrings, or one whose seccomp filter hides them, has no keys to leak.
        Err(error) if matches!(error.errno(), Errno::NOSYS | Errno::PERM) => Ok(()),
        Err(error) if error.errno() == Errno::DQUOT => Err(Error::from(error).hint(
            "the user has used up its keys: see /proc/sys/kernel/keys/maxkeys, or pass --no-new-keyring",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Credentials, in the order of the plan.
pub(super) fn credentials(action: &Action) -> Result<()> {
    match action {
        Action::NoNewPrivileges => Ok(sys::set_no_new_privileges()?),
        Action::Bounding { drop, .. } => {
            let mut numbers = (0..capability::NAMES.len() as u32).filter(|number| drop.has(*number));
            Ok(numbers.try_for_each(capability::drop_bounding)?)
        }
        Action::User { uid, gid, groups, umask } => {
            capability::keep_over_setuid(true)?;
            if let Some(groups) = groups {
                credentials::set_groups(groups).context(|| "process.user.additionalGids")?;
            }
            credentials::set_group(*gid).context(|| format!("process.user.gid {gid}"))?;
            credentials::set_user(*uid).context(|| format!("process.user.uid {uid}"))?;
            capability::keep_over_setuid(false)?;
            // The mask that a login gives, unless the configuration has one.
            credentials::set_umask(umask.unwrap_or(0o022));
            // The change of user cleared both.
            sys::set_dumpable(false)?;
            Ok(sys::set_parent_death_signal(rustix::process::Signal::KILL.as_raw())?)
        }
        Action::WorkingDirectory(path) => enter_directory(path),
        Action::Capabilities(sets) => set_capabilities(*sets),
        _ => Err(Error::new(format!("{action}: not a step of the credentials"))),
    }
}

/// chdir(2), and a look at where it led: through /proc/self/fd a path can lead to a directory of the
/// host's, which the kernel then calls unreachable.
fn enter_directory(path: &Path) -> Result<()> {
    sys::change_directory(path).map_err(|error| match error.errno() {
        // The words from which Podman and Docker make the exit code 127.
        Errno::NOENT => Error::new(format!("process.cwd {}: no such file or directory", path.display())),
        Errno::NOTDIR => Error::new(format!("process.cwd {} is not a directory", path.display())),
        _ => Error::new(format!("process.cwd {}: {error}", path.display())),
    })?;
    let here = rustix::process::getcwd(Vec::new());
    if here.is_ok_and(|here| here.to_bytes().starts_with(b"/")) {
        Ok(())
    } else {
        Err(Error::new(format!("process.cwd {} leads out of the container's root", path.display())))
    }
}

fn set_capabilities(sets: Sets) -> Result<()> {
    // In a user namespace whose creator gave less, only that much can be had.
    let (_, permitted, _) = capability::get()?;
    let within = |set: Set| Set(set.0 & permitted.0);
    capability::clear_ambient()?;
    capability::set(within(sets.effective), within(sets.permitted), within(sets.inheritable))?;
    let mut ambient = (0..capability::NAMES.len() as u32).filter(|number| within(sets.ambient).has(*number));
    Ok(ambient.try_for_each(capability::raise_ambient)?)
}

fn c_string(text: impl AsRef<[u8]>) -> Result<CString> {
    let text = text.as_ref();
    CString::new(text)
        .map_err(|_| Error::new(format!("{:?} holds a NUL byte", String::from_utf8_lossy(text))))
}

impl Init<'_> {
    /// Looks the program up as execvp(3) does, with the credentials that the program will have. The
    /// sentences are those that Docker and Podman turn into the exit codes 126 and 127.
    pub(super) fn find_program(&mut self, name: &str) -> Result<()> {
        if name.contains('/') {
            executable(Path::new(name)).map_err(|why| Error::new(format!("exec: {name:?}: {why}")))?;
            self.program = Some(c_string(name)?);
            return Ok(());
        }
        let path = self.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let mut denied = None;
        for folder in path.split(':') {
            let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
            match executable(&candidate) {
                Ok(()) => {
                    self.program = Some(c_string(candidate.as_os_str().as_bytes())?);
                    return Ok(());
                }
                Err(why) if why.contains("permission") => denied = Some(why),
                Err(_) => {}
            }
        }
        Err(Error::new(match denied {
            Some(why) => format!("exec: {name:?}: {why}"),
            None => format!("exec: {name:?}: executable file not found in $PATH"),
        }))
    }

    /// Installs the filter. The listener of one that notifies belongs to the agent that the configuration
    /// names; the runtime takes it out of this process, because the filter may stop any call that would
    /// send it.
    pub(super) fn install_filter(&mut self, filter: &Filter) -> Result<()> {
        if !filter.notifies {
            filter.install()?;
            return Ok(());
        }
        // The listener gets the lowest free number: that of a copy which is closed again.
        let socket =
            self.socket.as_ref().ok_or_else(|| Error::new("seccomp: nobody can take the listener"))?;
        let probe = socket.try_clone()?;
        let number = probe.as_raw_fd();
        drop(probe);
        self.tell(&FromInit::Listener(number))?;
        let listener = filter.install()?.ok_or_else(|| Error::new("seccomp: the filter has no listener"))?;
        if listener.as_raw_fd() != number {
            return Err(Error::new("seccomp: the listener has another number than expected"));
        }
        // Closed by execve(2): a close(2) here could already be one of the calls that wait for the agent.
        let _ = listener.into_raw_fd();
        Ok(())
    }

    pub(super) fn execute(&mut self, args: &[String]) -> Result<()> {
        let program = self.program.take().ok_or_else(|| Error::new("the program was not looked up"))?;
        let args = args.iter().map(c_string).collect::<Result<Vec<_>>>()?;
        let env = self.env.iter().map(c_string).collect::<Result<Vec<_>>>()?;
        sys::close_on_exec_from(3 + self.preserve_fds)?;
        sys::reset_signals()?;
        if let Some(sharing) = &mut self.sharing {
            sharing.outcome.executes = true;
        }
        let error = sys::execute(None, &program, &args, &env);
        let why = match error.errno() {
            Errno::NOEXEC => "exec format error",
            Errno::NOENT => "no such file or directory (its interpreter is missing)",
            Errno::ACCESS => "permission denied",
            _ => return Err(Error::new(format!("exec: {error}"))),
        };
        Err(Error::new(format!("exec: {program:?}: {why}")))
    }
}

fn executable(path: &Path) -> std::result::Result<(), &'static str> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err("is a directory: permission denied"),
        Ok(_) => rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|_| "permission denied"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err("permission denied"),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Err("not a directory"),
        Err(_) => Err("no such file or directory"),
    }
}
