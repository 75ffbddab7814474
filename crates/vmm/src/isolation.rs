//! What the monitor gives up before the guest's first instruction: system calls, by a seccomp filter for each
//! kind of thread, and paths, by landlock.
//!
//! Whoever takes over a device from the guest's side has what stands in these tables and no more: memory, the
//! descriptors that are open, and calls on them. A call that is not in the table ends the monitor, and it says
//! which it was.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::{Error, Result};

/// A system call and who needs it.
type Allowed = (libc::c_long, &'static str);

/// Every thread.
const ANY: &[Allowed] = &[
    (libc::SYS_read, "event descriptors, devices' files, the serial port's input"),
    (libc::SYS_write, "event descriptors, the serial port's output, messages"),
    (libc::SYS_futex, "locks, and the gate at which processors wait"),
    (libc::SYS_close, "connections and queues that end"),
    (libc::SYS_munmap, "the allocator"),
    (libc::SYS_mremap, "the allocator"),
    (libc::SYS_brk, "the allocator"),
    (libc::SYS_madvise, "the allocator; stacks of threads that end"),
    (libc::SYS_sched_yield, "locks of the standard library"),
    (libc::SYS_clock_gettime, "where the kernel gives the time by no shared page"),
    (libc::SYS_rt_sigreturn, "the end of a kick"),
    (libc::SYS_rt_sigprocmask, "threads that end"),
    (libc::SYS_sigaltstack, "threads that end"),
    (libc::SYS_exit, "threads that end"),
    (libc::SYS_exit_group, "the end"),
    (libc::SYS_restart_syscall, "a wait that was interrupted by a stop"),
    (libc::SYS_readlink, "the path of a descriptor in an error's text"),
    (libc::SYS_getrandom, "the source of random bytes; keys of hash tables"),
];

/// Threads that serve devices: the event loop, and processors, since a driver's write to a register is served
/// where it happens.
const DEVICES: &[Allowed] = &[
    (libc::SYS_poll, "whether the serial port's ends would block"),
    (libc::SYS_ppoll, "whether the serial port's ends would block"),
    (libc::SYS_pread64, "disk"),
    (libc::SYS_pwrite64, "disk"),
    (libc::SYS_preadv, "disk"),
    (libc::SYS_pwritev, "disk"),
    (libc::SYS_readv, "network card"),
    (libc::SYS_writev, "network card"),
    (libc::SYS_fdatasync, "disk: flush"),
    (libc::SYS_fallocate, "disk: discard and write zeroes"),
    (libc::SYS_io_uring_enter, "disk"),
    (libc::SYS_connect, "vsock: the guest connects to a socket of the host"),
    (libc::SYS_accept4, "vsock and control: somebody connects"),
    (libc::SYS_sendto, "vsock and control"),
    (libc::SYS_recvfrom, "vsock and control"),
    (libc::SYS_shutdown, "vsock: half of a connection ends"),
    (libc::SYS_epoll_ctl, "event loop and vsock: connections come and go"),
    (libc::SYS_epoll_wait, "event loop and vsock"),
    (libc::SYS_epoll_pwait, "event loop; vsock, also where a processor's write makes it look"),
    (libc::SYS_epoll_pwait2, "event loop and vsock"),
    (libc::SYS_fcntl, "descriptors that are duplicated or made non-blocking"),
];

/// The event loop: control socket, snapshots, the end.
const CONTROL: &[Allowed] = &[
    (libc::SYS_tgkill, "kicks processors"),
    (libc::SYS_getpid, "kicks processors"),
    (libc::SYS_openat, "a snapshot's files, beneath a folder that is open"),
    (libc::SYS_mkdirat, "a snapshot's folder"),
    (libc::SYS_unlinkat, "sockets in the end; a snapshot that failed"),
    (libc::SYS_unlink, "the control socket in the end"),
    (libc::SYS_ftruncate, "a snapshot's memory"),
    (libc::SYS_lseek, "the memory's holes"),
    (libc::SYS_fstat, "a snapshot's files"),
    (libc::SYS_statx, "a snapshot's files"),
    (libc::SYS_timerfd_settime, "event loop"),
    (libc::SYS_rt_sigaction, "the end"),
    (libc::SYS_wait4, "the end"),
];

/// The thread that checks a snapshot's sums late.
const CHECK: &[Allowed] = &[
    (libc::SYS_pread64, "the memory's file"),
    (libc::SYS_lseek, "the memory's holes"),
    (libc::SYS_fstat, "the memory's file"),
    (libc::SYS_statx, "the memory's file"),
];

/// A system call with some values of one argument: the call, which argument, its bits that count, what they are,
/// and who needs it.
type Limited = (libc::c_long, u8, u64, u64, &'static str);

const WHOLE: u64 = 0xffff_ffff;
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

/// Every thread.
const ANY_LIMITED: &[Limited] = &[
    (libc::SYS_mmap, 2, EXECUTABLE, 0, "the allocator; no code comes to what the program began with"),
    (libc::SYS_mprotect, 2, EXECUTABLE, 0, "the allocator's arenas of threads"),
];

/// Threads that serve devices.
const DEVICES_LIMITED: &[Limited] = &[
    (libc::SYS_socket, 0, WHOLE, libc::AF_UNIX as u64, "vsock: the guest connects to a socket of the host"),
    (libc::SYS_ioctl, 1, 0xff00, 0xae00, "KVM: running, looking at and saving processors"),
    (libc::SYS_ioctl, 1, WHOLE, 0x4004_54d0, "TUNSETOFFLOAD: the driver chooses its offloads"),
    (libc::SYS_ioctl, 1, WHOLE, 0x4004_54d9, "TUNSETQUEUE: the driver chooses its queues"),
    (libc::SYS_ioctl, 1, WHOLE, libc::FIONBIO, "connections are made non-blocking"),
    (libc::SYS_ioctl, 1, WHOLE, libc::TCGETS, "the terminal"),
    (libc::SYS_ioctl, 1, WHOLE, libc::TCSETS, "the terminal, put back in the end"),
    (libc::SYS_ioctl, 1, WHOLE, 0x802c_542a, "TCGETS2: the terminal"),
    (libc::SYS_ioctl, 1, WHOLE, 0x402c_542b, "TCSETS2: the terminal, put back in the end"),
    (libc::SYS_ioctl, 1, WHOLE, libc::TIOCGWINSZ, "the terminal's size"),
];

/// The kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event loop.
    Main,
    /// A virtual processor.
    Processor,
    /// The check of a snapshot's sums.
    Check,
}

impl Thread {
    fn tables(self) -> &'static [&'static [Allowed]] {
        match self {
            Self::Main => &[ANY, DEVICES, CONTROL],
            Self::Processor => &[ANY, DEVICES],
            Self::Check => &[ANY, CHECK],
        }
    }

    fn limited(self) -> &'static [&'static [Limited]] {
        match self {
            Self::Main | Self::Processor => &[ANY_LIMITED, DEVICES_LIMITED],
            Self::Check => &[ANY_LIMITED],
        }
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(format!("{what}: {error}"))
}

fn call_name(number: i32) -> &'static str {
    usize::try_from(number)
        .ok()
        .and_then(syscalls::Sysno::new)
        .map_or("one without a name", |call| call.name())
}

/// The filter of a thread, compiled.
pub fn filter(thread: Thread) -> Result<BpfProgram> {
    let what = "seccomp filter";
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, _reason) in thread.tables().iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    for (call, argument, mask, value, _reason) in thread.limited().iter().copied().flatten() {
        let operator = SeccompCmpOp::MaskedEq(*mask);
        let condition = SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator, *value)
            .map_err(|error| failed(what, error))?;
        let rule = SeccompRule::new(vec![condition]).map_err(|error| failed(what, error))?;
        rules.entry(*call).or_default().push(rule);
    }
    let arch = std::env::consts::ARCH.try_into().map_err(|error| failed(what, error))?;
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(|error| failed(what, error))
}

/// Puts the calling thread under a filter; there is no way back.
pub fn enter(filter: &BpfProgram) -> Result<()> {
    moat_linux::seccomp::report_traps(call_name)?;
    seccompiler::apply_filter(filter).map_err(|error| failed("seccomp filter", error))
}

/// Whether the kernel enforces what was given up of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Paths {
    /// All of it.
    Enforced,
    /// Only what this kernel knows.
    Partly,
    /// This kernel has no landlock.
    Unsupported,
}

/// Gives up all paths but what lies beneath these folders, for this thread and those that it will start.
pub fn give_up_paths(folders: &[BorrowedFd<'_>]) -> Result<Paths> {
    let what = |error: landlock::RulesetError| failed("landlock", error);
    let all = AccessFs::from_all(ABI::V3);
    let ruleset =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all).map_err(what)?;
    let mut ruleset = ruleset.create().map_err(what)?;
    for folder in folders {
        ruleset = ruleset.add_rule(PathBeneath::new(*folder, all)).map_err(what)?;
    }
    let status = ruleset.restrict_self().map_err(what)?;
    Ok(match status.ruleset {
        landlock::RulesetStatus::FullyEnforced => Paths::Enforced,
        landlock::RulesetStatus::PartiallyEnforced => Paths::Partly,
        landlock::RulesetStatus::NotEnforced => Paths::Unsupported,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_filter_compiles_and_each_call_stands_once() {
        for thread in [Thread::Main, Thread::Processor, Thread::Check] {
            assert!(!filter(thread).unwrap().is_empty());
            let mut calls: Vec<_> =
                thread.tables().iter().copied().flatten().map(|(call, _)| *call).collect();
            calls.sort_unstable();
            let count = calls.len();
            calls.dedup();
            assert_eq!(calls.len(), count, "{thread:?}");
            // A call that stands in both kinds of tables would be limited in one of them only.
            let mut limited = thread.limited().iter().copied().flatten().map(|(call, ..)| call);
            assert!(limited.all(|call| calls.binary_search(call).is_err()), "{thread:?}");
        }
    }

    #[test]
    fn a_name_is_found_for_a_number() {
        assert_eq!(call_name(libc::SYS_ptrace as i32), "ptrace");
        assert_eq!(call_name(-1), "one without a name");
    }
}
