//! `moat completions SHELL`: the script that completes commands and flags.

use clap::Args;
use clap_complete::Shell;

use crate::failure::Result;
use crate::line::{self, Verb};
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Verb for Completions {
    const NAME: &'static str = "completions";
    const ABOUT: &'static str = "Print the script that completes commands in a shell";

    fn run(self, _: &Session) -> Result<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut line::command_line(), "moat", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
