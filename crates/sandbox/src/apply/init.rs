//! A small PID 1 that stays: it reaps what is orphaned and forwards signals to the program.
//!
//! A program that is PID 1 itself gets no default action for signals, and must reap children that are
//! not its own; most are not written for that.

use std::os::fd::AsFd;

use moat_linux::process::{self as sys, Clone3, Forked};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use super::Init;
use crate::Result;

impl Init<'_> {
    /// Forks: the child goes on to become the program, the parent stays here until that has ended.
    pub(super) fn stay_as_init(&mut self) -> Result<()> {
        sys::block_signals()?;
        match sys::fork(Clone3::default())? {
            Forked::Child => {
                // A process group of its own, in the foreground: what the terminal sends then reaches the
                // program once, not a second time by way of init.
                rustix::process::setpgid(None, None).map_err(std::io::Error::from)?;
                if rustix::termios::isatty(rustix::stdio::stdin()) {
                    let group = rustix::process::getpid();
                    rustix::termios::tcsetpgrp(rustix::stdio::stdin(), group)
                        .map_err(std::io::Error::from)?;
                }
                Ok(())
            }
            Forked::Parent(program, _) => {
                let code = self.tend(program);
                sys::exit_now(code)
            }
        }
    }

    fn tend(&mut self, program: i32) -> i32 {
        // The end of file on the socket tells the runtime that the program runs: only the child may keep it.
        self.socket = None;
        self.fifos = None;
        let _ = sys::close_from(3);
        let _ = sys::set_name(c"init");
        loop {
            match forward_until_exit(program) {
                Ok(code) => return code,
                // Nobody hears of it, and a PID 1 that ends kills the container: it tries again.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    }
}

fn forward_until_exit(program: i32) -> Result<i32> {
    let signals = sys::signal_descriptor()?;
    loop {
        while let Ok(Some((pid, status))) = sys::reap() {
            if pid == program {
                return Ok(sys::exit_code(status));
            }
        }
        let mut ready = [PollFd::new(&signals, PollFlags::IN)];
        if poll(&mut ready, None).is_err() {
            continue;
        }
        while let Some(number) = sys::next_signal(signals.as_fd())? {
            if number != Signal::CHILD.as_raw() {
                // It may have ended in this moment; then the next turn of the loop finds out.
                let _ = sys::kill(program, number);
            }
        }
    }
}
