//! The rules of "Virtual I/O Device (VIRTIO) Version 1.2" that a device can break. Each test names the
//! section that has the rule.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

mod block;
mod console;
#[path = "../attacks/devices.rs"]
mod devices;
mod driver;
#[path = "../attacks/idle.rs"]
mod idle;
mod net;
mod probe;
mod registers;
mod rings;
mod rng;
mod rules;
mod vsock;
