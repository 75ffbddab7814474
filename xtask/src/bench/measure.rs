//! Taking turns, and what becomes of the samples.

use std::time::Instant;

use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Ms,
    KiB,
    MegabitsPerS,
    Objects,
}

impl Unit {
    /// As it stands behind a number.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::KiB => "KiB",
            Self::MegabitsPerS => "Mbit/s",
            Self::Objects => "objects",
        }
    }
}

/// The samples of one contender on one course.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) course: &'static str,
    pub(super) unit: Unit,
    pub(super) contender: &'static str,
    values: Vec<f64>,
}

impl Sample {
    /// The value that this share of the samples does not exceed.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        // The product is a small positive number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let place = (last as f64 * share).round() as usize;
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(super) fn count(&self) -> usize {
        self.values.len()
    }
}

#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) samples: Vec<Sample>,
}

impl Figures {
    pub(super) fn add(&mut self, course: &'static str, unit: Unit, contender: &'static str, value: f64) {
        let same = |sample: &&mut Sample| sample.course == course && sample.contender == contender;
        if let Some(sample) = self.samples.iter_mut().find(same) {
            sample.values.push(value);
            return;
        }
        self.samples.push(Sample { course, unit, contender, values: vec![value] });
    }

    pub(super) fn time(
        &mut self,
        course: &'static str,
        contender: &'static str,
        action: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        action()?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        self.add(course, Unit::Ms, contender, ms);
        Ok(())
    }

    pub(super) fn median(&self, course: &str, contender: &str) -> Option<f64> {
        let mut samples = self.samples.iter();
        let found = samples.find(|one| one.course == course && one.contender == contender)?;
        Some(found.median())
    }

    /// The courses in the order in which they were run.
    pub(super) fn courses(&self) -> Vec<&'static str> {
        let mut courses = Vec::new();
        for sample in &self.samples {
            if !courses.contains(&sample.course) {
                courses.push(sample.course);
            }
        }
        courses
    }
}

/// Everybody once in each round, in an order that chance decides but that repeats from run to
/// run: what one contender leaves behind (a kernel that is still busy taking a namespace apart, a
/// grace period that has just ended) then meets each of the others equally often.
pub(super) fn turns<C>(
    rounds: usize,
    contenders: &[&C],
    mut turn: impl FnMut(&C) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<&C> = contenders.to_vec();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        chance.shuffle(&mut order);
        order.iter().try_for_each(|one| turn(one))?;
    }
    Ok(())
}

/// Marsaglia's xorshift; all that an order needs.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The remainder is below the limit, so it fits again.
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample { course: "run", unit: Unit::Ms, contender: "x", values: values.to_vec() }
    }

    #[test]
    fn quantiles() {
        let sample = sample(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(sample.median(), 3.0);
        assert_eq!(sample.quantile(0.9), 5.0);
        assert_eq!(sample.quantile(0.0), 1.0);
    }

    #[test]
    fn no_sample_has_no_median() {
        assert!(sample(&[]).median().is_nan());
    }

    #[test]
    fn each_follows_each() {
        let (mut order, mut chance, mut pairs) = ([0usize, 1, 2, 3], Chance(1), [[0; 4]; 4]);
        for _ in 0..1200 {
            chance.shuffle(&mut order);
            for pair in order.windows(2) {
                pairs[pair[0]][pair[1]] += 1;
            }
        }
        for (one, row) in pairs.iter().enumerate() {
            for (other, count) in row.iter().enumerate().filter(|(other, _)| *other != one) {
                assert!((200..400).contains(count), "{one} before {other}: {count}");
            }
        }
    }
}
