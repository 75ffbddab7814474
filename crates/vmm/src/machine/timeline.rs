//! Where the time of a start goes, step by step.

use std::fmt;
use std::time::{Duration, Instant};

/// Steps with the time that each took.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Timeline {
    /// Starts now.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, steps: Vec::new() }
    }

    /// A step has ended.
    pub fn mark(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.push((step, now - self.last));
        self.last = now;
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, time) in &self.steps {
            writeln!(f, "{:>8} us  {step}", time.as_micros())?;
        }
        writeln!(f, "{:>8} us  in all", (self.last - self.began).as_micros())
    }
}
