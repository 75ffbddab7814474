//! Random bytes of the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::virtio::rng::Entropy;

/// getrandom(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            done += getrandom(&mut to[done..], GetRandomFlags::empty())?;
        }
        Ok(())
    }
}
