//! `moat man FOLDER`: a manual page for each command.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::{Context, Result};
use crate::line::{self, Verb};
use crate::session::Session;

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Folder for the pages; it is made where it is missing
    folder: PathBuf,
}

impl Verb for Man {
    const NAME: &'static str = "man";
    const ABOUT: &'static str = "Write manual pages";

    fn run(self, _: &Session) -> Result<u8> {
        std::fs::create_dir_all(&self.folder).context(|| self.folder.display().to_string())?;
        let mut line = line::command_line();
        line.build();
        pages(&line, "moat", &self.folder)?;
        Ok(0)
    }
}

/// The page of a command, and those of the commands below it: `moat-container-ls.1`.
fn pages(command: &clap::Command, name: &str, folder: &Path) -> Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    let file = folder.join(format!("{name}.1"));
    std::fs::write(&file, page).context(|| file.display().to_string())?;
    command
        .get_subcommands()
        .try_for_each(|below| pages(below, &format!("{name}-{}", below.get_name()), folder))
}
