//! `moat-runtime`: the OCI runtime command line that containerd, Podman and CRI-O drive, over the sandbox.
//!
//! Verbs, flags, JSON and exit codes are runc's; what is not supported is refused with a sentence.
#![cfg_attr(not(test), no_main)]

mod cli;
mod command;
mod foreground;
mod log;
mod terminal;

use moat_linux::entry;
use moat_sandbox::self_exe;

/// musl's own allocator spreads small values over many pages, and each costs a fault in a program that lives for
/// milliseconds.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[cfg(not(test))]
moat_linux::entry!(run);

/// What a container comes near runs from a file that cannot be written. This comes first, since it may
/// execute the program again: whatever was done before would be done twice.
fn protect() -> moat_sandbox::Result<()> {
    let builds = |argument: &std::ffi::OsString| {
        ["create", "run", "exec"].iter().any(|verb| argument.as_os_str() == *verb)
    };
    if entry::arguments().iter().skip(1).any(builds) { self_exe::protect() } else { Ok(()) }
}

#[cfg_attr(test, expect(dead_code, reason = "the entry is not part of the tests"))]
fn run() -> i32 {
    if let Err(error) = protect() {
        return log::Log::stderr().fail(&error);
    }
    let cli = match cli::parse(entry::arguments()) {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // The help could not be printed either: there is nothing more to say.
            let _ = error.print();
            return i32::from(failed);
        }
    };
    let log = match log::Log::open(&cli.global) {
        Ok(log) => log,
        Err(error) => return log::Log::stderr().fail(&error),
    };
    match command::run(&cli, &log) {
        Ok(code) => i32::from(code),
        Err(error) => log.fail(&error),
    }
}
