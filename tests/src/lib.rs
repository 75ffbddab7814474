//! What the tests of whole programs share: bundles, the built runtime, and the look for what is left
//! behind.
//!
//! A test makes a [`Bundle`], changes its configuration, and hands it to a [`Runtime`], which keeps its
//! state in a folder of its own and deletes every container when it is dropped. No test waits for a fixed
//! time: [`wait_until`] waits for a fact.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that can not go on fails, and says where"
)]

mod bundle;
mod guest;
mod home;
mod killed;
mod lab;
mod layers;
mod leftovers;
mod moat;
mod network_host;
mod registry;
mod runtime;
mod terminal;
mod tree;
mod wire;

pub use bundle::{Bundle, default_config, make_root};
pub use guest::GuestKernel;
pub use guest::visit_with_machines;
pub use home::Home;
pub use killed::{Killed, Point, killed_at, points};
pub use lab::{in_lab, run_in_lab, run_in_lab_with};
pub use layers::{LayerTar, TarEntry, header, oci_layout, plain_layout};
pub use leftovers::leftovers;
pub use moat::Moat;
pub use network_host::NetworkHost;
pub use registry::{Registry, Umoci, debian, done};
pub use runtime::{Container, Output, Runtime, program};
pub use terminal::{ConsoleSocket, Pty, read_master};
pub use tree::{list_overlay, list_path, list_tree, list_user_overlay};
pub use wire::{HOST, HOST6, OUTSIDE, OUTSIDE6, Place, Running, Wire, nothing_left, sh};

use std::time::Duration;

/// Waits until `fact` holds. There is no limit: a test that hangs here is named by its runner.
pub fn wait_until(mut fact: impl FnMut() -> bool) {
    while !fact() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`wait_until`], for what gives a value.
pub fn wait_for<T>(mut value: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = value() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
