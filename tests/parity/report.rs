//! What came of it.

use std::fmt::Write;

use crate::{Case, Group};

/// Stands around the matrix in the output.
pub(crate) const BEGIN: &str = "--- parity begins";
pub(crate) const END: &str = "--- parity ends";

fn all<'a>(
    groups: &'a [&Group],
    containers: &'a [Vec<String>],
    machines: &'a [Vec<String>],
) -> impl Iterator<Item = (&'a Group, &'a Case, &'a str, &'a str)> {
    groups.iter().zip(containers.iter().zip(machines)).flat_map(|(group, (ones, others))| {
        let seen = ones.iter().zip(others);
        group
            .cases
            .iter()
            .zip(seen)
            .map(move |(case, (one, other))| (*group, case, one.as_str(), other.as_str()))
    })
}

/// Sentences about what is not as the table says.
pub(crate) fn wrong(groups: &[&Group], containers: &[Vec<String>], machines: &[Vec<String>]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (group, case, container, machine) in all(groups, containers, machines) {
        let name = format!("{}: {}", group.title, case.name);
        if container != case.expected {
            wrong.push(format!("{name}: a container shows {container:?}, not {:?}", case.expected));
        }
        match case.differs {
            None if machine != case.expected => {
                wrong.push(format!("{name}: a microVM shows {machine:?}, not {:?}", case.expected));
            }
            Some(difference) if !machine.contains(difference.seen) || machine == case.expected => {
                wrong.push(format!("{name}: a microVM shows {machine:?}, not {:?}", difference.seen));
            }
            _ => {}
        }
    }
    wrong
}

/// The text of docs/parity.md. It holds what is the same in every run.
pub(crate) fn matrix(groups: &[&Group], containers: &[Vec<String>], machines: &[Vec<String>]) -> String {
    let cases = all(groups, containers, machines);
    let (mut rows, mut count, mut same) = (String::new(), 0, 0);
    let mut title = "";
    for (group, case, container, machine) in cases {
        if title != group.title {
            title = group.title;
            let _ = write!(rows, "\n## {title}\n\n| case | container | microVM |\n|---|---|---|\n");
        }
        count += 1;
        let told = match (container == machine, case.differs) {
            (true, _) => "same".to_owned(),
            (false, Some(difference)) => format!("differs: {}", difference.why),
            (false, None) => format!("differs: `{}`", cell(machine)),
        };
        same += usize::from(container == machine);
        let _ = writeln!(rows, "| {} | `{}` | {told} |", case.name, cell(container));
    }
    let percent = same * 100 / usize::max(count, 1);
    format!(
        "# Parity\n\nWritten by `cargo xtask parity`: one table of cases, each looked at from outside once behind \
         either wall.\n\n{count} cases, {same} the same behind both walls ({percent} %).\n{rows}"
    )
}

fn cell(text: &str) -> String {
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    text.replace('|', "\\|").replace('`', "'")
}

/// What is kept is what was seen.
pub(crate) fn up_to_date(text: &str) {
    if std::env::var_os("MOAT_PARITY_WRITE").is_some() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/parity.md");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == text, "docs/parity.md is not what was seen; `cargo xtask parity` writes it anew");
}
