//! A virtual machine monitor on KVM: the parts of which the program `moat-vmm` is made.
//!
//! Devices are machines without threads, descriptors or KVM in them; one event loop owns those.

pub mod backend;
pub mod boot;
pub mod bus;
pub mod control;
pub mod device;
mod error;
mod event_loop;
pub mod exits;
pub mod isolation;
pub mod kvm;
mod lock;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod processor;
pub mod rate_limit;
pub mod snapshot;
pub mod symbols;
pub mod virtio;
pub mod walk;

pub use error::{Context, Error, Result};
