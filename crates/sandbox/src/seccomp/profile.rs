//! The default profile: what a container may ask of the kernel, as Docker's users know it.
//!
//! It is a list of what is allowed; everything else fails with EPERM. Each group says why its calls are
//! there. A call that a capability guards is allowed with that capability only: the kernel would refuse it
//! anyway, but code that cannot be reached cannot be broken.

use moat_linux::capability::Set;
use moat_model::oci::{Seccomp, SeccompArg, SeccompRule};

/// System calls that are allowed for one reason.
pub(super) struct Group {
    /// Why.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is written for the reader of this file"))]
    pub(super) reason: &'static str,
    when: When,
    /// Names with spaces between.
    names: &'static str,
}

/// When a group is allowed.
enum When {
    Always,
    /// On these architectures, without their `SCMP_ARCH_`.
    On(&'static [&'static str]),
    /// With this capability in the bounding set.
    With(&'static str),
    /// From this version of the kernel on.
    Since((u32, u32)),
}

const fn always(reason: &'static str, names: &'static str) -> Group {
    Group { reason, when: When::Always, names }
}

const fn on(arches: &'static [&'static str], reason: &'static str, names: &'static str) -> Group {
    Group { reason, when: When::On(arches), names }
}

const fn with(capability: &'static str, reason: &'static str, names: &'static str) -> Group {
    Group { reason, when: When::With(capability), names }
}

#[rustfmt::skip]
pub(super) static GROUPS: &[Group] = &[
    always("programs start, wait for each other and end",
        "execve execveat exit exit_group fork vfork wait4 waitid waitpid restart_syscall"),
    always("a process knows who it is and sorts its children into groups and sessions",
        "getpid getppid gettid getpgid getpgrp getsid setpgid setsid pidfd_open"),
    always("a process signals what it may signal by its user id",
        "kill tkill tgkill pause pidfd_send_signal process_mrelease rt_sigaction rt_sigpending \
         rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
         rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn"),
    always("threads: their storage, their locks, their restartable sequences",
        "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list \
         get_thread_area membarrier rseq set_robust_list set_thread_area set_tid_address"),
    always("a process runs its own memory",
        "brk cachestat madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 \
         mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
         pkey_free pkey_mprotect remap_file_pages"),
    always("files are opened, made and closed; the kernel checks who may",
        "access close close_range creat faccessat faccessat2 name_to_handle_at open openat openat2 umask"),
    always("files are read and written",
        "_llseek copy_file_range fadvise64 fadvise64_64 fallocate fdatasync fsync ftruncate \
         ftruncate64 lseek pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv \
         sendfile sendfile64 splice sync sync_file_range syncfs tee truncate truncate64 vmsplice \
         write writev"),
    always("descriptors are copied, locked and set up",
        "dup dup2 dup3 fcntl fcntl64 flock ioctl pipe pipe2"),
    always("directories and names",
        "chdir fchdir getcwd getdents getdents64 link linkat mkdir mkdirat readlink readlinkat \
         rename renameat renameat2 rmdir symlink symlinkat unlink unlinkat"),
    always("fifos and sockets as files; device nodes take CAP_MKNOD and the device filter",
        "mknod mknodat"),
    always("what files and file systems are like",
        "fstat fstat64 fstatat64 fstatfs fstatfs64 listmount lstat lstat64 newfstatat stat stat64 \
         statfs statfs64 statmount statx"),
    always("owners, modes and times of files",
        "chmod chown chown32 fchmod fchmodat fchmodat2 fchown fchown32 fchownat futimesat lchown \
         lchown32 utime utimensat utimensat_time64 utimes"),
    always("extended attributes, which the kernel guards by their names",
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr \
         listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat"),
    always("waiting for many descriptors",
        "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
         epoll_wait epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 \
         pselect6_time64 select"),
    always("watching files; new fanotify groups take CAP_SYS_ADMIN",
        "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch"),
    always("asynchronous reads and writes of databases; io_uring has had too many holes",
        "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit"),
    always("networking over sockets that are there; making one is judged by its family below",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom \
         recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair"),
    always("32-bit programs make sockets and IPC objects through these; what they point at cannot be seen",
        "ipc socketcall"),
    always("System V and POSIX messages, semaphores and shared memory, inside the IPC namespace",
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
         mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
         semtimedop_time64 shmat shmctl shmdt shmget"),
    always("user and group ids; changing them takes CAP_SETUID and CAP_SETGID",
        "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
         getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 \
         setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid \
         setresuid32 setreuid setreuid32 setuid setuid32"),
    always("capabilities are dropped, and processes shut themselves in further",
        "capget capset landlock_add_rule landlock_create_ruleset landlock_restrict_self prctl seccomp"),
    always("scheduling and limits; raising them takes CAP_SYS_NICE and CAP_SYS_RESOURCE",
        "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 \
         sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
         sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
         sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setpriority \
         setrlimit ugetrlimit"),
    always("reading clocks, and asking how they are disciplined",
        "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
         clock_gettime64 gettimeofday time times"),
    always("sleeping and timers",
        "alarm clock_nanosleep clock_nanosleep_time64 getitimer nanosleep setitimer timer_create \
         timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
         timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64"),
    always("what machine this is, and random numbers",
        "getrandom riscv_hwprobe sysinfo uname"),
    always("probes of the host on returns of functions go through it; a call from elsewhere is killed",
        "uretprobe"),

    Group { reason: "debuggers; before 4.8 ptrace could step around a filter", when: When::Since((4, 8)),
        names: "process_vm_readv process_vm_writev ptrace" },

    on(&["X86_64", "X32"], "threads set up their storage", "arch_prctl"),
    on(&["X86_64", "X32", "X86"], "Wine and old run-times set up segments", "modify_ldt"),
    on(&["ARM", "AARCH64"], "32-bit ARM has some calls under other names, and its own private ones",
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    on(&["PPC64LE"], "the argument order of sync_file_range, and user contexts of the C library",
        "swapcontext sync_file_range2"),
    on(&["S390", "S390X"], "PCI from user space, and run-time instrumentation",
        "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    on(&["RISCV64"], "compilers at run time flush instruction caches", "riscv_flush_icache"),

    with("CAP_DAC_READ_SEARCH", "opening what name_to_handle_at named", "open_by_handle_at"),
    with("CAP_SYS_ADMIN", "namespaces, mounts and what else this capability grants",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare"),
    with("CAP_SYS_BOOT", "restarting what the PID namespace shows as the machine", "reboot"),
    with("CAP_SYS_CHROOT", "changing the root", "chroot"),
    with("CAP_SYS_MODULE", "kernel modules", "delete_module finit_module init_module"),
    with("CAP_SYS_PACCT", "process accounting", "acct"),
    with("CAP_SYS_PTRACE", "reaching into other processes",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    with("CAP_SYS_RAWIO", "I/O ports", "ioperm iopl"),
    with("CAP_SYS_TIME", "setting clocks", "clock_settime clock_settime64 settimeofday stime"),
    with("CAP_SYS_TTY_CONFIG", "hanging up a terminal", "vhangup"),
    with("CAP_SYS_NICE", "memory policies", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    with("CAP_SYSLOG", "the kernel's log", "syslog"),
    with("CAP_BPF", "BPF programs", "bpf"),
    with("CAP_PERFMON", "performance counters", "perf_event_open"),
];

/// Socket families below this number are allowed: from AF_UNIX to AF_ROSE all are namespaced or rare.
const FIRST_FAMILIES: u64 = 12;

/// The families above, each with its name. Left out are what kernels no longer have, AF_ALG (the kernel's
/// cryptography, for which containers have libraries, and which has been broken into) and AF_VSOCK (which
/// would reach the virtual machines of the host past every network namespace).
const FAMILIES: [(u64, &str); 25] = [
    (13, "AF_NETBEUI"),
    (14, "AF_SECURITY"),
    (15, "AF_KEY"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (18, "AF_ASH"),
    (21, "AF_RDS"),
    (22, "AF_SNA"),
    (24, "AF_PPPOX"),
    (26, "AF_LLC"),
    (27, "AF_IB"),
    (28, "AF_MPLS"),
    (29, "AF_CAN"),
    (30, "AF_TIPC"),
    (31, "AF_BLUETOOTH"),
    (32, "AF_IUCV"),
    (33, "AF_RXRPC"),
    (35, "AF_PHONET"),
    (36, "AF_IEEE802154"),
    (39, "AF_NFC"),
    (41, "AF_KCM"),
    (42, "AF_QIPCRTR"),
    (43, "AF_SMC"),
    (44, "AF_XDP"),
    (45, "AF_MCTP"),
];

/// Personalities that change nothing that the kernel guards: Linux as it is, with the name of a 32-bit
/// machine, with a version that starts with 2.6, with both; and the question which one is set.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of clone(2) that make a namespace: mount, cgroup, UTS, IPC, user, PID, network.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The architectures that a kernel also runs.
const COMPATIBLE: [(&str, &[&str]); 9] = [
    ("X86_64", &["X86", "X32"]),
    ("AARCH64", &["ARM"]),
    ("MIPS64", &["MIPS", "MIPS64N32"]),
    ("MIPS64N32", &["MIPS", "MIPS64"]),
    ("MIPSEL64", &["MIPSEL", "MIPSEL64N32"]),
    ("MIPSEL64N32", &["MIPSEL", "MIPSEL64"]),
    ("S390X", &["S390"]),
    ("RISCV64", &[]),
    ("LOONGARCH64", &[]),
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities in its bounding set.
///
/// `architecture` is the machine's in the specification's words ([`super::native_architecture`]),
/// `kernel` the first two numbers of its version.
pub fn default_profile(capabilities: Set, architecture: &str, kernel: (u32, u32)) -> Seccomp {
    let arch = architecture.strip_prefix("SCMP_ARCH_").unwrap_or(architecture);
    let has = |name: &str| Set::number(name).is_some_and(|number| capabilities.has(number));
    let mut profile = Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(EPERM),
        ..Seccomp::default()
    };
    if let Some((_, others)) = COMPATIBLE.iter().find(|(native, _)| *native == arch) {
        let all = std::iter::once(&arch).chain(*others);
        profile.architectures = all.map(|name| format!("SCMP_ARCH_{name}")).collect();
    }
    let mut names = Vec::with_capacity(450);
    for group in GROUPS {
        let granted = match group.when {
            When::Always => true,
            When::On(arches) => arches.contains(&arch),
            When::With(capability) => has(capability),
            When::Since(version) => kernel >= version,
        };
        if granted {
            names.extend(group.names.split_ascii_whitespace().map(str::to_owned));
        }
    }
    profile.syscalls.push(SeccompRule { names, action: "SCMP_ACT_ALLOW".to_owned(), ..Default::default() });
    sockets(&mut profile.syscalls);
    for value in PERSONALITIES {
        profile.syscalls.push(allow_if("personality", 0, "SCMP_CMP_EQ", value));
    }
    if !has("CAP_SYS_ADMIN") {
        clones(&mut profile.syscalls, arch);
    }
    profile
}

fn sockets(rules: &mut Vec<SeccompRule>) {
    rules.push(allow_if("socket", 0, "SCMP_CMP_LT", FIRST_FAMILIES));
    for (family, _) in FAMILIES {
        rules.push(allow_if("socket", 0, "SCMP_CMP_EQ", family));
    }
}

/// Without CAP_SYS_ADMIN: threads and processes, but no namespaces. The flags of clone3 lie behind a
/// pointer, where no filter can see them; with ENOSYS the C library falls back to clone.
fn clones(rules: &mut Vec<SeccompRule>, arch: &str) {
    let flags = if matches!(arch, "S390" | "S390X") { 1 } else { 0 };
    rules.push(allow_if("clone", flags, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES));
    rules.push(SeccompRule {
        names: vec!["clone3".to_owned()],
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(ENOSYS),
        args: Vec::new(),
    });
}

fn allow_if(name: &str, index: u32, op: &str, value: u64) -> SeccompRule {
    SeccompRule {
        names: vec![name.to_owned()],
        action: "SCMP_ACT_ALLOW".to_owned(),
        errno_ret: None,
        args: vec![SeccompArg { index, value, value_two: 0, op: op.to_owned() }],
    }
}
