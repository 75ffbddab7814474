//! Attacks of a guest's driver on the monitor, one file for each. Each happened to a monitor before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

#[path = "../virtio/driver.rs"]
mod driver;
#[path = "../machine/hands.rs"]
mod hands;

mod descriptor_length;
mod descriptor_loop;
mod devices;
mod idle;
mod image_probe;
mod log_flood;
mod msr;
mod nested;
mod queue_after_ready;
mod reset_in_flight;
mod seccomp_drift;
mod select_bounds;
mod snapshot_tamper;
mod toctou;
