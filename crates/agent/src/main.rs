//! `moat-agent`: the first process of a microVM. It makes the machine that of one workload, and runs the
//! workload in the same sandbox that a container gets on a host.
//!
//! It is asked over vsock, in the frames of `moat_model::agent`. It is one thread: what forks and enters
//! namespaces must be, and one loop over poll(2) is all that a few streams need.
#![cfg_attr(not(test), no_main)]

mod boot;
mod connection;
mod guest;
mod network;
mod relay;
mod root;
mod serve;
mod workdir;
mod workload;

#[cfg(not(test))]
moat_linux::entry!(run);

#[cfg_attr(test, expect(dead_code, reason = "the entry is not part of the tests"))]
#[expect(clippy::print_stderr, reason = "the console is all that a first process has")]
fn run() -> i32 {
    let done = boot::prepare().and_then(|()| serve::serve());
    if let Err(error) = done {
        eprintln!("moat-agent: {error}");
    }
    // A first process that ends is a kernel panic; the monitor sees a machine that was switched off.
    boot::power_off()
}
