//! What a workload has written: `cp`, `diff`, `export`, `commit`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use moat_engine::image::{self, CommitSpec, Reference};
use moat_engine::{CopyOptions, Workload};

use super::archive::write_archive;
use crate::changes;
use crate::failure::{Context, Failure, Result};
use crate::line::Verb;
use crate::session::{Session, print};
use crate::terminal;

#[derive(Args, Debug)]
pub(crate) struct Copy {
    /// Keep owners, set-user-ID bits and attributes
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link in the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Accepted for scripts: how it goes is not shown
    #[arg(short, long)]
    quiet: bool,
    /// WORKLOAD:PATH, a path of the host, or - for a tar archive on standard input
    source: String,
    /// WORKLOAD:PATH, a path of the host, or - for a tar archive on standard output
    destination: String,
}

/// One end of a copy.
enum End<'a> {
    Workload(&'a str, &'a str),
    Host(&'a str),
    Stream,
}

impl<'a> End<'a> {
    /// A colon names a workload, unless what is before it is a path of the host, as in `./a:b`.
    fn parse(text: &'a str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.starts_with('.') && !name.contains('/') => {
                Self::Workload(name, path)
            }
            _ => Self::Host(text),
        }
    }
}

impl Verb for Copy {
    const NAME: &'static str = "cp";
    const ABOUT: &'static str = "Copy files between a workload and the host";

    fn run(self, session: &Session) -> Result<u8> {
        let options = CopyOptions { archive: self.archive, follow: self.follow_link };
        let engine = session.engine()?;
        match (End::parse(&self.source), End::parse(&self.destination)) {
            (End::Workload(name, path), End::Host(local)) => {
                engine.find(name)?.copy_out(path, Path::new(local), &options)?;
            }
            (End::Host(local), End::Workload(name, path)) => {
                engine.find(name)?.copy_in(Path::new(local), path, &options)?;
            }
            (End::Workload(name, path), End::Stream) => {
                if terminal::has_output() {
                    return Err(
                        Failure::new("standard output is a terminal").hint("send the archive to a file")
                    );
                }
                let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
                engine.find(name)?.copy_from(path, &options, &mut out)?;
                out.flush().context(|| "standard output")?;
            }
            (End::Stream, End::Workload(name, path)) => {
                engine.find(name)?.copy_to(path, &options, std::io::stdin().lock())?;
            }
            (End::Workload(..), End::Workload(..)) => {
                return Err(Failure::new("files are not copied from one workload to another")
                    .hint("`moat cp ONE:PATH - | moat cp - OTHER:PATH` does it"));
            }
            _ => {
                return Err(Failure::new("neither the source nor the destination names a workload")
                    .hint("write it as WORKLOAD:PATH"));
            }
        }
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Diff {
    /// Workload
    workload: String,
}

impl Verb for Diff {
    const NAME: &'static str = "diff";
    const ABOUT: &'static str = "Print what a workload has added (A), changed (C) and deleted (D)";

    fn run(self, session: &Session) -> Result<u8> {
        let changes = session.engine()?.find(&self.workload)?.diff()?;
        let line =
            |change: &moat_engine::Change| format!("{} {}\n", change.kind.letter(), change.path.display());
        print(&changes.iter().map(line).collect::<String>())?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// File [default: standard output]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Workload
    workload: String,
}

impl Verb for Export {
    const NAME: &'static str = "export";
    const ABOUT: &'static str = "Write a workload's root file system as a tar archive";

    fn run(self, session: &Session) -> Result<u8> {
        let workload = session.engine()?.find(&self.workload)?;
        write_archive(self.output.as_deref(), |to| Ok(workload.export(to)?))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Commit {
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Instruction of a Dockerfile for the image, as in CMD /bin/sh
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Remark for the history
    #[arg(short, long)]
    message: Option<String>,
    /// Freeze the workload meanwhile; --pause=false does not
    #[arg(short, long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pause: bool,
    /// Workload
    workload: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Verb for Commit {
    const NAME: &'static str = "commit";
    const ABOUT: &'static str = "Make an image of a workload's changes";

    fn run(self, session: &Session) -> Result<u8> {
        let workload = session.engine()?.find(&self.workload)?;
        let spec = CommitSpec {
            name: self.name.as_deref().map(Reference::parse).transpose()?,
            config: config(&workload, &self.change)?,
            message: self.message,
            author: self.author,
            created_by: None,
        };
        let made = workload.commit(spec, self.pause, &image::silent)?;
        print(&format!("{}\n", made.id))?;
        Ok(0)
    }
}

/// The image's configuration with the changes that were asked for; `None` where there are none.
fn config(workload: &Workload, change: &[String]) -> Result<Option<image::RunConfig>> {
    if change.is_empty() {
        return Ok(None);
    }
    let mut config = workload.image()?.config.config.clone();
    changes::apply(&mut config, change)?;
    Ok(Some(config))
}
