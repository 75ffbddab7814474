//! Every command of `moat`, on the real kernel: what it does, what it prints, how it fails.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that can not go on fails, and says where"
)]

mod files;
mod formats;
mod images;
mod kernels;
mod killed;
mod life;
mod messages;
mod namespaces;
mod registries;
mod rootless;
mod run;
mod shell;
mod streams;
mod system;
mod terminal;
mod volumes;
