//! Typed system calls: those that std and rustix lack, and those whose errors must name their object.
//!
//! Each system call stands here once. Its error prints as the call with its arguments, a file
//! descriptor with the path behind it: `mount_setattr({5}</srv/x>, RDONLY): EPERM`. Rooms above
//! have no `unsafe` and build no errno by hand.
//!
//! This is the workspace's floor of `unsafe`. Every block has a SAFETY comment; none keeps a pointer
//! beyond its call.
#![allow(unsafe_code, reason = "raw system calls live here and nowhere above")]

pub mod bpf;
pub mod capability;
pub mod credentials;
pub mod entry;
mod error;
pub mod fs;
pub mod image;
pub mod iov;
pub mod kvm;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod netlink;
pub mod process;
pub mod random;
pub mod sched;
pub mod seccomp;
mod sentence;
pub mod shared;
pub mod tap;
pub mod thread;
pub mod tty;
pub mod vfork;
pub mod vsock;
pub mod xattr;

pub use error::{Error, Result, errno_name, fd_name};
pub use rustix::io::Errno;

use error::{named, syscall};
