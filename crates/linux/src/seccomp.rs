//! seccomp(2): installing a filter and listening to its notifications.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::{Errno, Result, named, syscall};

/// One instruction of classic BPF, as the kernel takes it (`struct sock_filter`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions a jump skips when its test holds.
    pub jt: u8,
    /// How many it skips when the test fails.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Flags of SECCOMP_SET_MODE_FILTER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// Every thread of the process gets the filter.
    pub const TSYNC: Self = Self(1);
    /// Every action but ALLOW is logged.
    pub const LOG: Self = Self(1 << 1);
    /// The mitigation of speculative store bypass stays as it is.
    pub const SPEC_ALLOW: Self = Self(1 << 2);
    /// The call returns a descriptor that receives what USER_NOTIF holds.
    pub const NEW_LISTENER: Self = Self(1 << 3);
    /// A held call, once received, is interrupted only by fatal signals.
    pub const WAIT_KILLABLE_RECV: Self = Self(1 << 5);

    const NAMES: [(Self, &str); 5] = [
        (Self::TSYNC, "TSYNC"),
        (Self::LOG, "LOG"),
        (Self::SPEC_ALLOW, "SPEC_ALLOW"),
        (Self::NEW_LISTENER, "NEW_LISTENER"),
        (Self::WAIT_KILLABLE_RECV, "WAIT_KILLABLE_RECV"),
    ];

    /// These flags and others.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among them.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the flags, as an error prints them.
    pub fn names(self) -> String {
        let known: Vec<&str> =
            Self::NAMES.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| *name).collect();
        if known.is_empty() { "0".to_owned() } else { known.join("|") }
    }
}

/// SECCOMP_SET_MODE_FILTER: installs a program for this thread and what it starts.
///
/// With [`Flags::NEW_LISTENER`] the descriptor of the listener is returned. The thread needs
/// no_new_privs or CAP_SYS_ADMIN in its user namespace.
pub fn install(program: &[Instruction], flags: Flags) -> Result<Option<OwnedFd>> {
    let args = || format!("SECCOMP_SET_MODE_FILTER, {}, {} instructions", flags.names(), program.len());
    let length =
        u16::try_from(program.len()).map_err(|_| crate::Error::new("seccomp", args(), Errno::TOOBIG))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions, which `program` holds; `Instruction` has the layout
    // of `sock_filter`, and nothing is written through the pointer.
    let returned = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags.0, &raw const filter)
    };
    let value = named(syscall(returned), "seccomp", args)?;
    if !flags.has(Flags::NEW_LISTENER) {
        return Ok(None);
    }
    // SAFETY: with this flag the call returns a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(value as i32) }))
}

/// Whether the kernel knows flags: with no program it complains of a bad address only after the flags.
pub fn flags_available(flags: Flags) -> bool {
    // Without a listener to wait for, WAIT_KILLABLE_RECV is refused for that reason.
    let listener = if flags.has(Flags::WAIT_KILLABLE_RECV) { Flags::NEW_LISTENER } else { Flags(0) };
    let flags = flags.with(listener);
    // SAFETY: the kernel reads from a null pointer, which fails before anything is installed.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags.0,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    syscall(returned) == Err(Errno::FAULT)
}

/// SECCOMP_GET_ACTION_AVAIL: whether the kernel knows an action (`SECCOMP_RET_...` without its data).
pub fn action_available(action: u32) -> Result<bool> {
    // SAFETY: the kernel reads one u32, which lives through the call.
    let returned =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0u32, &raw const action) };
    match syscall(returned) {
        Ok(_) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => named(Err(errno), "seccomp", || format!("SECCOMP_GET_ACTION_AVAIL, {action:#x}")),
    }
}

/// SECCOMP_GET_NOTIF_SIZES: how large the kernel's notification, response and data structures are.
pub fn notification_sizes() -> Result<(u16, u16, u16)> {
    let mut sizes = [0u16; 3];
    // SAFETY: the kernel writes `struct seccomp_notif_sizes`, three u16, into an array of three u16.
    let returned =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0u32, sizes.as_mut_ptr()) };
    named(syscall(returned), "seccomp", || "SECCOMP_GET_NOTIF_SIZES".to_owned())?;
    let [notification, response, data] = sizes;
    Ok((notification, response, data))
}

/// How [`report_traps`] names a system call.
static CALL_NAME: std::sync::OnceLock<fn(i32) -> &'static str> = std::sync::OnceLock::new();

/// The exit code of a program that was ended by [`report_traps`]: that of a death by SIGSYS.
pub const TRAPPED: i32 = 128 + libc::SIGSYS;

/// Runs in the thread whose call was refused. It calls only write(2) and _exit(2).
extern "C" fn trapped(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    /// The part of `siginfo_t` that a SIGSYS fills: after three numbers and padding, an address, the number of the
    /// call.
    const CALL_OFFSET: usize = 24;
    // SAFETY: the kernel passes a whole siginfo_t, of 128 bytes.
    let number = unsafe { info.cast::<u8>().add(CALL_OFFSET).cast::<i32>().read_unaligned() };
    let name = CALL_NAME.get().map_or("?", |name| name(number));
    for part in ["a system call that its seccomp filter forbids: ", name, "\n"] {
        // SAFETY: writes from a string that lives through the call.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(TRAPPED) }
}

/// Makes a filter's SECCOMP_RET_TRAP name the system call on standard error and end the program, whichever
/// thread it happens in. `name` must be async-signal-safe: a look into a table.
pub fn report_traps(name: fn(i32) -> &'static str) -> Result<()> {
    CALL_NAME.get_or_init(|| name);
    // SAFETY: a zeroed sigaction is valid: no flags, an empty mask; the handler is async-signal-safe.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        syscall(libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()).into())
    };
    named(done, "rt_sigaction", || "SIGSYS".to_owned()).map(drop)
}
