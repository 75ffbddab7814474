//! `moat logs`.

use clap::Args;
use moat_engine::{LogQuery, Stream, Timestamp};
use rustix::stdio::{stderr, stdout};

use crate::attached::write_all;
use crate::failure::{Failure, Result};
use crate::flags::duration;
use crate::line::Verb;
use crate::session::Session;

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// Go on with what it writes
    #[arg(short, long)]
    follow: bool,
    /// Print when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Print the workload's labels and variables that its log carries (none do: --log-opt labels is not supported)
    #[arg(long, hide = true)]
    details: bool,
    /// Only from that time on, as 2026-01-02T15:04:05Z or how long ago, as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only until that time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// So many lines at the end, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Workload
    workload: String,
}

/// How many lines.
#[derive(Clone, Copy, Debug)]
struct Tail(Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" | "" => Ok(Tail(None)),
        // As for Docker, a negative number is no limit.
        number => match number.parse::<i64>() {
            Ok(lines) => Ok(Tail(usize::try_from(lines).ok())),
            Err(_) => Err(format!("{number:?} is neither a number of lines nor all")),
        },
    }
}

/// A time that was given to a flag.
pub(crate) fn time(flag: &str, text: Option<&str>) -> Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let nanoseconds = duration::parse_time(text, jiff::Timestamp::now())
        .map_err(|error| Failure::new(format!("{flag}: {error}")))?;
    let nanoseconds = u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX);
    Ok(Some(Timestamp::from(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanoseconds))))
}

impl Verb for Logs {
    const NAME: &'static str = "logs";
    const ABOUT: &'static str = "Print the output of a workload";

    fn run(self, session: &Session) -> Result<u8> {
        if self.details {
            return Err(Failure::new("--details: logs carry no labels and variables"));
        }
        let workload = session.engine()?.find(&self.workload)?;
        let query = LogQuery {
            follow: self.follow,
            since: time("--since", self.since.as_deref())?,
            until: time("--until", self.until.as_deref())?,
            tail: self.tail.0,
        };
        for line in workload.logs(query)? {
            let line = line?;
            let to = if line.stream == Stream::Stderr { stderr() } else { stdout() };
            let mut bytes = Vec::with_capacity(line.text.len() + 40);
            if self.timestamps {
                bytes.extend_from_slice(format!("{} ", line.time).as_bytes());
            }
            bytes.extend_from_slice(&line.text);
            write_all(to, &bytes)?;
        }
        Ok(0)
    }
}
