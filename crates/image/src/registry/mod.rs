//! Registries: the OCI distribution protocol over HTTP, without an asynchronous runtime.

mod auth;
mod blob;
mod client;
mod credentials;
mod pull;
mod push;
mod resolve;
mod spec;

pub use credentials::{Credential, Credentials, login, logout};
pub use pull::{PullSpec, pull};
pub use push::{PushSpec, push};
pub use resolve::lookup;
pub use spec::RegistriesSpec;
