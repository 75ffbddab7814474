//! What stands behind devices: the part that owns descriptors.
//!
//! Each module implements the small trait of one device over one thing of the host.

mod file_disk;
mod os_entropy;
mod stream;
mod tap;
mod unix_vsock;
mod uring_disk;

pub use file_disk::{FileDisk, open_disk};
pub use os_entropy::OsEntropy;
pub use stream::FdStream;
pub use tap::Tap;
pub use unix_vsock::UnixVsock;
pub use uring_disk::UringDisk;
