//! Parity: one table of cases, each looked at once behind either wall, in one visit to the lab.
//!
//! A case is a look from outside, and what is to be seen. A container must show just that. A microVM must show the same;
//! where it can not, the case says what is seen instead, and why. So a difference that nobody has written down fails,
//! and so does one that is not there any more. `cargo xtask parity` prints the matrix and keeps it in docs/parity.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; and the matrix is what this one is for")]

mod files;
mod flags;
mod house;
mod life;
mod limits;
mod network;
mod report;
mod streams;
mod walls;

use std::panic::{AssertUnwindSafe, catch_unwind};

use house::House;
use moat_tests::visit_with_machines;

/// A look, and what it shows.
pub(crate) struct Case {
    name: &'static str,
    expected: &'static str,
    differs: Option<Difference>,
    look: fn(&House) -> String,
}

/// What a microVM shows instead.
#[derive(Clone, Copy)]
struct Difference {
    seen: &'static str,
    why: &'static str,
}

/// Cases about the same workloads.
pub(crate) struct Group {
    title: &'static str,
    /// Starts what the cases look at.
    before: fn(&House),
    cases: &'static [Case],
}

pub(crate) const fn case(name: &'static str, expected: &'static str, look: fn(&House) -> String) -> Case {
    Case { name, expected, differs: None, look }
}

impl Case {
    pub(crate) const fn differs(mut self, seen: &'static str, why: &'static str) -> Self {
        self.differs = Some(Difference { seen, why });
        self
    }
}

const GROUPS: &[Group] = &[
    streams::GROUP,
    flags::GROUP,
    life::GROUP,
    life::ENDS,
    files::GROUP,
    limits::GROUP,
    network::GROUP,
    walls::GROUP,
];

/// Only the groups whose titles contain it, for whoever works on one.
const ONLY: &str = "MOAT_PARITY_GROUP";

#[test]
fn both_walls_keep_one_table() {
    visit_with_machines("both_walls_keep_one_table", None, inside);
}

fn inside() {
    let only = std::env::var(ONLY).unwrap_or_default();
    let chosen: Vec<&Group> = GROUPS.iter().filter(|group| group.title.contains(&only)).collect();
    let seen = ["container", "microvm"].map(|wall| {
        let house = House::new(wall);
        chosen.iter().map(|group| look(&house, group)).collect::<Vec<_>>()
    });
    let [containers, machines] = &seen;
    let wrong = report::wrong(&chosen, containers, machines);
    let text = report::matrix(&chosen, containers, machines);
    println!("{}\n{text}{}", report::BEGIN, report::END);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if only.is_empty() {
        report::up_to_date(&text);
    }
}

/// What each case of a group shows. One that can not look shows why.
fn look(house: &House, group: &Group) -> Vec<String> {
    let words = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    };
    let began = std::time::Instant::now();
    let begun = catch_unwind(AssertUnwindSafe(|| (group.before)(house)));
    let seen = match begun {
        Err(panic) => {
            let why = format!("could not begin: {}", words(panic));
            group.cases.iter().map(|_| why.clone()).collect()
        }
        Ok(()) => {
            let one = |case: &Case| {
                catch_unwind(AssertUnwindSafe(|| (case.look)(house)))
                    .unwrap_or_else(|panic| format!("could not look: {}", words(panic)))
            };
            group.cases.iter().map(one).collect()
        }
    };
    house.clear();
    println!("{}, {}: {:.0} s", house.wall(), group.title, began.elapsed().as_secs_f64());
    seen
}
