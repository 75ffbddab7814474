//! `moat-runtime`: the OCI runtime command line that containerd, Podman and CRI-O drive, over the sandbox.
//!
//! Verbs, flags, JSON and exit codes are runc's; what is not supported is refused with a sentence.

mod cli;
mod command;
mod foreground;
mod log;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    moat_linux::process::expect_children();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // The help could not be printed either: there is nothing more to say.
            let _ = error.print();
            return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let log = match log::Log::open(&cli.global) {
        Ok(log) => log,
        Err(error) => return log::Log::stderr().fail(&error),
    };
    match command::run(&cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => log.fail(&error),
    }
}
