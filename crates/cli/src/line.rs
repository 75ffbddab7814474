//! The command line: one table from which the parser, the help, completions and man pages are made.
//!
//! The arguments of a command are put together only when it is the one that was given: putting together all of
//! them would take longer than all else that happens before a container is made.

use std::ffi::OsString;

use clap::{ArgAction, ArgMatches, Args, FromArgMatches};

use crate::command::{COMMANDS, GROUPS};
use crate::failure::Result;
use crate::session::{Global, Session};

/// A command.
pub(crate) trait Verb: Args {
    /// Its name at the top.
    const NAME: &'static str;
    /// What it does, in one line.
    const ABOUT: &'static str;
    /// The exit code when Moat itself fails.
    const FAILED: u8 = 1;

    /// Does it, and gives the exit code.
    fn run(self, session: &Session) -> Result<u8>;
}

/// A line of the table.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    about: &'static str,
    aliases: &'static [&'static str],
    failed: u8,
    arguments: fn(clap::Command) -> clap::Command,
    run: fn(&mut ArgMatches, &Session) -> std::result::Result<Result<u8>, clap::Error>,
}

/// Commands about one kind of object.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) entries: &'static [Entry],
}

pub(crate) const fn entry<V: Verb>() -> Entry {
    Entry {
        name: V::NAME,
        about: V::ABOUT,
        aliases: &[],
        failed: V::FAILED,
        arguments: arguments::<V>,
        run: |matches, session| Ok(V::from_arg_matches_mut(matches)?.run(session)),
    }
}

/// The same command under another name, as in `moat container ls`.
pub(crate) const fn named<V: Verb>(name: &'static str, aliases: &'static [&'static str]) -> Entry {
    Entry { name, aliases, ..entry::<V>() }
}

fn arguments<V: Verb>(command: clap::Command) -> clap::Command {
    let command = V::augment_args(command).args_override_self(true).mut_args(flag_with_value);
    // What is said of flags that several commands share is not about the command.
    command.about(V::ABOUT).long_about(None)
}

/// Docker's flags without a value take one after an equals sign: `--rm=false`.
fn flag_with_value(arg: clap::Arg) -> clap::Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .value_parser(crate::flags::boolean)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .value_name("BOOL")
            .hide_possible_values(true),
        _ => arg,
    }
}

/// The command line as clap sees it.
pub(crate) fn command_line() -> clap::Command {
    let program = clap::Command::new("moat")
        .about("Containers and microVMs behind one command line")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true);
    Global::augment_args(program).subcommands(COMMANDS.iter().map(Entry::subcommand)).subcommands(
        GROUPS.iter().map(|group| {
            clap::Command::new(group.name)
                .about(group.about)
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .subcommands(group.entries.iter().map(Entry::subcommand))
        }),
    )
}

impl Entry {
    fn subcommand(&self) -> clap::Command {
        let command = clap::Command::new(self.name)
            .about(self.about)
            .visible_aliases(self.aliases)
            .defer(self.arguments);
        // -h is the host name for these two, as it is for Docker.
        match self.name {
            "run" | "create" | "history" => command.disable_help_flag(true).arg(
                clap::Arg::new("help").long("help").action(ArgAction::Help).help("Print help").global(false),
            ),
            _ => command,
        }
    }
}

/// What was asked for.
pub(crate) struct Call {
    pub(crate) global: Global,
    entry: &'static Entry,
    matches: ArgMatches,
}

impl Call {
    /// Does it; gives the exit code.
    pub(crate) fn run(mut self) -> std::result::Result<i32, clap::Error> {
        let session = Session::new(self.global);
        Ok(match (self.entry.run)(&mut self.matches, &session)? {
            Ok(code) => i32::from(code),
            Err(failure) => {
                failure.print();
                i32::from(failure.exit_code(self.entry.failed))
            }
        })
    }
}

/// Parses the command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> std::result::Result<Call, clap::Error> {
    let mut line = command_line();
    let mut matches = line.try_get_matches_from_mut(arguments)?;
    let global = Global::from_arg_matches_mut(&mut matches)?;
    let (name, matches) = matches.remove_subcommand().ok_or_else(|| missing(&mut line))?;
    if let Some(entry) = find(COMMANDS, &name) {
        return Ok(Call { global, entry, matches });
    }
    let mut matches = matches;
    let (verb, matches) = matches.remove_subcommand().ok_or_else(|| missing(&mut line))?;
    let group = GROUPS.iter().find(|group| group.name == name);
    match group.and_then(|group| find(group.entries, &verb)) {
        Some(entry) => Ok(Call { global, entry, matches }),
        None => Err(missing(&mut line)),
    }
}

fn find(entries: &'static [Entry], name: &str) -> Option<&'static Entry> {
    entries.iter().find(|entry| entry.name == name)
}

fn missing(line: &mut clap::Command) -> clap::Error {
    line.error(clap::error::ErrorKind::MissingSubcommand, "a command is missing")
}
