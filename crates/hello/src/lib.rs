//! What a process can see of where it runs: what `moat/hello` prints, and what it compares with.
//!
//! The same module is a part of the program [`main.rs`](../src/moat_hello/main.rs.html) and of this library, so that
//! the host's values are read by the code that reads the workload's.

pub mod facts;
