//! `moat start`, `attach`, `stop`, `restart` and `kill`.

use clap::Args;
use moat_engine::{AttachSpec, Engine, StartOptions, StopOptions, Workload};

use super::{each, run::need_terminal};
use crate::attached::{self, Attachment};
use crate::detach::{self, DetachKeys};
use crate::failure::{Failure, Result};
use crate::line::Verb;
use crate::session::{Session, tell};
use crate::terminal;

#[derive(Args, Debug)]
pub(crate) struct Start {
    /// Attach to its output and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Attach to its input
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave it
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse, default_value = detach::DEFAULT)]
    detach_keys: DetachKeys,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Start {
    const NAME: &'static str = "start";
    const ABOUT: &'static str = "Start workloads that do not run";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine_to_start()?;
        if !self.attach && !self.interactive {
            return each(&self.workloads, |name| {
                let started = engine.find(name)?.start(&StartOptions::default())?;
                started.warnings.iter().for_each(|warning| tell(&format!("moat: warning: {warning}")));
                Ok(Some(name.to_owned()))
            });
        }
        let [name] = self.workloads.as_slice() else {
            return Err(Failure::new("only one workload can be attached to at once"));
        };
        let workload = engine.find(name)?;
        let spec = workload.spec();
        let (tty, input) = (spec.tty, self.interactive && spec.open_stdin);
        need_terminal(tty, input)?;
        let raw = if tty && input { Some(terminal::Raw::enter()?) } else { None };
        attached::block_signals()?;
        let attach = Some(AttachSpec { stdin: input, stdout: true, stderr: true });
        let mut started = workload.start(&StartOptions { attach, ..StartOptions::default() })?;
        let Some(link) = started.attached.as_mut() else {
            return Err(Failure::new("the engine gave no streams"));
        };
        let how = Attachment { input, tty, keys: self.detach_keys, pass_signals: true };
        let ended = attached::tend(&workload, link, how);
        drop(raw);
        attached::conclude(&workload, &ended?)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// Keys that leave it
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse, default_value = detach::DEFAULT)]
    detach_keys: DetachKeys,
    /// Do not attach to its input
    #[arg(long)]
    no_stdin: bool,
    /// Do not pass signals on to it when false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "true", hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = crate::flags::boolean)]
    sig_proxy: bool,
    /// Workload
    workload: String,
}

impl Verb for Attach {
    const NAME: &'static str = "attach";
    const ABOUT: &'static str = "Attach to a workload that runs";

    fn run(self, session: &Session) -> Result<u8> {
        let workload = session.engine()?.find(&self.workload)?;
        let spec = workload.spec();
        let (tty, input) = (spec.tty, spec.open_stdin && !self.no_stdin);
        need_terminal(tty, input)?;
        let mut link = workload.attach(&AttachSpec { stdin: input, stdout: true, stderr: true })?;
        let raw = if tty && input { Some(terminal::Raw::enter()?) } else { None };
        attached::block_signals()?;
        let how = Attachment { input, tty, keys: self.detach_keys, pass_signals: self.sig_proxy };
        let ended = attached::tend(&workload, &mut link, how);
        drop(raw);
        attached::conclude(&workload, &ended?)
    }
}

/// The flags of `stop` and `restart`.
#[derive(Args, Debug)]
struct StopFlags {
    /// Signal that asks it to end
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until it is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_hyphen_values = true)]
    timeout: Option<i64>,
}

impl StopFlags {
    fn options(&self) -> Result<StopOptions> {
        let signal = self.signal.as_deref().map(signal).transpose()?;
        let milliseconds =
            |seconds: i64| u64::try_from(seconds).ok().map(|seconds| seconds.saturating_mul(1000));
        Ok(StopOptions { signal, timeout_ms: self.timeout.map(milliseconds) })
    }
}

/// A signal by its name or number.
pub(super) fn signal(text: &str) -> Result<i32> {
    moat_linux::process::signal_number(text).ok_or_else(|| {
        Failure::new(format!("signal {text:?} is not known; write a name such as TERM, or a number"))
    })
}

#[derive(Args, Debug)]
pub(crate) struct Stop {
    #[command(flatten)]
    stop: StopFlags,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Stop {
    const NAME: &'static str = "stop";
    const ABOUT: &'static str = "Ask workloads to end, and kill them if they do not";

    fn run(self, session: &Session) -> Result<u8> {
        let options = self.stop.options()?;
        change(&session.engine()?, &self.workloads, |workload| Ok(workload.stop(&options)?))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Restart {
    #[command(flatten)]
    stop: StopFlags,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Restart {
    const NAME: &'static str = "restart";
    const ABOUT: &'static str = "Stop workloads and start them again";

    fn run(self, session: &Session) -> Result<u8> {
        let options = self.stop.options()?;
        change(&session.engine_to_start()?, &self.workloads, |workload| Ok(workload.restart(&options)?))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Kill {
    /// Signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Kill {
    const NAME: &'static str = "kill";
    const ABOUT: &'static str = "Send workloads a signal";

    fn run(self, session: &Session) -> Result<u8> {
        let number = signal(&self.signal)?;
        change(&session.engine()?, &self.workloads, |workload| Ok(workload.kill(number)?))
    }
}

/// Does something to each workload and prints its name as it was given.
pub(super) fn change(
    engine: &Engine,
    names: &[String],
    change: impl Fn(&Workload) -> Result<()>,
) -> Result<u8> {
    each(names, |name| {
        change(&engine.find(name)?)?;
        Ok(Some(name.to_owned()))
    })
}
