//! Limits on the cgroups of this machine, whatever their layout; `lab` runs the same on cgroup v2.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod checks;

#[test]
fn memory() {
    checks::memory();
}

#[test]
fn memory_of_the_first_process() {
    checks::memory_of_the_first_process();
}

#[test]
fn cpu() {
    checks::cpu();
}

#[test]
fn pids() {
    checks::pids();
}

#[test]
fn update() {
    checks::update();
}

#[test]
fn refused_update() {
    checks::refused_update();
}
