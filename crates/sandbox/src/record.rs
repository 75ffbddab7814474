//! What was done and how long it took: the waterfall that `--explain` prints.

use std::fmt::Write;
use std::time::{Duration, Instant};

use moat_linux::shared::Counters;

use crate::Result;
use crate::step::{Place, Step};

/// After which step the runtime stops itself, so that a test can kill it exactly there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After the n-th step that the runtime performs.
    Runtime(usize),
    /// After the plan's step of this index, if it is init's.
    Init(usize),
}

impl Stop {
    /// Parses `runtime:N` or `init:N`.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, number) = text.split_once(':')?;
        let number = number.parse().ok()?;
        match place {
            "runtime" => Some(Self::Runtime(number)),
            "init" => Some(Self::Init(number)),
            _ => None,
        }
    }
}

/// When init's steps began and how long they took, in memory that it shares with the runtime.
#[derive(Debug)]
pub(crate) struct StepTimes {
    /// Where its clock begins.
    origin: Instant,
    /// Two counters a step, nanoseconds plus one, so that 0 is "not there": beginning and duration. None where nobody
    /// will ask.
    counters: Option<Counters>,
}

impl StepTimes {
    /// Room for the steps of a plan, if `recorder` keeps them.
    pub(crate) fn new(steps: usize, recorder: &Recorder) -> Result<Self> {
        let counters = recorder.explain.then(|| Counters::new(2 * steps)).transpose()?;
        Ok(Self { origin: Instant::now(), counters })
    }

    /// Notes that a step begins, and gives what [`Self::ended`] wants.
    pub(crate) fn begin(&self, index: usize) -> Option<Instant> {
        let counters = self.counters.as_ref()?;
        let start = Instant::now();
        counters.set(2 * index, start.duration_since(self.origin).as_nanos() as u64 + 1);
        Some(start)
    }

    /// Notes that a step has ended.
    pub(crate) fn ended(&self, index: usize, start: Option<Instant>) {
        if let (Some(counters), Some(start)) = (&self.counters, start) {
            counters.set(2 * index + 1, start.elapsed().as_nanos() as u64 + 1);
        }
    }

    fn get(&self, index: usize) -> Option<(Instant, Duration)> {
        let counters = self.counters.as_ref()?;
        let begin = counters.get(2 * index).checked_sub(1)?;
        let duration = counters.get(2 * index + 1).saturating_sub(1);
        Some((self.origin + Duration::from_nanos(begin), Duration::from_nanos(duration)))
    }
}

#[derive(Debug)]
struct Row {
    place: Place,
    what: String,
    by_hand: String,
    begin: Duration,
    duration: Duration,
}

/// Collects the steps that were performed.
#[derive(Debug)]
pub struct Recorder {
    origin: Instant,
    explain: bool,
    performed: usize,
    /// Where to stop, if anywhere.
    pub stop: Option<Stop>,
    rows: Vec<Row>,
}

impl Recorder {
    /// A recorder; rows are kept only if they will be printed.
    pub fn new(explain: bool, stop: Option<Stop>) -> Self {
        Self { origin: Instant::now(), explain, performed: 0, stop, rows: Vec::new() }
    }

    /// Performs a step of the runtime's that is no step of a plan.
    pub fn step<T>(&mut self, what: &str, by_hand: &str, perform: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = perform()?;
        self.performed(start, start.elapsed(), || (what.to_owned(), by_hand.to_owned()));
        Ok(result)
    }

    /// Notes a step that the runtime has performed: what it was, and what does the same by hand.
    pub(crate) fn performed(
        &mut self,
        start: Instant,
        duration: Duration,
        name: impl FnOnce() -> (String, String),
    ) {
        if self.explain {
            let (what, by_hand) = name();
            let begin = start.duration_since(self.origin);
            self.rows.push(Row { place: Place::Runtime, what, by_hand, begin, duration });
        }
        self.performed += 1;
        if self.stop == Some(Stop::Runtime(self.performed)) {
            stop_here();
        }
    }

    /// Adds the steps that init has performed.
    pub(crate) fn add_init(&mut self, steps: &[Step], times: &StepTimes) {
        if !self.explain {
            return;
        }
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.place == Place::Init) {
            let Some((start, duration)) = times.get(index) else { continue };
            let (what, by_hand) = (step.action.to_string(), step.action.by_hand());
            let begin = start.duration_since(self.origin);
            self.rows.push(Row { place: Place::Init, what, by_hand, begin, duration });
        }
    }

    /// The waterfall as text: who, when, how long, what, and the command that does the same by hand.
    pub fn waterfall(&self) -> String {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| row.begin);
        let width = rows.iter().map(|row| row.what.chars().count().min(60)).max().unwrap_or(0);
        let mut text = String::from("who      at us    for us  step\n");
        for row in rows {
            let place = match row.place {
                Place::Runtime => "runtime",
                Place::Init => "init",
            };
            let at = row.begin.as_micros();
            let duration = row.duration.as_secs_f64() * 1e6;
            let what = &row.what;
            let hand = if row.by_hand.is_empty() { String::new() } else { format!("  # {}", row.by_hand) };
            let _ = writeln!(text, "{place:<8}{at:>6}  {duration:>8.1}  {what:<width$}{hand}");
        }
        let _ = writeln!(text, "total   {:>6} us", self.origin.elapsed().as_micros());
        text
    }
}

/// Stops this process as ^Z would, until it is continued or killed.
pub(crate) fn stop_here() {
    let own = rustix::process::getpid();
    let _ = rustix::process::kill_process(own, rustix::process::Signal::STOP);
}
