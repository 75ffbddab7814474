//! The control socket: JSON over HTTP, described by `openapi.json` beside this crate's manifest.
//!
//! The doors: a request's head is parsed by httparse, its length is bounded, its body is checked by serde
//! against the specification's types. What is behind works with those.

mod api;
mod client;
pub mod http;
mod server;

pub(crate) use api::answer;
pub use client::{Answer, request};
pub use server::Server;

/// The description of the interface.
pub const OPENAPI: &str = include_str!("../../openapi.json");
