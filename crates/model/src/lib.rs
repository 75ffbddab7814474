//! Values that several processes or rooms share: specifications, identifiers, states.
//!
//! Nothing here does I/O. What comes from outside is checked where it is parsed, so that the rooms
//! above work with values that can be trusted in form.

pub mod agent;
pub mod id;
pub mod network;
pub mod oci;
pub mod vmm;
pub mod workload;
