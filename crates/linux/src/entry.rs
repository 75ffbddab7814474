//! The entry of a program that is started often and lives for milliseconds.

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();

/// The arguments of this program, its name first.
///
/// As `std::env::args_os`, which knows none in a program with an entry of its own where the C library is not glibc.
pub fn arguments() -> Vec<OsString> {
    ARGUMENTS.get().cloned().unwrap_or_else(|| std::env::args_os().collect())
}

/// Keeps what the C library gives to `main`; for [`entry!`](crate::entry!) alone.
///
/// # Safety
///
/// `arguments` leads to `count` pointers to strings that end with NUL.
pub unsafe fn keep_arguments(count: i32, arguments: *const *const c_char) {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller vouches for all of them; each is read before this function returns.
    let text = |index: usize| unsafe { CStr::from_ptr(*arguments.add(index)) };
    let all = (0..count).map(|index| OsStr::from_bytes(text(index).to_bytes()).to_owned());
    // There is one entry, which calls this once.
    let _ = ARGUMENTS.set(all.collect());
}

/// Makes `$main`, a function without arguments that gives the exit code, the program's entry. The crate
/// needs `#![no_main]`.
///
/// The standard library's own entry reads /proc/self/maps and prepares a handler for stack overflows, on
/// every start; a runtime that starts itself twice for one container does without. What it also does and is
/// needed, ignoring SIGPIPE, is done here.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the C library calls.
        #[allow(unsafe_code, reason = "the name is the C library's, and defined once in a program")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn main(count: i32, arguments: *const *const std::ffi::c_char) -> i32 {
            $crate::process::populate_memory();
            // SAFETY: this is what the C library gives to `main`.
            unsafe { $crate::entry::keep_arguments(count, arguments) };
            $crate::process::prepare_signals();
            $main()
        }
    };
}
