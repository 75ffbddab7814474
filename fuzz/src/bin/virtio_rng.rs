//! Any driver of the entropy device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::virtio::rng::{Entropy, Rng};

struct Sevens;

impl Entropy for Sevens {
    fn fill(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        to.fill(7);
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| play(Script(bytes), || Rng::new(Sevens, RateLimit::none()), |_| ()));
