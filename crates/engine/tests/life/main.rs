//! The life of workloads on the real kernel, as root: every case has roots and an image of its own.
//!
//! The cases run one after the other in the main thread, because the engine forks monitors. The program is also what
//! it starts itself, to be killed or to run beside others: its first argument then says what it does.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program with its own main"
)]

mod attach;
mod exec;
mod health;
mod house;
mod killed;
mod many;
mod run;
mod stop;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use house::House;

type Case = (&'static str, fn(&House));

const CASES: &[Case] = &[
    ("a_run_leaves_nothing_with_auto_remove", run::a_run_leaves_nothing_with_auto_remove),
    ("exit_codes", run::exit_codes),
    ("output_is_kept_in_the_log", run::output_is_kept_in_the_log),
    ("a_terminal", run::a_terminal),
    ("names_and_prefixes", run::names_and_prefixes),
    ("an_ended_workload_starts_again_with_what_it_wrote", run::an_ended_workload_starts_again),
    ("restart_policies", run::restart_policies),
    ("memory_that_runs_out_is_told", run::memory_that_runs_out_is_told),
    ("events_tell_the_life", run::events_tell_the_life),
    ("a_monitor_is_small", run::a_monitor_is_small),
    ("two_hundred_layers", run::two_hundred_layers),
    ("stop_and_kill", stop::stop_and_kill),
    ("pause", stop::pause),
    ("restart_and_rename", stop::restart_and_rename),
    ("remove", stop::remove),
    ("a_killed_monitor_is_told_and_mended", stop::a_killed_monitor_is_told_and_mended),
    ("a_killed_starter_harms_nothing", stop::a_killed_starter_harms_nothing),
    ("input_and_output", attach::input_and_output),
    ("a_stuck_reader_holds_nobody_up_for_ever", attach::a_stuck_reader_holds_nobody_up),
    ("ten_thousand_attachments_leak_nothing", attach::ten_thousand_attachments_leak_nothing),
    ("nonsense_on_the_socket", attach::nonsense_on_the_socket),
    ("a_further_process", exec::a_further_process),
    ("stats_and_top", exec::stats_and_top),
    ("checks_by_a_program", health::checks_by_a_program),
    ("checks_by_a_connection", health::checks_by_a_connection),
    ("eight_hundred_creates_side_by_side", many::eight_hundred_creates_side_by_side),
    ("a_hundred_runs_at_once", many::a_hundred_runs_at_once),
    ("one_name_is_given_once", many::one_name_is_given_once),
    ("run_killed_at_any_system_call", killed::run_killed_at_any_system_call),
    ("remove_killed_at_any_system_call", killed::remove_killed_at_any_system_call),
    ("a_full_disk", killed::a_full_disk),
    ("no_descriptors_left", killed::no_descriptors_left),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|word| word == "act") {
        return house::act(&args);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = CASES.iter().map(|(name, case)| {
        let perform = move || {
            let house = House::new();
            let result = catch_unwind(AssertUnwindSafe(|| case(&house)));
            let left = house.clear();
            result.map_err(|_| Failed::without_message())?;
            if left.is_empty() { Ok(()) } else { Err(Failed::from(format!("left behind: {left:#?}"))) }
        };
        Trial::test(*name, perform)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
