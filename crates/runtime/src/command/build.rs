//! `create` and `run`.

use std::path::{Path, PathBuf};

use moat_model::id::ContainerId;
use moat_model::oci::Spec;
use moat_sandbox::container::{self, CreateOptions, Running};
use moat_sandbox::plan::{self, Plan};
use moat_sandbox::record::{Recorder, Stop};
use moat_sandbox::step::Place;
use moat_sandbox::{Context, Error, Result};

use super::{Session, container_id};
use crate::cli::{Build, CreateArgs, RunArgs};
use crate::foreground;

/// A configuration, its text, and what is asked beside it.
struct Input {
    spec: Spec,
    text: Vec<u8>,
    options: CreateOptions,
}

pub(crate) fn create(session: &Session<'_>, args: &CreateArgs) -> Result<u8> {
    let input = read_input(&args.build, true)?;
    if args.build.dry_run {
        return dry_run(session, &args.build, &input);
    }
    let host = session.host()?;
    let mut recorder = recorder(session, &args.build)?;
    let id = container_id(&args.build.id)?;
    let running = container::create(
        &session.store,
        &id,
        &input.spec,
        &input.text,
        &input.options,
        &host,
        &mut recorder,
    )?;
    running.warnings.iter().for_each(|warning| session.log.warn(warning));
    send_pidfd(session, &args.build, &id, &running)?;
    explain(session, &args.build, &recorder);
    Ok(0)
}

pub(crate) fn run(session: &Session<'_>, args: &RunArgs) -> Result<u8> {
    let mut input = read_input(&args.build, false)?;
    if args.build.dry_run {
        return dry_run(session, &args.build, &input);
    }
    let terminal = input.spec.process.as_ref().is_some_and(|process| process.terminal);
    if args.detach && terminal && args.build.console_socket.is_none() {
        return Err(Error::new("process.terminal needs --console-socket when nobody stays to serve it"));
    }
    let host = session.host()?;
    let mut recorder = recorder(session, &args.build)?;
    let id = container_id(&args.build.id)?;
    if !args.detach {
        foreground::prepare(!args.no_subreaper)?;
        foreground::adopt_size(&mut input.spec);
    }
    let mut running = container::create(
        &session.store,
        &id,
        &input.spec,
        &input.text,
        &input.options,
        &host,
        &mut recorder,
    )?;
    running.warnings.iter().for_each(|warning| session.log.warn(warning));
    send_pidfd(session, &args.build, &id, &running)?;
    explain(session, &args.build, &recorder);
    if args.detach {
        return Ok(0);
    }
    let code = foreground::tend(&mut running)?;
    if !args.keep {
        let mut recorder = Recorder::new(false, None);
        let warnings = container::delete_ended(running, input.spec.hooks.as_ref(), &mut recorder)?;
        warnings.iter().for_each(|warning| session.log.warn(warning));
    }
    Ok(code)
}

/// Who asked for the pidfd and does not get it has no container.
fn send_pidfd(session: &Session<'_>, args: &Build, id: &ContainerId, running: &Running) -> Result<()> {
    let sent = foreground::send_pidfd(args.pidfd_socket.as_deref(), running);
    if sent.is_err() {
        // The first error is what the caller has to know.
        let _ = container::delete(&session.store, id, true, &mut Recorder::new(false, None));
    }
    sent
}

fn recorder(session: &Session<'_>, args: &Build) -> Result<Recorder> {
    Ok(Recorder::new(args.explain || session.log.debug, parse_stop(args.stop_after.as_deref())?))
}

/// Parses `--stop-after`.
pub(crate) fn parse_stop(text: Option<&str>) -> Result<Option<Stop>> {
    let bad = |text: &str| Error::new(format!("--stop-after {text:?} is neither runtime:N nor init:N"));
    text.map(|text| Stop::parse(text).ok_or_else(|| bad(text))).transpose()
}

#[expect(clippy::print_stderr, reason = "standard output belongs to the container's program")]
fn explain(session: &Session<'_>, args: &Build, recorder: &Recorder) {
    if session.log.debug {
        session.log.debug(&recorder.waterfall());
    }
    if args.explain {
        eprint!("{}", recorder.waterfall());
    }
}

fn read_input(args: &Build, wait_for_start: bool) -> Result<Input> {
    let bundle = absolute(args.bundle.as_deref().unwrap_or(Path::new(".")))?;
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(format!("bundle {} has no config.json", bundle.display())));
        }
        other => other.context(|| path.display().to_string())?,
    };
    let spec = plan::parse_config(&text, &path.display().to_string())?;
    let options = CreateOptions {
        bundle,
        console_socket: args.console_socket.clone(),
        pid_file: args.pid_file.as_deref().map(absolute_file).transpose()?,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        preserve_fds: args.preserve_fds,
        init: args.init,
        wait_for_start,
    };
    foreground::check_preserved(args.preserve_fds)?;
    Ok(Input { spec, text, options })
}

/// Paths that are used after the working directory may have changed.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let here = std::path::absolute(path).context(|| path.display().to_string())?;
    // Symbolic links in the bundle's path are followed now, as runc does: state names the true path.
    Ok(here.canonicalize().unwrap_or(here))
}

/// As [`absolute`], for a file that is made: a symbolic link in its place is replaced, not followed.
pub(crate) fn absolute_file(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| path.display().to_string())
}

#[expect(clippy::print_stdout, reason = "the plan is the answer of --dry-run")]
fn dry_run(session: &Session<'_>, args: &Build, input: &Input) -> Result<u8> {
    let id = container_id(&args.id)?;
    let plan = container::plan_only(&id, &input.spec, &input.options, &session.host()?)?;
    print!("{}", plan_text(&plan));
    Ok(0)
}

/// A plan as text: a numbered line a step, with who performs it.
fn plan_text(plan: &Plan) -> String {
    let place = |place: Place| match place {
        Place::Runtime => "runtime",
        Place::Init => "init",
    };
    let line = |(index, step): (usize, &moat_sandbox::step::Step)| {
        format!("{index:>3}  {:<8}{}\n", place(step.place), step.action)
    };
    plan.steps.iter().enumerate().map(line).collect()
}
