//! Attacks that broke other systems, performed through the real runtime: one module a row.
//!
//! Each test fails when its mitigation is taken out; the commit that brought it says how that was seen.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails, and says where")]

mod agent_frame;
mod cgroup_write;
mod inheritable_caps;
mod jail_links;
mod layer_tar;
mod leaked_fd;
mod length_overflow;
mod masked_path;
mod mount_swap;
mod network_guard;
mod proc_redirect;
mod racer;
mod self_exe;
mod state_modes;
mod tiocsti;
mod uid_parse;

/// The program that does inside a container what a shell can not.
const ATTACKER: &str = env!("CARGO_BIN_EXE_attacker");
