//! The figures as a table, and what they were promised to be.

use std::fmt::Write;

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Options;
use super::measure::{Figures, Unit};

/// The order of the lines; measured they are in an order that changes.
const ORDER: [&str; 7] = ["floor", "bare", "moat", "crun", "runc", "podman", "docker"];

/// A promise about moat's median.
pub(super) struct Limit {
    pub(super) course: &'static str,
    pub(super) bound: Bound,
}

pub(super) enum Bound {
    /// At most so many times another's median.
    Of(f64, &'static str),
    /// At least so many times another's median.
    AtLeastOf(f64, &'static str),
    /// At most so many times the median on another course.
    OfCourse(f64, &'static str),
    /// At most so much, in the unit of the course.
    Value(f64),
}

/// Moat's median is at most so many times another's.
pub(super) const fn limit(course: &'static str, factor: f64, than: &'static str) -> Limit {
    Limit { course, bound: Bound::Of(factor, than) }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bound {
            Bound::Of(factor, than) => write!(to, "{}: at most {factor:.3} of {than}'s", self.course),
            Bound::AtLeastOf(factor, than) => {
                write!(to, "{}: at least {factor:.3} of {than}'s", self.course)
            }
            Bound::OfCourse(factor, other) => {
                write!(to, "{}: at most {factor:.3} of `{other}`", self.course)
            }
            Bound::Value(value) => write!(to, "{}: at most {value}", self.course),
        }
    }
}

struct Verdict {
    limit: &'static Limit,
    /// Nothing when one of the two was not measured.
    measured: Option<f64>,
}

impl Verdict {
    fn passed(&self) -> bool {
        self.measured.is_some_and(|measured| match self.limit.bound {
            Bound::AtLeastOf(least, _) => measured >= least,
            Bound::Of(most, _) | Bound::OfCourse(most, _) | Bound::Value(most) => measured <= most,
        })
    }
}

fn verdicts(figures: &Figures, limits: &'static [Limit]) -> Vec<Verdict> {
    let verdict = |limit: &'static Limit| {
        let moat = figures.median(limit.course, "moat");
        let measured = match limit.bound {
            Bound::Of(_, than) | Bound::AtLeastOf(_, than) => {
                moat.zip(figures.median(limit.course, than)).map(|(moat, other)| moat / other)
            }
            Bound::OfCourse(_, other) => {
                moat.zip(figures.median(other, "moat")).map(|(moat, other)| moat / other)
            }
            Bound::Value(_) => moat,
        };
        Verdict { limit, measured }
    };
    limits.iter().map(verdict).collect()
}

/// Prints the figures, one run step by step, and which limits hold; writes them where that was asked for.
pub(super) fn publish(
    figures: &Figures,
    promised: &'static [Limit],
    explained: Option<(&str, String)>,
    options: &Options,
) -> Result<ExitCode> {
    print!("{}", table(figures));
    if let Some((title, waterfall)) = explained {
        println!("\nOne `{title}`:\n{}", waterfall.trim_end());
    }
    let verdicts = verdicts(figures, promised);
    print!("\n{}", limits(&verdicts));
    if let Some(file) = &options.json {
        std::fs::write(file, json(figures, &verdicts).to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let kept = verdicts.iter().all(Verdict::passed);
    Ok(if options.gate && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(figures: &Figures) -> String {
    let mut text =
        format!("{:<29}{:<7}{:>10}{:>10}{:>6}{:>10}\n", "course", "who", "median", "p90", "n", "moat is");
    for course in figures.courses() {
        let moat = figures.median(course, "moat");
        let mut samples: Vec<_> = figures.samples.iter().filter(|sample| sample.course == course).collect();
        samples.sort_by_key(|sample| ORDER.iter().position(|name| *name == sample.contender));
        for sample in samples {
            let unit = sample.unit.name();
            let show = |value: f64| match sample.unit {
                Unit::Ms => format!("{value:.2}"),
                Unit::KiB | Unit::MegabitsPerS | Unit::Objects => format!("{value:.0}"),
            };
            let ratio = moat.filter(|_| sample.contender != "moat");
            let ratio = ratio.map_or(String::new(), |moat| format!("{:.2} x", moat / sample.median()));
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "{course:<29}{:<7}{:>10}{:>10}{:>6}{ratio:>10}  {unit}",
                sample.contender,
                show(sample.median()),
                show(sample.quantile(0.9)),
                sample.count(),
            );
        }
    }
    text
}

fn limits(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let word = if verdict.passed() { "PASS" } else { "FAIL" };
        let measured = match verdict.measured {
            Some(measured) => format!("{measured:.3}"),
            None => "not measured".to_owned(),
        };
        let _ = writeln!(text, "{word}  {}: {measured}", verdict.limit);
    }
    text
}

fn json(figures: &Figures, verdicts: &[Verdict]) -> Value {
    let sample = |sample: &super::measure::Sample| {
        json!({
            "course": sample.course,
            "contender": sample.contender,
            "unit": sample.unit.name(),
            "median": sample.median(),
            "p90": sample.quantile(0.9),
            "count": sample.count(),
        })
    };
    let verdict = |verdict: &Verdict| {
        json!({
            "limit": verdict.limit.to_string(),
            "measured": verdict.measured,
            "passed": verdict.passed(),
        })
    };
    json!({
        "figures": figures.samples.iter().map(sample).collect::<Vec<_>>(),
        "limits": verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}
