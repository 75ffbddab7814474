//! `moat`: what people type, over the engine.
//!
//! A command is a struct whose fields are its flags ([`line::Verb`]); one table ([`command`]) makes the parser,
//! the help, completions and manual pages of all of them. What is printed goes through [`format`], what fails
//! comes back as a [`failure::Failure`] and is printed once, here.
#![cfg_attr(not(test), no_main)]

mod attached;
mod changes;
mod command;
mod detach;
mod failure;
mod filter;
mod flags;
mod format;
mod host;
mod line;
mod progress;
mod session;
mod shape;
mod terminal;

/// As for Docker a wrong flag is a fault of 125, whatever the command; one that is missing or unknown is 1.
fn usage_code(error: &clap::Error) -> i32 {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        ErrorKind::InvalidSubcommand | ErrorKind::MissingSubcommand | ErrorKind::MissingRequiredArgument => 1,
        _ => i32::from(failure::ENGINE),
    }
}

#[cfg(not(test))]
moat_linux::entry!(run);

#[cfg_attr(test, expect(dead_code, reason = "the entry is not part of the tests"))]
fn run() -> i32 {
    if std::env::args_os().nth(1).is_some_and(|word| word == session::RESOLVER) {
        return match moat_engine::net::resolver::serve() {
            Ok(()) => 0,
            Err(error) => {
                failure::Failure::new(error.to_string()).print();
                1
            }
        };
    }
    match line::parse(std::env::args_os()).and_then(line::Call::run) {
        Ok(code) => code,
        Err(error) => {
            // The help could not be printed either: there is nothing more to say.
            let _ = error.print();
            usage_code(&error)
        }
    }
}
