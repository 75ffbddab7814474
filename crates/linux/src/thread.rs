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

/// Lets [`interrupt_thread`] and a filter's trap (SIGSYS) reach the calling thread, though all signals are
/// blocked otherwise: a trap that is blocked ends the program without a word.
pub fn unblock_interrupts() -> Result<()> {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    let errno = unsafe {
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, interrupt());
        libc::sigaddset(&raw mut only, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut())
    };
    let done = if errno == 0 { Ok(()) } else { Err(rustix::io::Errno::from_raw_os_error(errno)) };
    named(done, "rt_sigprocmask", || "SIG_UNBLOCK, [SIGRTMIN SIGSYS]".to_owned())
}
