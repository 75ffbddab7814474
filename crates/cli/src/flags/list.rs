//! The flags that every command has which lists objects, or removes those that nothing uses.

use clap::Args;
use moat_engine::Timestamp;

use crate::command::logs::time;
use crate::failure::Result;
use crate::filter::Filters;
use crate::format::Format;
use crate::session::confirm;

/// The flags of `ls` of any kind of object.
#[derive(Args, Debug)]
pub(crate) struct ListFlags {
    /// Only what fits, as in dangling=true or label=NAME
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Form of the answer: table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Only ids or names
    #[arg(short, long)]
    quiet: bool,
}

impl ListFlags {
    /// The form that was asked for.
    pub(crate) fn format(&self) -> Result<Format> {
        Format::parse(self.format.as_deref())
    }

    /// Whether the form that was asked for has this column: what is costly to find out is only for those who name it.
    pub(crate) fn names(&self, column: &str) -> bool {
        self.format.as_deref().is_some_and(|form| form == "json" || form.contains(column))
    }

    /// What was asked for, of the filters that there are.
    pub(crate) fn filters(&self, known: &[&'static str]) -> Result<Filters> {
        Filters::parse(&self.filter, known)
    }

    /// Only ids or names are to be printed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet && self.format.is_none()
    }
}

/// The flags of `prune` of any kind of object.
#[derive(Args, Debug)]
pub(crate) struct PruneFlags {
    /// Only what fits: label=NAME[=VALUE], and until=TIME where it was made at some time
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl PruneFlags {
    /// What was asked for, of the filters that there are.
    pub(crate) fn filters(&self, known: &[&'static str]) -> Result<Filters> {
        Filters::parse(&self.filter, known)
    }

    /// The filters by which most are chosen, and the time of `until`.
    pub(crate) fn chosen(&self, known: &[&'static str]) -> Result<(Filters, Option<Timestamp>)> {
        let filters = self.filters(known)?;
        let until = time("--filter until", filters.of("until").first().map(String::as_str))?;
        Ok((filters, until))
    }

    /// Whether it is to be done; asks, unless it was said already. `what` ends the sentence.
    pub(crate) fn agreed(&self, what: &str) -> Result<bool> {
        if self.force { Ok(true) } else { confirm(&format!("This removes {what}.")) }
    }
}
