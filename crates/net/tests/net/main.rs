//! Networks on the real kernel. Every test makes a host of its own, with an outside; workloads are programs in the
//! network namespaces that were prepared for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails, and says where"
)]

mod guard;
mod host;
mod names;
mod reach;
mod repair;
mod tap;
#[allow(dead_code, unreachable_pub, reason = "what the tests of whole programs use, too")]
#[path = "../../../../tests/src/wire.rs"]
mod wire;
