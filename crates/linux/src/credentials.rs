//! User and group ids, resource limits.
//!
//! The raw system calls, because the C library's wrappers act on every thread of a process, and what
//! calls these has one.

use crate::{Result, named, syscall};

/// setresuid(2): real, effective and saved.
pub fn set_user(uid: u32) -> Result<()> {
    // SAFETY: takes integers.
    let returned = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    named(syscall(returned), "setresuid", || uid.to_string()).map(drop)
}

/// setresgid(2): real, effective and saved.
pub fn set_group(gid: u32) -> Result<()> {
    // SAFETY: takes integers.
    let returned = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    named(syscall(returned), "setresgid", || gid.to_string()).map(drop)
}

/// setgroups(2).
pub fn set_groups(gids: &[u32]) -> Result<()> {
    // SAFETY: length and pointer belong to one slice of 32-bit ids.
    let returned = unsafe { libc::syscall(libc::SYS_setgroups, gids.len(), gids.as_ptr()) };
    named(syscall(returned), "setgroups", || format!("{gids:?}")).map(drop)
}

/// umask(2); gives the mask that was in force.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: takes an integer and can not fail.
    unsafe { libc::umask(mask) }
}

/// The resource limits of setrlimit(2), by the names of the OCI specification.
pub const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

/// The names of all limits as `--ulimit` has them: `nofile` for RLIMIT_NOFILE.
pub fn limit_names() -> impl Iterator<Item = String> {
    RLIMITS.iter().map(|(name, _)| name.trim_start_matches("RLIMIT_").to_ascii_lowercase())
}

/// prlimit(2) on process `pid`, 0 for this one.
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives through the call; a null place for the old limit is allowed.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    named(syscall(returned), "prlimit64", || {
        let name = RLIMITS.iter().find(|(_, number)| *number == resource).map_or("?", |(name, _)| name);
        format!("{pid}, {name}, {soft}:{hard}")
    })
    .map(drop)
}

/// The effective user id.
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The effective group id.
pub fn effective_group() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Whether this process is in a user namespace that is not the machine's first one, user_namespaces(7).
///
/// Errors: /proc/self/uid_map can not be read.
pub fn in_user_namespace() -> Result<bool> {
    let map = crate::fs::read_text(std::path::Path::new("/proc/self/uid_map"))?;
    // The first one maps every id to itself.
    let fields: Vec<u64> = map.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    Ok(fields != [0, 0, u64::from(u32::MAX)])
}
