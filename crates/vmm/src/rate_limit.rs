//! A token bucket: so many bytes and so many operations per second, with a burst on top.
//!
//! One operation larger than the burst passes when the bucket is full and leaves a debt. Time comes from
//! outside; there is no clock and no timer here.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A wish for a limit; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitSpec {
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Operations per second.
    pub operations_per_s: u64,
    /// What a rested bucket gives at once, as time: this many milliseconds' worth. At least 1.
    pub burst_ms: u32,
}

/// What is left in the buckets, in thousandths of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitState {
    /// Of bytes.
    pub bytes_milli: i64,
    /// Of operations.
    pub operations_milli: i64,
}

/// One bucket.
#[derive(Clone, Debug)]
struct Bucket {
    per_s: u64,
    burst_milli: i64,
    left_milli: i64,
    filled_at: Option<Instant>,
}

/// No budget is larger than what takes this long to earn, which also keeps every product in its type.
const LONGEST: Duration = Duration::from_secs(3600);
const MOST_PER_S: u64 = 1 << 40;
/// The debt that the largest operation, one of 4 GiB, leaves.
const DEEPEST_MILLI: i64 = 1000 << 32;

impl Bucket {
    fn new(per_s: u64, burst_ms: u32) -> Option<Self> {
        if per_s == 0 {
            return None;
        }
        let per_s = per_s.min(MOST_PER_S);
        let burst_milli = (per_s * u64::from(burst_ms.clamp(1, 600_000))).max(1000) as i64;
        Some(Self { per_s, burst_milli, left_milli: burst_milli, filled_at: None })
    }

    fn fill(&mut self, now: Instant) {
        let before = *self.filled_at.get_or_insert(now);
        let passed = now.saturating_duration_since(before).min(LONGEST);
        let earned = (u128::from(self.per_s) * passed.as_micros() / 1000) as i64;
        // What is less than a thousandth of a token stays to be earned.
        if earned > 0 {
            self.left_milli = self.left_milli.saturating_add(earned).min(self.burst_milli);
            self.filled_at = Some(now);
        }
    }

    /// When `tokens` will be there, or as many as ever are; `None` if that is now.
    fn ready_at(&self, now: Instant, tokens: u64) -> Option<Instant> {
        let needed = milli(tokens).min(self.burst_milli);
        if self.left_milli >= needed {
            return None;
        }
        let missing = u128::from(needed.abs_diff(self.left_milli));
        let wait_us = (missing * 1000).div_ceil(u128::from(self.per_s));
        Some(now + Duration::from_micros(wait_us.min(LONGEST.as_micros()) as u64))
    }

    fn spend(&mut self, tokens: u64) {
        self.left_milli = self.left_milli.saturating_sub(milli(tokens));
    }
}

fn milli(tokens: u64) -> i64 {
    i64::try_from(tokens.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// A limit that is live.
#[derive(Clone, Debug, Default)]
pub struct RateLimit {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    wake_at: Option<Instant>,
}

impl RateLimit {
    /// A limit with full buckets.
    pub fn new(spec: RateLimitSpec) -> Self {
        Self {
            bytes: Bucket::new(spec.bytes_per_s, spec.burst_ms),
            operations: Bucket::new(spec.operations_per_s, spec.burst_ms),
            wake_at: None,
        }
    }

    /// No limit.
    pub fn none() -> Self {
        Self::default()
    }

    /// Pays for one operation of `bytes`, or says no and remembers when to ask again.
    pub fn take(&mut self, now: Instant, bytes: u64) -> bool {
        let mut at: Option<Instant> = None;
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                at = at.max(bucket.ready_at(now, tokens));
            }
        }
        if let Some(at) = at {
            // Several may wait; the first to be able to go on wakes all.
            self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
            return false;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.spend(1);
        }
        true
    }

    /// When something that was refused may be asked for again.
    pub fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Nobody waits any more, or all that wait ask again now.
    pub fn wake_no_more(&mut self) {
        self.wake_at = None;
    }

    /// What is left.
    pub fn save(&self) -> RateLimitState {
        let left = |bucket: &Option<Bucket>| bucket.as_ref().map_or(0, |bucket| bucket.left_milli);
        RateLimitState { bytes_milli: left(&self.bytes), operations_milli: left(&self.operations) }
    }

    /// Takes what was left; never more than the burst.
    pub fn restore(&mut self, state: &RateLimitState) {
        let set = |bucket: &mut Option<Bucket>, left: i64| {
            if let Some(bucket) = bucket {
                bucket.left_milli = left.clamp(-DEEPEST_MILLI, bucket.burst_milli);
            }
        };
        set(&mut self.bytes, state.bytes_milli);
        set(&mut self.operations, state.operations_milli);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(bytes_per_s: u64, operations_per_s: u64, burst_ms: u32) -> RateLimit {
        RateLimit::new(RateLimitSpec { bytes_per_s, operations_per_s, burst_ms })
    }

    #[test]
    fn what_passes_in_a_second_is_the_rate_and_the_burst() {
        let start = Instant::now();
        let mut limit = limit(1_000_000, 0, 100);
        let mut passed = 0_u64;
        for us in (0..1_000_000).step_by(50) {
            if limit.take(start + Duration::from_micros(us), 1500) {
                passed += 1500;
            }
        }
        assert!((1_099_000..=1_103_000).contains(&passed), "{passed}");
    }

    #[test]
    fn the_time_to_ask_again_is_the_earliest_that_helps() {
        let start = Instant::now();
        let mut limit = limit(0, 10, 1);
        assert!(limit.take(start, 0));
        assert!(!limit.take(start, 0));
        let wake = limit.wake_at().unwrap();
        assert!(!limit.take(wake - Duration::from_millis(1), 0));
        assert_eq!(limit.wake_at(), Some(wake));
        limit.wake_no_more();
        assert!(limit.take(wake, 0));
        assert!(limit.wake_at().is_none());
    }

    #[test]
    fn one_operation_beyond_the_burst_passes_and_is_paid_for() {
        let start = Instant::now();
        let mut limit = limit(1000, 0, 1);
        assert!(limit.take(start, 1 << 40));
        assert!(!limit.take(start + Duration::from_secs(1), 1));
    }

    #[test]
    fn no_limit_never_refuses() {
        let mut limit = RateLimit::none();
        assert!((0..10_000).all(|_| limit.take(Instant::now(), u64::MAX)));
    }

    #[test]
    fn a_state_from_elsewhere_gives_no_more_than_the_burst() {
        let mut limit = limit(1000, 0, 1000);
        limit.restore(&RateLimitState { bytes_milli: i64::MAX, operations_milli: i64::MIN });
        assert_eq!(limit.save().bytes_milli, 1_000_000);
    }
}
