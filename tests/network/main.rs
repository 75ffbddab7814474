//! Networks, from outside: the built `moat` on a host of the test's own, with an outside behind a wire.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that can not go on fails, and says where"
)]

mod flags;
mod many;
mod objects;
mod reach;
mod repair;
