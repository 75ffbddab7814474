//! Threads of one process: interrupting one that sits in a system call.

use std::mem::MaybeUninit;

use crate::{Result, named, syscall};

/// The signal that interrupts, one that neither the C library nor programs use.
fn interrupt() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Prepares the process for [`interrupt_thread`]: without a handler the signal would end it. System calls are
/// not restarted after it, that is its purpose.
pub fn allow_interrupts() -> Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed sigaction is valid: no flags, an empty mask, and the handler set right here.
    let action = unsafe {
        action.assume_init_mut().sa_sigaction = nothing as *const () as usize;
        action.assume_init()
    };
    // SAFETY: the handler does nothing, so it may run at any time.
    let done =
        syscall(unsafe { libc::sigaction(interrupt(), &raw const action, std::ptr::null_mut()) }.into());
    named(done, "rt_sigaction", || "SIGRTMIN".to_owned()).map(drop)
}

/// Interrupts the system call in which a thread of this process sits, tgkill(2). Needs [`allow_interrupts`].
///
/// Errors: ESRCH when there is no such thread any more.
pub fn interrupt_thread(thread: i32) -> Result<()> {
    // SAFETY: takes three numbers.
    let done = syscall(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, interrupt()) });
    named(done, "tgkill", || format!("{thread}, SIGRTMIN")).map(drop)
}
