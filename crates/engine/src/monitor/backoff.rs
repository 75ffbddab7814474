//! How long a workload that ended waits before it is started again.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// A run of this length makes the next pause the first again.
const LONG_RUN: Duration = Duration::from_secs(10);

/// Doubles the pause with each run that was short.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// The pause after a run.
    pub(super) fn pause(&mut self, run: Duration) -> Duration {
        let pause = match self.last {
            Some(last) if run < LONG_RUN => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some(pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_double_the_pause_and_a_long_one_resets_it() {
        let mut backoff = Backoff::default();
        let mut pause = |run_ms| backoff.pause(Duration::from_millis(run_ms)).as_millis();
        assert_eq!([pause(0), pause(0), pause(0)], [100, 200, 400]);
        for _ in 0..20 {
            pause(0);
        }
        assert_eq!(pause(9_999), 60_000);
        assert_eq!([pause(10_000), pause(0)], [100, 200]);
    }
}
