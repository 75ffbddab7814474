//! The entropy device, section 5.4.

use moat_vmm::backend::OsEntropy;
use moat_vmm::rate_limit::{RateLimit, RateLimitSpec};
use moat_vmm::virtio::TIMER;
use moat_vmm::virtio::rng::{Entropy, Rng};

use super::driver::{BUFFERS, Guest, writable};

/// Section 5.4.6.1: buffers are filled with random data, completely or in part.
#[test]
fn requests_get_random_bytes() {
    let mut guest = Guest::started(Rng::new(OsEntropy, RateLimit::none()), 0);
    assert_eq!(guest.ask(0, &[writable(BUFFERS, 64), writable(BUFFERS + 100, 64)]), 128);
    let bytes = guest.get(BUFFERS, 164);
    assert!(bytes[..64].iter().any(|byte| *byte != bytes[0]));
    assert_ne!(bytes[..64], bytes[100..]);
    assert_eq!(bytes[64..100], [0; 36]);
}

/// A limit makes requests wait, not fail.
#[test]
fn a_limit_makes_requests_wait() {
    let limit = RateLimit::new(RateLimitSpec { bytes_per_s: 1000, operations_per_s: 0, burst_ms: 100 });
    let mut guest = Guest::started(Rng::new(OsEntropy, limit), 0);
    assert_eq!(guest.ask(0, &[writable(BUFFERS, 100)]), 100);
    guest.chain(0, &[writable(BUFFERS, 10)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), []);
    let at = guest.transport.wake_at().unwrap();
    std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
    guest.transport.ready(TIMER);
    assert_eq!(guest.take_used(0).len(), 1);
}

struct Broken;

impl Entropy for Broken {
    fn fill(&mut self, _to: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Other.into())
    }
}

/// Nothing is passed off as random when there is nothing.
#[test]
fn without_random_bytes_the_device_needs_a_reset() {
    let mut guest = Guest::started(Rng::new(Broken, RateLimit::none()), 0);
    guest.chain(0, &[writable(BUFFERS, 10)]);
    guest.notify(0);
    assert!(guest.needs_reset());
    assert_eq!(guest.take_used(0), []);
}
