//! The place of a workload on the network: bridges, pairs of devices, addresses, the packet filter, names.
//!
//! A network is a bridge of the host. A container gets a pair of devices, one end in its network namespace
//! and the other on the bridge; a microVM gets a tap on the same bridge. All else is one for both: an
//! address that is claimed by making a file, elements in the sets of one table of the packet filter, and a resolver
//! for each network that knows the names of all who are on it.
//!
//! [`Networks`] is the door: it makes and removes networks, and [`Networks::prepare`] makes a place for a workload
//! that is about to start. State is files (the module `store` lists them); there is no daemon, and what is left
//! by a process that was killed is found and mended by [`Networks::check`].
//!
//! All functions act on the network namespace of the calling thread, as the host's. Only that thread enters
//! other namespaces, and it comes back before the function returns.

mod attach;
mod bridge;
mod check;
mod error;
mod explain;
mod firewall;
mod lease;
mod namespace;
mod networks;
mod nft;
pub mod pasta;
mod pools;
mod port;
mod resolv_conf;
pub mod resolver;
mod route;
mod store;

pub use attach::{Attach, Attached, Exposed, Wall};
pub use check::{Finding, Idle};
pub use error::{Error, ErrorKind, Result};
pub use networks::Networks;
pub use pasta::Pasta;
