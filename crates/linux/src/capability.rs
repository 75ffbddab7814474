//! capabilities(7): the five sets of a process.

use crate::{Result, named, process::prctl, syscall};

/// The names of the capabilities; the index is the number. Reasons to grant one stand with who grants it.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, bit N is capability N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(pub u64);

impl Set {
    /// The number of a capability by its name, in any case, with or without `CAP_`.
    pub fn number(name: &str) -> Option<u32> {
        let upper = name.to_ascii_uppercase();
        let wanted = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| known.strip_prefix("CAP_") == Some(wanted)).map(|index| index as u32)
    }

    /// The set with one more.
    #[must_use]
    pub fn with(self, number: u32) -> Self {
        Self(self.0 | 1 << number)
    }

    /// Whether `number` is in the set.
    pub fn has(self, number: u32) -> bool {
        self.0 & 1 << number != 0
    }

    /// The names of what is in the set.
    pub fn names(self) -> Vec<&'static str> {
        (0..).zip(NAMES).filter(|(number, _)| self.has(*number)).map(|(_, name)| name).collect()
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3
const VERSION: u32 = 0x2008_0522;

/// capset(2): the effective, permitted and inheritable sets of this process.
pub fn set(effective: Set, permitted: Set, inheritable: Set) -> Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let half = |shift: u32| Half {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: (inheritable.0 >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data elements, which live through the call.
    let returned = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    named(syscall(returned), "capset", || {
        format!(
            "effective {:#x}, permitted {:#x}, inheritable {:#x}",
            effective.0, permitted.0, inheritable.0
        )
    })
    .map(drop)
}

/// capget(2): the effective, permitted and inheritable sets of this process.
pub fn get() -> Result<(Set, Set, Set)> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Half::default(); 2];
    // SAFETY: version 3 reads one header and writes two data elements, which live through the call.
    let returned = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    named(syscall(returned), "capget", String::new)?;
    let [low, high] = data;
    let join = |low: u32, high: u32| Set(u64::from(low) | u64::from(high) << 32);
    Ok((
        join(low.effective, high.effective),
        join(low.permitted, high.permitted),
        join(low.inheritable, high.inheritable),
    ))
}

/// The bounding set of this process; capabilities that the kernel does not know are not in it.
pub fn bounding() -> Set {
    (0..NAMES.len() as u32).filter(|number| bounding_has(*number)).fold(Set::default(), Set::with)
}

/// Whether a capability is in the bounding set of this process.
pub fn bounding_has(number: u32) -> bool {
    // SAFETY: takes an integer; -1 (EINVAL) for a capability that the kernel does not know.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) == 1 }
}

/// Removes one capability from the bounding set.
pub fn drop_bounding(number: u32) -> Result<()> {
    prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, number.into())
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<()> {
    prctl("PR_CAP_AMBIENT_CLEAR_ALL", libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)
}

/// Raises one capability in the ambient set; it must be permitted and inheritable.
pub fn raise_ambient(number: u32) -> Result<()> {
    // SAFETY: takes integers.
    let returned = unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(number), 0, 0)
    };
    named(syscall(returned.into()), "prctl", || format!("PR_CAP_AMBIENT_RAISE, {number}")).map(drop)
}

/// PR_SET_KEEPCAPS: whether a change of user id from 0 keeps the permitted set.
pub fn keep_over_setuid(keep: bool) -> Result<()> {
    prctl("PR_SET_KEEPCAPS", libc::PR_SET_KEEPCAPS, keep.into())
}
