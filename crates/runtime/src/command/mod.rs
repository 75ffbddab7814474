//! The commands, a file for each or for a few that belong together.

mod build;
mod events;
mod exec;
mod features;
mod life;
mod list;
mod oom;
mod output;
mod pause;
mod ps;
mod spec;
mod stats;
mod units;
mod update;

use std::path::PathBuf;

use moat_model::id::ContainerId;
use moat_sandbox::host::Host;
use moat_sandbox::state::Store;
use moat_sandbox::{Error, Result};

use crate::cli::{Cli, Command, Global, Rootless};
use crate::log::Log;

/// What every command works with.
pub(crate) struct Session<'a> {
    pub(crate) store: Store,
    pub(crate) global: &'a Global,
    pub(crate) log: &'a Log,
}

impl Session<'_> {
    /// The host's features, as `--rootless` wants them seen.
    pub(crate) fn host(&self) -> Result<Host> {
        let mut host = Host::detect()?;
        match self.global.rootless {
            Rootless::Auto => {}
            Rootless::True => host.in_user_namespace = true,
            Rootless::False => host.in_user_namespace = false,
        }
        Ok(host)
    }
}

/// A name from the command line.
pub(crate) fn container_id(text: &str) -> Result<ContainerId> {
    ContainerId::new(text).map_err(|error| Error::new(error.to_string()))
}

/// Runs the command and gives the exit code.
pub(crate) fn run(cli: &Cli, log: &Log) -> Result<u8> {
    if cli.global.systemd_cgroup {
        return Err(Error::new("--systemd-cgroup is not supported yet: cgroups are made directly"));
    }
    let session = Session { store: Store::new(state_root(&cli.global)?), global: &cli.global, log };
    match &cli.command {
        Command::Create(args) => build::create(&session, args),
        Command::Run(args) => build::run(&session, args),
        Command::Start(args) => life::start(&session, args),
        Command::State(args) => life::state(&session, args),
        Command::Kill(args) => life::kill(&session, args),
        Command::Delete(args) => life::delete(&session, args),
        Command::Exec(args) => exec::exec(&session, args),
        Command::Ps(args) => ps::ps(&session, args),
        Command::List(args) => list::list(&session, args),
        Command::Pause(args) => pause::pause(&session, args),
        Command::Resume(args) => pause::resume(&session, args),
        Command::Update(args) => update::update(&session, args),
        Command::Events(args) => events::events(&session, args),
        Command::Stats(args) => stats::stats(&session, args),
        Command::Spec(args) => spec::spec(&session, args),
        Command::Features => features::features(),
        Command::Checkpoint(_) => Err(Error::new("checkpoint is not supported yet")),
        Command::Restore(_) => Err(Error::new("restore is not supported yet")),
    }
}

/// /run belongs to root; others have $XDG_RUNTIME_DIR.
fn state_root(global: &Global) -> Result<PathBuf> {
    if let Some(root) = &global.root {
        return std::path::absolute(root)
            .map_err(|error| Error::new(format!("--root {}: {error}", root.display())));
    }
    if moat_linux::credentials::effective_user() == 0 {
        return Ok(PathBuf::from("/run/moat-runtime"));
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => Ok(PathBuf::from(folder).join("moat-runtime")),
        None => Err(Error::new("XDG_RUNTIME_DIR is not set").hint("name a folder for the state with --root")),
    }
}
