//! `moat-vmm`: one microVM, in one process.
//!
//! Exit codes: the guest's own (0 when it switched off without one), 1 for an error, 121 when the guest
//! asked for a reset, 122 when its processor gave up (a triple fault).

mod cli;
mod command;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // The help could not be printed either: there is nothing more to say.
            let _ = error.print();
            return ExitCode::from(u8::from(failed));
        }
    };
    match command::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let hint = error.hint_text().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            say(&format!("{error}{hint}"));
            ExitCode::from(error.code())
        }
    }
}

/// One line for the user.
fn say(line: &str) {
    // A closed standard error leaves nowhere to complain.
    let _ = writeln!(std::io::stderr(), "moat-vmm: {line}");
}
