//! `moat compare`: what a process sees, behind both walls and on the host.

use clap::Args;
use moat_engine::Engine;
use moat_engine::image::facts::{Fact, value};
use moat_model::workload::Isolation;

use super::pull;
use crate::failure::{ENGINE, Result};
use crate::line::Verb;
use crate::session::{Session, print};

/// The widest value that is shown; a longer one is cut.
const WIDTH: usize = 30;

#[derive(Args, Debug)]
pub(crate) struct Compare {
    /// The image whose root file system, user and environment the process gets
    #[arg(default_value = "moat/hello")]
    image: String,
}

impl Verb for Compare {
    const NAME: &'static str = "compare";
    const ABOUT: &'static str =
        "Show what a process of an image sees as a container, in a microVM and on the host";
    const FAILED: u8 = ENGINE;

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine_to_start()?;
        pull::provide(&engine, &self.image, None, false)?;
        // First what some hosts can not give.
        let machine = engine.perspective(&self.image, Isolation::Microvm)?;
        let container = engine.perspective(&self.image, Isolation::Container)?;
        print(&table(&container, &machine, &Engine::own_perspective()))?;
        Ok(0)
    }
}

/// A line for each fact. `=` marks what is as on the host.
fn table(container: &[Fact], machine: &[Fact], host: &[Fact]) -> String {
    let mut text = row("", ["container", "microVM", "on the host"].map(str::to_owned));
    let line = "-".repeat(WIDTH);
    text.push_str(&row("", [line.clone(), line.clone(), line]));
    for fact in host {
        let of = |facts: &[Fact]| {
            let found = value(facts, &fact.name);
            let mark = if found == fact.value && !found.is_empty() { "= " } else { "  " };
            format!("{mark}{}", if found.is_empty() { "?" } else { found })
        };
        let own = if fact.value.is_empty() { "?" } else { &fact.value };
        text.push_str(&row(&fact.name, [of(container), of(machine), own.to_owned()]));
    }
    text
}

fn row(name: &str, values: [String; 3]) -> String {
    let [container, machine, host] = values.map(|text| cut(&text));
    let line = format!("{name:<16}  {container:<WIDTH$}  {machine:<WIDTH$}  {host}");
    format!("{}\n", line.trim_end())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    let kept: String = text.chars().take(WIDTH - 3).collect();
    format!("{kept}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_walls_side_by_side() {
        let facts = |pid: &str, kernel: &str| {
            [("process id", pid), ("kernel", kernel)]
                .map(|(name, value)| Fact { name: name.to_owned(), value: value.to_owned() })
        };
        let text = table(&facts("1", "6.1"), &facts("1", ""), &facts("77", "6.1"));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["process", "id", "1", "1", "77"]);
        assert_eq!(lines[3], ["kernel", "=", "6.1", "?", "6.1"]);
        assert_eq!(cut(&"x".repeat(99)).len(), WIDTH);
    }
}
