//! The kernel's random generator, random(4).

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::{Error, Result, named, syscall};

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `linux/random.h`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
const RESEED: libc::c_ulong = 0x5207;

/// How much [`reseed`] takes at once.
pub const SEED_BYTES: usize = 64;

/// `struct rand_pool_info`
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; SEED_BYTES],
}

/// Mixes `seed` into the generator, credits it as that much entropy, and lets all later numbers depend on it.
///
/// Only the first [`SEED_BYTES`] are taken. Errors: those of opening /dev/urandom and of ioctl(2); it needs
/// CAP_SYS_ADMIN.
pub fn reseed(seed: &[u8]) -> Result<()> {
    const PATH: &str = "/dev/urandom";
    let opened = File::options().write(true).open(PATH);
    let file = opened.map_err(|error| {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        Error::new("open", PATH, rustix::io::Errno::from_raw_os_error(code))
    })?;
    let mut pool = Pool { entropy_bits: 0, bytes: 0, data: [0; SEED_BYTES] };
    for (to, from) in pool.data.iter_mut().zip(seed) {
        *to = *from;
        pool.bytes += 1;
    }
    pool.entropy_bits = pool.bytes * 8;
    // SAFETY: the structure holds as many bytes as it says, and lives through the call.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), ADD_ENTROPY, &raw const pool) };
    named(syscall(returned), "ioctl", || format!("{PATH}, RNDADDENTROPY"))?;
    // SAFETY: the request takes no argument.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), RESEED, 0) };
    named(syscall(returned), "ioctl", || format!("{PATH}, RNDRESEEDCRNG")).map(drop)
}
