//! Processes: clone3(2), namespaces, signals to pidfds, and what a process sets for itself.

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use linux_raw_sys::general as raw;
use rustix::process::{Pid, PidfdFlags, Signal, WaitStatus};

use crate::image::{self, PAGE};
use crate::{Error, Result, fd_name, named, syscall};

/// CLONE_NEW* bits.
pub mod namespace {
    use linux_raw_sys::general as raw;

    /// CLONE_NEWUSER
    pub const USER: u64 = raw::CLONE_NEWUSER as u64;
    /// CLONE_NEWPID
    pub const PID: u64 = raw::CLONE_NEWPID as u64;
    /// CLONE_NEWNS
    pub const MOUNT: u64 = raw::CLONE_NEWNS as u64;
    /// CLONE_NEWUTS
    pub const UTS: u64 = raw::CLONE_NEWUTS as u64;
    /// CLONE_NEWIPC
    pub const IPC: u64 = raw::CLONE_NEWIPC as u64;
    /// CLONE_NEWNET
    pub const NETWORK: u64 = raw::CLONE_NEWNET as u64;
    /// CLONE_NEWCGROUP
    pub const CGROUP: u64 = raw::CLONE_NEWCGROUP as u64;
    /// CLONE_NEWTIME
    pub const TIME: u64 = raw::CLONE_NEWTIME as u64;

    /// The bits as unshare(1) names them, joined by `|`.
    pub fn names(bits: u64) -> String {
        const NAMES: [(u64, &str); 8] = [
            (USER, "NEWUSER"),
            (PID, "NEWPID"),
            (MOUNT, "NEWNS"),
            (UTS, "NEWUTS"),
            (IPC, "NEWIPC"),
            (NETWORK, "NEWNET"),
            (CGROUP, "NEWCGROUP"),
            (TIME, "NEWTIME"),
        ];
        let set: Vec<&str> = NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
        if set.is_empty() { "0".to_owned() } else { set.join("|") }
    }
}

/// What [`fork`] may do beside forking, clone3(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Clone3<'fd> {
    /// CLONE_NEW* bits.
    pub namespaces: u64,
    /// The child's parent is the caller's parent (CLONE_PARENT).
    pub sibling: bool,
    /// A cgroup v2 directory in which the child starts (CLONE_INTO_CGROUP).
    pub cgroup: Option<BorrowedFd<'fd>>,
}

impl Clone3<'_> {
    /// What the kernel is told for a child with these flags beside those of the wish, a pidfd of which it is to store.
    /// The structure names the place for it, which must live as long.
    pub(crate) fn arguments(&self, flags: u64, pidfd: &mut RawFd) -> raw::clone_args {
        // Handlers are reset by execve(2), but what the runtime or its caller ignores would stay ignored.
        let mut flags = flags | self.namespaces | u64::from(raw::CLONE_PIDFD) | raw::CLONE_CLEAR_SIGHAND;
        if self.sibling {
            flags |= u64::from(raw::CLONE_PARENT);
        }
        if self.cgroup.is_some() {
            flags |= raw::CLONE_INTO_CGROUP;
        }
        raw::clone_args {
            flags,
            pidfd: std::ptr::from_mut(pidfd) as u64,
            child_tid: 0,
            parent_tid: 0,
            // CLONE_PARENT takes the exit signal of the caller and refuses one of its own.
            exit_signal: if self.sibling { 0 } else { libc::SIGCHLD as u64 },
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: self.cgroup.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
        }
    }

    /// The failed call, `flags` being the names of those beside the wish's.
    pub(crate) fn failed(&self, flags: &str, errno: rustix::io::Errno) -> Error {
        let cgroup = self.cgroup.map(|fd| format!(", cgroup {}", fd_name(fd))).unwrap_or_default();
        Error::new("clone3", format!("{flags}{}{cgroup}", namespace::names(self.namespaces)), errno)
    }
}

/// Who returns from [`fork`].
#[derive(Debug)]
pub enum Forked {
    /// The caller: the child's process id in the caller's PID namespace, and a pidfd for it.
    Parent(i32, OwnedFd),
    /// The child, with a copy of the caller's memory and descriptors.
    Child,
}

/// clone3(2) without shared memory: a fork. In the child every signal has its default disposition, except that
/// writing to a closed pipe is an error as in the parent.
///
/// The caller must have a single thread, as every program of Moat that forks has: locks held by other
/// threads would stay locked in the child for ever.
pub fn fork(options: Clone3<'_>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    let arguments = options.arguments(0, &mut pidfd);
    // SAFETY: without CLONE_VM the child has its own copy of everything; the structure and the place for the
    // pidfd live through the call.
    let returned =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<raw::clone_args>()) };
    match syscall(returned) {
        Ok(0) => {
            ignore_broken_pipe();
            Ok(Forked::Child)
        }
        // SAFETY: CLONE_PIDFD succeeded, so the kernel stored a new descriptor that nobody else owns.
        Ok(pid) => Ok(Forked::Parent(pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        Err(errno) => Err(options.failed("", errno)),
    }
}

/// unshare(2) of namespaces.
pub fn unshare(namespaces: u64) -> Result<()> {
    // SAFETY: takes an integer; the kernel refuses what a process with several threads can not do.
    let returned = unsafe { libc::syscall(libc::SYS_unshare, namespaces as libc::c_int) };
    named(syscall(returned), "unshare", || namespace::names(namespaces)).map(drop)
}

/// setns(2): joins the namespace behind `fd`, or those of a process when `fd` is a pidfd.
pub fn join(fd: BorrowedFd<'_>, namespaces: u64) -> Result<()> {
    // SAFETY: takes integers.
    let returned = unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), namespaces as libc::c_int) };
    named(syscall(returned), "setns", || format!("{}, {}", fd_name(fd), namespace::names(namespaces)))
        .map(drop)
}

/// pidfd_open(2).
pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    let opened = match Pid::from_raw(pid) {
        Some(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty()),
        None => Err(rustix::io::Errno::SRCH),
    };
    named(opened, "pidfd_open", || pid.to_string())
}

/// pidfd_send_signal(2). `signal` is a number from 1 to 64, or 0 to ask whether the process lives.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo is allowed; the rest are integers.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    named(syscall(returned), "pidfd_send_signal", || format!("{}, {signal}", fd_name(pidfd))).map(drop)
}

/// pidfd_getfd(2): a copy of a descriptor of another process.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    let fd = named(syscall(returned), "pidfd_getfd", || format!("{}, {number}", fd_name(pidfd)))?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// kill(2).
pub fn kill(pid: i32, number: i32) -> Result<()> {
    // SAFETY: takes integers.
    let returned = unsafe { libc::kill(pid, number) };
    named(syscall(returned.into()), "kill", || format!("{pid}, {number}")).map(drop)
}

/// waitpid(2) for one child; `block` waits, else `None` says that it still runs.
pub fn wait(pid: i32, block: bool) -> Result<Option<WaitStatus>> {
    use rustix::process::WaitOptions;
    let options = if block { WaitOptions::empty() } else { WaitOptions::NOHANG };
    loop {
        match rustix::process::waitpid(Pid::from_raw(pid), options) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                return named(other, "waitpid", || pid.to_string())
                    .map(|found| found.map(|(_, status)| status));
            }
        }
    }
}

/// waitpid(2) for any child that has ended: its id and status, `None` when none has.
pub fn reap() -> Result<Option<(i32, WaitStatus)>> {
    use rustix::process::WaitOptions;
    let found = named(rustix::process::wait(WaitOptions::NOHANG), "waitpid", || "-1".to_owned())?;
    Ok(found.map(|(pid, status)| (pid.as_raw_nonzero().get(), status)))
}

/// The code that a shell would report: the exit code, or 128 plus the signal.
pub fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

/// PR_SET_PDEATHSIG: the signal that this process gets when its parent thread ends; 0 for none.
pub fn set_parent_death_signal(number: i32) -> Result<()> {
    prctl("PR_SET_PDEATHSIG", libc::PR_SET_PDEATHSIG, number as libc::c_ulong)
}

/// PR_SET_CHILD_SUBREAPER: orphaned descendants become children of this process.
pub fn set_child_subreaper() -> Result<()> {
    prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// PR_SET_DUMPABLE: when off, other processes can not open this one's /proc entries or trace it.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, dumpable.into())
}

/// PR_SET_NO_NEW_PRIVS.
pub fn set_no_new_privileges() -> Result<()> {
    prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// PR_SET_NAME: the name that ps(1) shows, at most 15 bytes.
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string.
    let returned = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    named(syscall(returned.into()), "prctl", || format!("PR_SET_NAME, {name:?}")).map(drop)
}

pub(crate) fn prctl(name: &str, option: libc::c_int, argument: libc::c_ulong) -> Result<()> {
    // SAFETY: only options that take integers are passed here.
    let returned = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    named(syscall(returned.into()), "prctl", || format!("{name}, {argument}")).map(drop)
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: every descriptor from `first` on is closed by execve(2).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    close_range(first, CLOSE_RANGE_CLOEXEC)
}

/// close_range(2): every descriptor from `first` on.
pub fn close_from(first: u32) -> Result<()> {
    close_range(first, 0)
}

fn close_range(first: u32, flags: u32) -> Result<()> {
    // SAFETY: takes integers; callers own no descriptor in the range any more, or only mark it.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    named(syscall(returned), "close_range", || format!("{first}, ~0, {flags}")).map(drop)
}

/// Clears or sets FD_CLOEXEC.
pub fn set_close_on_exec(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    use rustix::io::FdFlags;
    let flags = if on { FdFlags::CLOEXEC } else { FdFlags::empty() };
    named(rustix::io::fcntl_setfd(fd, flags), "fcntl", || format!("{}, F_SETFD, {flags:?}", fd_name(fd)))
}

/// dup2(2) onto standard input, output or error, or any other number; the copy survives execve(2).
pub fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: takes integers. Rust's own standard streams are numbers, so replacing them is sound.
    let returned = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    named(syscall(returned.into()), "dup2", || format!("{}, {number}", fd_name(fd))).map(drop)
}

/// Takes over a descriptor that this process was started with.
///
/// Errors: EBADF when it is not open. The caller names each number once.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_GETFD takes an integer.
    let returned = unsafe { libc::fcntl(number, libc::F_GETFD) };
    named(syscall(returned.into()), "fcntl", || format!("{number}, F_GETFD"))?;
    // SAFETY: it is open, and the contract of this function says that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// execveat(2) of an open file, or of `path` when `fd` is none. Returns only when it failed.
pub fn execute(fd: Option<BorrowedFd<'_>>, path: &CStr, args: &[CString], env: &[CString]) -> Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    let flags = if fd.is_some() { libc::AT_EMPTY_PATH } else { 0 };
    let dir = fd.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: both arrays end in null and their strings live through the call.
    let returned =
        unsafe { libc::syscall(libc::SYS_execveat, dir, path.as_ptr(), argv.as_ptr(), envp.as_ptr(), flags) };
    let errno = syscall(returned).err().unwrap_or(rustix::io::Errno::IO);
    Error::new("execve", path.to_string_lossy(), errno)
}

/// Executes `path`, or the open file, with the arguments and the environment of this process, and with `more` in the
/// environment. Returns only when it failed.
pub fn execute_again(fd: Option<BorrowedFd<'_>>, path: &CStr, more: Option<CString>) -> Error {
    let nul = |_| Error::new("execve", path.to_string_lossy(), rustix::io::Errno::INVAL);
    let args = crate::entry::arguments().into_iter().map(|word| CString::new(word.as_bytes()));
    let env = std::env::vars_os()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.chain(more.map(Ok));
    match (args.collect::<std::result::Result<Vec<_>, _>>(), env.collect::<std::result::Result<Vec<_>, _>>())
    {
        (Ok(args), Ok(env)) => execute(fd, path, &args, &env),
        (Err(error), _) | (_, Err(error)) => nul(error),
    }
}

/// setsid(2).
pub fn new_session() -> Result<()> {
    named(rustix::process::setsid(), "setsid", String::new).map(drop)
}

/// sethostname(2).
pub fn set_host_name(name: &str) -> Result<()> {
    named(rustix::system::sethostname(name.as_bytes()), "sethostname", || name.to_owned())
}

/// setdomainname(2).
pub fn set_domain_name(name: &str) -> Result<()> {
    // SAFETY: pointer and length belong to one string.
    let returned = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    named(syscall(returned.into()), "setdomainname", || name.to_owned()).map(drop)
}

/// chdir(2).
pub fn change_directory(path: &std::path::Path) -> Result<()> {
    named(rustix::process::chdir(path), "chdir", || path.display().to_string())
}

/// fchdir(2).
pub fn change_directory_to(fd: BorrowedFd<'_>) -> Result<()> {
    named(rustix::process::fchdir(fd), "fchdir", || fd_name(fd))
}

/// chroot(2), for `--no-pivot` only.
pub fn change_root_here() -> Result<()> {
    named(rustix::process::chroot("."), "chroot", || ".".to_owned())
}

/// personality(2).
pub fn set_personality(persona: u64) -> Result<()> {
    // SAFETY: takes an integer.
    let returned = unsafe { libc::personality(persona as libc::c_ulong) };
    named(syscall(returned.into()), "personality", || format!("{persona:#x}")).map(drop)
}

/// Joins a new session keyring: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING, named `name`.
pub fn join_session_keyring(name: &CStr) -> Result<i64> {
    let option: libc::c_long = 1;
    // SAFETY: the name is NUL-terminated.
    let returned = unsafe { libc::syscall(libc::SYS_keyctl, option, name.as_ptr(), 0, 0, 0) };
    named(syscall(returned), "keyctl", || format!("JOIN_SESSION_KEYRING, {name:?}"))
}

/// Blocks all signals, or restores the default dispositions and unblocks them for the user's process.
pub fn block_signals() -> Result<()> {
    // SAFETY: the set is initialised by sigfillset before it is used.
    let returned = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut())
    };
    named(syscall(returned.into()), "rt_sigprocmask", || "SIG_SETMASK, ~[]".to_owned()).map(drop)
}

/// A write to a closed pipe is an error from here on, as it is in every program of Moat.
pub(crate) fn ignore_broken_pipe() {
    set_broken_pipe(libc::SIG_IGN);
}

/// _exit(2): ends this process without running what was registered for its end. For the children of [`fork`] and
/// of [`crate::vfork::run_sharing`], to whom none of that belongs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

fn set_broken_pipe(disposition: libc::sighandler_t) {
    // SAFETY: only SIG_IGN and SIG_DFL are passed, both valid for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, disposition) };
}

/// In a child of [`fork`]: every signal has its default disposition and none is blocked, as a program expects.
pub fn reset_signals() -> Result<()> {
    set_broken_pipe(libc::SIG_DFL);
    // SAFETY: the set is initialised by sigemptyset before it is used.
    let returned = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    named(syscall(returned.into()), "rt_sigprocmask", || "SIG_SETMASK, []".to_owned()).map(drop)
}

/// Ignores SIGPIPE, so that a write to a closed pipe is an error; and gives SIGCHLD its default
/// disposition: where a caller had it ignored, children would reap themselves.
pub fn prepare_signals() {
    ignore_broken_pipe();
    // SAFETY: SIG_DFL is a valid disposition for SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Provides the memory that every run of a short program comes to touch, by a few calls of madvise(2) with
/// MADV_POPULATE_WRITE instead of a fault for each page. Faults cost the more the more walls are around the kernel:
/// inside a virtual machine this saves a fifteenth of all that starting a container costs.
///
/// Kernels before 5.14 refuse, which changes nothing but the time.
pub fn populate_memory() {
    // Stays below what the allocator would give back, or ask for by a mapping of its own.
    const HEAP_BYTES: usize = 92 << 10;
    const STACK_BYTES: usize = 60 << 10;
    let down = |address: usize| address & !(PAGE - 1);
    let mut heap: Vec<u8> = Vec::with_capacity(HEAP_BYTES);
    let first = heap.as_mut_ptr().wrapping_add(PAGE - 1).map_addr(down);
    let stack = (&raw mut heap).cast::<u8>().map_addr(down).wrapping_sub(STACK_BYTES);
    let data = image::variables().map(|part| {
        let start = part.first_page();
        (std::ptr::with_exposed_provenance_mut::<u8>(start), part.length + (part.start - start))
    });
    for (start, length) in [(first, HEAP_BYTES - PAGE), (stack, STACK_BYTES)].into_iter().chain(data) {
        // SAFETY: this advice changes no content. The ranges are within the vector, below the frame of this function
        // in the mapping of the stack, and the program's own variables; what is not mapped or not writable is refused.
        unsafe { libc::madvise(start.cast(), length, libc::MADV_POPULATE_WRITE) };
    }
}

/// Gives back to the kernel what the allocator keeps for later: for a process that has done its hard work and
/// goes on to wait for long. Not needed where the C library is not glibc: others give back by themselves.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and touches only memory that nobody uses.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// signalfd(2) for every signal; they must be blocked. Reads give `signalfd_siginfo` records.
pub fn signal_descriptor() -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigfillset; -1 asks for a new descriptor.
    let returned = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    named(syscall(returned.into()), "signalfd", || "-1, ~[]".to_owned())?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(returned) })
}

/// The next signal of a [`signal_descriptor`]: its number, `None` when there is none.
pub fn next_signal(fd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut record) {
        // ssi_signo is the first field, 32 bits.
        Ok(_) => Ok(record.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::new("read", fd_name(fd), errno)),
    }
}

/// The number of a signal from its name (`TERM`, `SIGTERM`) or number.
pub fn signal_number(text: &str) -> Option<i32> {
    const NAMES: [(&str, Signal); 31] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ILL", Signal::ILL),
        ("TRAP", Signal::TRAP),
        ("ABRT", Signal::ABORT),
        ("BUS", Signal::BUS),
        ("FPE", Signal::FPE),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("SEGV", Signal::SEGV),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("STKFLT", Signal::STKFLT),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("XCPU", Signal::XCPU),
        ("XFSZ", Signal::XFSZ),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("SYS", Signal::SYS),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    NAMES.iter().find(|(name, _)| *name == short).map(|(_, signal)| signal.as_raw())
}

/// Keeps the allocator to one arena, for a process that gives up system calls later: with more, an arena that shrinks
/// makes it look into /proc, in whichever thread that happens. Before any thread is started. Other C libraries than
/// glibc have no arenas.
pub fn one_arena() -> Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's own.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } != 1 {
        return Err(Error::new("mallopt", "M_ARENA_MAX, 1".to_owned(), rustix::io::Errno::INVAL));
    }
    Ok(())
}
