//! `moat exec`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use clap::Args;
use moat_engine::{ExecProcess, ExecSpec};
use moat_linux::{Errno, process as sys};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::stdio::{stdin, stdout};

use super::run::need_terminal;
use crate::attached::{self, write_all};
use crate::failure::{Context, ENGINE, Failure, Result};
use crate::flags::environment;
use crate::line::Verb;
use crate::session::{Session, tell};
use crate::terminal;

#[derive(Args, Debug)]
#[command(override_usage = "moat exec [OPTIONS] WORKLOAD COMMAND [ARG...]")]
pub(crate) struct Exec {
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Variable, as NAME=VALUE; a name alone takes the caller's
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = environment::variable)]
    env: Vec<String>,
    /// File of variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Give it standard input
    #[arg(short, long)]
    interactive: bool,
    /// All privileges
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, as USER[:GROUP], names or numbers
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// Workload, then program and arguments
    #[arg(required = true, trailing_var_arg = true, num_args = 2.., value_name = "WORKLOAD COMMAND [ARG...]")]
    words: Vec<String>,
}

impl Verb for Exec {
    const NAME: &'static str = "exec";
    const ABOUT: &'static str = "Run a further process in a workload that runs";
    const FAILED: u8 = ENGINE;

    fn run(self, session: &Session) -> Result<u8> {
        let mut words = self.words.into_iter();
        let name = words.next().unwrap_or_default();
        if !self.detach {
            need_terminal(self.tty, self.interactive)?;
        }
        let workload = session.engine_to_start()?.find(&name)?;
        let mut env = Vec::new();
        for path in &self.env_file {
            env.extend(environment::variables_of(path).context(|| "--env-file")?);
        }
        env.extend(self.env);
        let spec = ExecSpec {
            command: words.collect(),
            env,
            user: self.user,
            workdir: self.workdir,
            tty: self.tty,
            size: if self.tty { terminal::size() } else { None },
            privileged: self.privileged,
            stdin: self.interactive,
            detach: self.detach,
        };
        let raw =
            if self.tty && self.interactive && !self.detach { Some(terminal::Raw::enter()?) } else { None };
        if !self.detach {
            attached::block_signals()?;
        }
        let mut process = workload.exec(&spec)?;
        process.warnings().iter().for_each(|warning| tell(&format!("moat: warning: {warning}")));
        if self.detach {
            return Ok(0);
        }
        let tended = tend(&mut process, self.interactive);
        drop(raw);
        tended?;
        Ok(u8::try_from(process.wait()?).unwrap_or(255))
    }
}

/// Passes signals on, and copies what goes through its terminal, until the process has ended.
fn tend(process: &mut ExecProcess, input: bool) -> Result<()> {
    let signals = sys::signal_descriptor().map_err(Failure::from)?;
    let whole = process.terminal_ends();
    let mut console = process.take_terminal().map(|master| Console { master, input, whole });
    loop {
        let mut ready = vec![
            PollFd::from_borrowed_fd(process.pidfd(), PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        if let Some(console) = &console {
            ready.push(PollFd::new(&console.master, PollFlags::IN));
            if console.input {
                ready.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
            }
        }
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            other => other.context(|| "wait for the process")?,
        };
        let seen: Vec<PollFlags> = ready.iter().map(PollFd::revents).collect();
        drop(ready);
        let is = |at: usize, flags: PollFlags| seen.get(at).is_some_and(|seen| seen.intersects(flags));
        if let Some(open) = &mut console {
            if is(3, PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                open.type_in()?;
            }
            let lives = if is(2, PollFlags::IN) { open.show()? } else { !is(2, PollFlags::HUP) };
            // When nobody has the other side open any more, only the end of the process is left to wait for.
            if !lives {
                console = None;
            }
        }
        while let Some(number) = sys::next_signal(signals.as_fd()).map_err(Failure::from)? {
            pass_on(number, process, console.as_ref())?;
        }
        if is(0, PollFlags::IN) {
            if let Some(console) = &console {
                console.drain()?;
            }
            return Ok(());
        }
    }
}

fn pass_on(number: i32, process: &ExecProcess, console: Option<&Console>) -> Result<()> {
    let ignored = [Signal::CHILD, Signal::URG, Signal::PIPE, Signal::CONT];
    if number == Signal::WINCH.as_raw() {
        return match (console, terminal::size()) {
            (Some(console), Some((rows, columns))) => {
                Ok(process.resize(console.master.as_fd(), rows, columns)?)
            }
            _ => Ok(()),
        };
    }
    if ignored.iter().any(|signal| signal.as_raw() == number) {
        return Ok(());
    }
    Ok(process.signal(number)?)
}

/// The master of the process's terminal.
struct Console {
    master: OwnedFd,
    /// Standard input is still to be read.
    input: bool,
    /// What it wrote comes to an end.
    whole: bool,
}

impl Console {
    /// Copies what the process wrote; false when nobody can write any more.
    fn show(&self) -> Result<bool> {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::IO) => Ok(false),
            Ok(count) => write_all(stdout(), buffer.get(..count).unwrap_or_default()).map(|()| true),
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Err(errno) => Err(errno).context(|| "the terminal of the process"),
        }
    }

    fn type_in(&mut self) -> Result<()> {
        let mut buffer = [0; 4 << 10];
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) | Err(Errno::IO) => {
                self.input = false;
                // End of file is typed, or the program would never hear of it.
                write_all(self.master.as_fd(), &[4])
            }
            Ok(count) => match write_all(self.master.as_fd(), buffer.get(..count).unwrap_or_default()) {
                // Nobody reads any more: the end of the process is what comes next.
                Err(_) => {
                    self.input = false;
                    Ok(())
                }
                done => done,
            },
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno).context(|| "standard input"),
        }
    }

    /// What the process wrote last may still be in the terminal when it has ended.
    fn drain(&self) -> Result<()> {
        loop {
            let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let wait = if self.whole { None } else { Some(&now) };
            poll(&mut ready, wait).map_err(Failure::from)?;
            let readable = ready.first().is_some_and(|fd| fd.revents().intersects(PollFlags::IN));
            if !readable || !self.show()? {
                return Ok(());
            }
        }
    }
}
