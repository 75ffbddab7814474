//! Volumes, files and limits of workloads that really run.
//!
//! A workload is started by a process with one thread, so the cases run in the main thread, one after the other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "the cases are tests without the attribute"
)]

mod copies;
mod house;
mod mounts;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use house::House;
use libtest_mimic::{Arguments, Failed, Trial};

type Case = (&'static str, fn(&House));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |(name, case): &Case| {
        let case = *case;
        let perform = move || {
            let house = House::new();
            let result = catch_unwind(AssertUnwindSafe(|| case(&house)));
            let left = house.leave();
            result.map_err(|_| Failed::without_message())?;
            if left.is_empty() { Ok(()) } else { Err(Failed::from(format!("left behind: {left:#?}"))) }
        };
        Trial::test(*name, perform)
    };
    let trials = mounts::CASES.iter().chain(copies::CASES).map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
