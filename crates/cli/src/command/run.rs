//! `moat run` and `moat create`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use clap::Args;
use moat_engine::{AttachSpec, Engine, StartOptions};

use super::pull;
use crate::attached::{self, Attachment};
use crate::detach::{self, DetachKeys};
use crate::failure::{Context, ENGINE, Failure, Result};
use crate::flags::create::{CreateFlags, Pull, Stream};
use crate::line::Verb;
use crate::session::{Session, print, tell};
use crate::terminal;

#[derive(Args, Debug)]
#[command(override_usage = "moat run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub(crate) struct Run {
    #[command(flatten)]
    create: CreateFlags,
    /// Do not wait for it; print its id
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse, default_value = detach::DEFAULT)]
    detach_keys: DetachKeys,
    /// Do not pass signals on to it when false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "true", hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = crate::flags::boolean)]
    sig_proxy: bool,
    /// Print every step with its duration, from the command to the first instruction
    #[arg(long)]
    explain: bool,
}

#[derive(Args, Debug)]
#[command(override_usage = "moat create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub(crate) struct Create {
    #[command(flatten)]
    create: CreateFlags,
}

impl Verb for Create {
    const NAME: &'static str = "create";
    const ABOUT: &'static str = "Create a workload without starting it";
    const FAILED: u8 = ENGINE;

    fn run(self, session: &Session) -> Result<u8> {
        if self.create.dry_run {
            return plan(session, self.create);
        }
        let engine = session.engine_to_start()?;
        let cidfile = self.create.cidfile.clone();
        refuse_existing(cidfile.as_deref())?;
        provide(&engine, &self.create)?;
        let attached = self.create.attach.is_empty() || self.create.attach.contains(&Stream::Stdin);
        let workload = engine.create(self.create.spec(attached)?)?;
        write_id(cidfile.as_deref(), workload.id().as_str())?;
        print(&format!("{}\n", workload.id()))?;
        Ok(0)
    }
}

impl Verb for Run {
    const NAME: &'static str = "run";
    const ABOUT: &'static str = "Create a workload from an image and run it";
    const FAILED: u8 = ENGINE;

    fn run(self, session: &Session) -> Result<u8> {
        if self.detach && !self.create.attach.is_empty() {
            return Err(Failure::new("--detach and --attach exclude each other"));
        }
        if self.create.dry_run {
            return plan(session, self.create);
        }
        let streams = streams(&self.create, self.detach);
        let (tty, cidfile) = (self.create.tty, self.create.cidfile.clone());
        refuse_existing(cidfile.as_deref())?;
        if let Some(streams) = streams {
            need_terminal(tty, streams.stdin)?;
        }
        let engine = session.engine_to_start()?;
        provide(&engine, &self.create)?;
        let spec = self.create.spec(streams.is_some_and(|streams| streams.stdin))?;
        let raw = match streams {
            Some(streams) if tty && streams.stdin => Some(terminal::Raw::enter()?),
            _ => None,
        };
        if streams.is_some() {
            attached::block_signals()?;
        }
        let options = StartOptions { attach: streams, explain: self.explain };
        let (workload, mut started) = engine.run(spec, &options)?;
        write_id(cidfile.as_deref(), workload.id().as_str())?;
        for warning in &started.warnings {
            tell(&format!("moat: warning: {warning}"));
        }
        if let Some(waterfall) = &started.waterfall {
            tell(waterfall);
        }
        let Some((streams, link)) = streams.zip(started.attached.as_mut()) else {
            print(&format!("{}\n", workload.id()))?;
            return Ok(0);
        };
        let how =
            Attachment { input: streams.stdin, tty, keys: self.detach_keys, pass_signals: self.sig_proxy };
        let ended = attached::tend(&workload, link, how);
        drop(raw);
        attached::conclude(&workload, &ended?)
    }
}

/// Prints the steps; an image that is not here is not pulled for it.
fn plan(session: &Session, create: CreateFlags) -> Result<u8> {
    let steps = session.engine()?.plan(&create.spec(false)?)?;
    print(&steps)?;
    Ok(0)
}

/// The streams that the caller gets: those of `--attach`, else the output, and the input with `--interactive`.
fn streams(create: &CreateFlags, detach: bool) -> Option<AttachSpec> {
    if detach {
        return None;
    }
    let wanted = |stream| create.attach.contains(&stream);
    Some(match create.attach.is_empty() {
        true => AttachSpec { stdin: create.interactive, stdout: true, stderr: true },
        false => AttachSpec {
            stdin: wanted(Stream::Stdin) && create.interactive,
            stdout: wanted(Stream::Stdout),
            stderr: wanted(Stream::Stderr),
        },
    })
}

/// A workload's terminal that takes input needs one on this side.
pub(super) fn need_terminal(tty: bool, input: bool) -> Result<()> {
    if tty && input && !terminal::has_input() {
        return Err(Failure::new("standard input is no terminal")
            .hint("leave out --tty, or --interactive")
            .code(1));
    }
    Ok(())
}

/// Pulls the image where that was asked for or it is not there.
fn provide(engine: &Engine, create: &CreateFlags) -> Result<()> {
    match create.pull {
        Pull::Always => pull::pull(engine, create.image(), create.platform(), create.quiet).map(drop),
        Pull::Never => Ok(()),
        Pull::Missing => pull::provide(engine, create.image(), create.platform(), create.quiet),
    }
}

fn refuse_existing(cidfile: Option<&Path>) -> Result<()> {
    match cidfile {
        Some(path) if path.exists() => {
            Err(Failure::new(format!("--cidfile {} is there already", path.display()))
                .hint("remove the file, or name another one"))
        }
        _ => Ok(()),
    }
}

fn write_id(cidfile: Option<&Path>, id: &str) -> Result<()> {
    let Some(path) = cidfile else { return Ok(()) };
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(id.as_bytes())
    };
    write().context(|| format!("--cidfile {}", path.display()))
}
