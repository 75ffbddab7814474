//! A virtual machine monitor on KVM: the parts of which the program `moat-vmm` is made.
//!
//! Devices are machines without threads, descriptors or KVM in them; one event loop owns those.

pub mod backend;
pub mod device;
mod error;
pub mod memory;
pub mod rate_limit;
pub mod virtio;

pub use error::{Context, Error, Result};
