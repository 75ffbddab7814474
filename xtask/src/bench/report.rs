//! The figures as a table, and what they were promised to be.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::{Figures, Unit};

/// The order of the lines; measured they are in an order that changes.
const ORDER: [&str; 4] = ["floor", "moat", "crun", "runc"];

/// A promise: moat's median is at most so many times another's.
struct Limit {
    course: &'static str,
    than: &'static str,
    factor: f64,
}

const LIMITS: &[Limit] = &[
    Limit { course: "run", than: "crun", factor: 0.5 },
    Limit { course: "run", than: "runc", factor: 0.2 },
    Limit { course: "run", than: "floor", factor: 2.5 },
    Limit { course: "100 containers, 8 at a time", than: "crun", factor: 0.5 },
    Limit { course: "peak memory of run", than: "crun", factor: 1.0 },
    Limit { course: "exec", than: "crun", factor: 0.5 },
];

pub(super) struct Verdict {
    limit: &'static Limit,
    /// Nothing when one of the two was not measured.
    measured: Option<f64>,
}

impl Verdict {
    pub(super) fn passed(&self) -> bool {
        self.measured.is_some_and(|measured| measured <= self.limit.factor)
    }
}

pub(super) fn verdicts(figures: &Figures) -> Vec<Verdict> {
    let verdict = |limit: &'static Limit| {
        let moat = figures.median(limit.course, "moat");
        let other = figures.median(limit.course, limit.than);
        Verdict { limit, measured: moat.zip(other).map(|(moat, other)| moat / other) }
    };
    LIMITS.iter().map(verdict).collect()
}

pub(super) fn table(figures: &Figures) -> String {
    let mut text =
        format!("{:<29}{:<7}{:>10}{:>10}{:>6}{:>10}\n", "course", "who", "median", "p90", "n", "moat is");
    for course in figures.courses() {
        let moat = figures.median(course, "moat");
        let mut samples: Vec<_> = figures.samples.iter().filter(|sample| sample.course == course).collect();
        samples.sort_by_key(|sample| ORDER.iter().position(|name| *name == sample.contender));
        for sample in samples {
            let unit = if sample.unit == Unit::Ms { "ms" } else { "KiB" };
            let show = |value: f64| match sample.unit {
                Unit::Ms => format!("{value:.2}"),
                Unit::KiB => format!("{value:.0}"),
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

pub(super) fn limits(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let Limit { course, than, factor } = verdict.limit;
        let word = if verdict.passed() { "PASS" } else { "FAIL" };
        let measured = match verdict.measured {
            Some(measured) => format!("{measured:.2}"),
            None => "not measured".to_owned(),
        };
        let _ = writeln!(text, "{word}  {course}: at most {factor} of {than}'s: {measured}");
    }
    text
}

pub(super) fn json(figures: &Figures, verdicts: &[Verdict]) -> Value {
    let sample = |sample: &super::measure::Sample| {
        json!({
            "course": sample.course,
            "contender": sample.contender,
            "unit": if sample.unit == Unit::Ms { "ms" } else { "KiB" },
            "median": sample.median(),
            "p90": sample.quantile(0.9),
            "count": sample.count(),
        })
    };
    let verdict = |verdict: &Verdict| {
        json!({
            "course": verdict.limit.course,
            "than": verdict.limit.than,
            "at_most": verdict.limit.factor,
            "measured": verdict.measured,
            "passed": verdict.passed(),
        })
    };
    json!({
        "figures": figures.samples.iter().map(sample).collect::<Vec<_>>(),
        "limits": verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}
