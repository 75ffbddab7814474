//! The entry of a program that is started often and lives for milliseconds.

/// Makes `$main`, a function without arguments that gives the exit code, the program's entry. The crate
/// needs `#![no_main]`.
///
/// The standard library's own entry reads /proc/self/maps and prepares a handler for stack overflows, on
/// every start; a runtime that starts itself twice for one container does without. What it also does and is
/// needed, ignoring SIGPIPE, is done here.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the C library calls. The arguments are kept for `std::env::args` by the standard library.
        #[allow(unsafe_code, reason = "the name is the C library's, and defined once in a program")]
        #[unsafe(no_mangle)]
        pub extern "C" fn main(_count: i32, _arguments: *const *const std::ffi::c_char) -> i32 {
            $crate::process::populate_memory();
            $crate::process::prepare_signals();
            $main()
        }
    };
}
