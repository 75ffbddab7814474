//! A child that shares this process's memory until it executes a program, as vfork(2) has it.
//!
//! A fork copies the page tables, and each page that either of the two writes to afterwards costs a fault and a
//! copy. Where the parent has nothing to do meanwhile it can wait, and the child can work in the parent's memory.
//! Measured with some 80 pages in use: 0.2 ms of processor time instead of 0.55.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use linux_raw_sys::general as raw;

use crate::Result;
use crate::process::{Clone3, exit_now, ignore_broken_pipe};

/// Whether [`run_sharing`] is there for this kind of processor.
pub const SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// Room for the child's frames, in the caller's stack. A child that needs more goes on below it, where nothing of
/// the sleeping caller's is.
const STACK_BYTES: usize = 40 << 10;

#[expect(dead_code, reason = "the child writes to it, and nobody reads it")]
#[repr(align(16))]
struct Stack([MaybeUninit<u8>; STACK_BYTES]);

/// What the child finds on its way in.
struct Start<'child> {
    child: &'child mut dyn FnMut(i32),
    /// The child's process id, as the parent sees it; the kernel writes it before the child runs.
    pid: libc::pid_t,
}

/// Runs `child` in a new process that shares this one's memory; returns when that process has executed a program
/// or has ended, and gives its process id and a pidfd.
///
/// `child` is told its process id in the caller's PID namespace. When it returns, the process ends with code 1.
/// What it writes to memory the caller sees. Descriptors are copies: one that it opens must not get into a value
/// that the caller drops, and one that it closes stays open in the caller. Signal dispositions, credentials,
/// working directory and namespaces are the child's own.
///
/// The caller must have a single thread, whose stack has room below. Errors: those of clone3(2); ENOSYS where
/// [`SUPPORTED`] says no.
pub fn run_sharing(options: Clone3<'_>, child: &mut dyn FnMut(i32)) -> Result<(i32, OwnedFd)> {
    let mut stack = Stack([MaybeUninit::uninit(); STACK_BYTES]);
    let mut pidfd: RawFd = -1;
    let mut start = Start { child, pid: 0 };
    let flags = u64::from(raw::CLONE_VM | raw::CLONE_VFORK | raw::CLONE_PARENT_SETTID);
    let arguments = raw::clone_args {
        parent_tid: (&raw mut start.pid) as u64,
        stack: (&raw mut stack) as u64,
        stack_size: STACK_BYTES as u64,
        ..options.arguments(flags, &mut pidfd)
    };
    match clone_onto(&arguments, &mut start) {
        // SAFETY: CLONE_PIDFD succeeded, so the kernel stored a new descriptor that nobody else owns.
        Ok(pid) => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        Err(errno) => Err(options.failed("VM|VFORK|", errno)),
    }
}

/// Where the child begins. It never returns: below it on its stack there is nothing.
#[cfg(target_arch = "x86_64")]
extern "C" fn enter(start: *mut Start<'_>) -> ! {
    ignore_broken_pipe();
    // SAFETY: the parent waits with this value on its stack until this process is gone from its memory.
    let start = unsafe { &mut *start };
    (start.child)(start.pid);
    exit_now(1)
}

#[cfg(target_arch = "x86_64")]
fn clone_onto(arguments: &raw::clone_args, start: &mut Start<'_>) -> rustix::io::Result<libc::c_long> {
    let entry: extern "C" fn(*mut Start<'_>) -> ! = enter;
    let returned: libc::c_long;
    // SAFETY: the child begins with 0 in rax on the part of the stack that is set aside for it, whose end is aligned to 16 bytes, and calls
    // `enter`, which does not return; so nothing of this function's frame is touched by it. The parent goes on
    // behind the label when the child no longer runs in this memory; the kernel changes rcx, r11 and rax.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => returned,
            in("rdi") ptr::from_ref(arguments),
            in("rsi") size_of::<raw::clone_args>(),
            in("r12") ptr::from_mut(start),
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match i32::try_from(-returned) {
        Ok(code @ 1..4096) => Err(rustix::io::Errno::from_raw_os_error(code)),
        _ => Ok(returned),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn clone_onto(_arguments: &raw::clone_args, _start: &mut Start<'_>) -> rustix::io::Result<libc::c_long> {
    Err(rustix::io::Errno::NOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{self, wait};

    /// Test programs have several threads, so each case runs in a process of its own.
    fn alone(case: impl FnOnce() -> i32) -> i32 {
        match process::fork(Clone3::default()).unwrap() {
            process::Forked::Child => exit_now(case()),
            process::Forked::Parent(pid, _) => process::exit_code(wait(pid, true).unwrap().unwrap()),
        }
    }

    #[test]
    fn what_the_child_writes_the_parent_sees() {
        let code = alone(|| {
            let mut told = 0;
            let (pid, _) = run_sharing(Clone3::default(), &mut |own| told = own).unwrap();
            let ended = process::exit_code(wait(pid, true).unwrap().unwrap());
            i32::from(told != pid || ended != 1)
        });
        assert_eq!(code, 0);
    }

    #[test]
    fn the_parent_goes_on_when_the_program_runs() {
        let code = alone(|| {
            let mut failed = None;
            let (pid, _) = run_sharing(Clone3::default(), &mut |_| {
                failed = Some(process::execute(None, c"/bin/false", &[c"false".to_owned()], &[]));
            })
            .unwrap();
            let ended = process::exit_code(wait(pid, true).unwrap().unwrap());
            i32::from(failed.is_some() || ended != 1)
        });
        assert_eq!(code, 0);
    }

    #[test]
    fn a_failure_of_clone_names_the_call() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let options = Clone3 { cgroup: Some(std::os::fd::AsFd::as_fd(&file)), ..Clone3::default() };
        let error = run_sharing(options, &mut |_| ()).unwrap_err();
        assert!(error.to_string().starts_with("clone3(VM|VFORK|0, cgroup {"), "{error}");
    }
}
