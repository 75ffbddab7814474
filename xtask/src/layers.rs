//! `cargo xtask layers`: arrows between the crates only go down.
//!
//! The table is the one of ARCHITECTURE.md. A crate may use the crates that its line lists, which
//! all stand in lower layers; what a line forbids is forbidden through other crates too. Tests
//! may use more, but nothing from a higher layer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

struct Room {
    name: &'static str,
    layer: u8,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
}

const fn room(
    layer: u8,
    name: &'static str,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
) -> Room {
    Room { name, layer, may_use, never }
}

/// Every crate of the workspace. `never` also names libraries.
const ROOMS: &[Room] = &[
    room(1, "hello", &[], &[]),
    room(1, "initramfs", &[], &["linux", "model"]),
    room(1, "linux", &[], &["model"]),
    room(1, "model", &[], &["linux"]),
    room(2, "image", &["hello", "linux", "model"], &["sandbox"]),
    room(2, "net", &["linux", "model"], &["engine"]),
    room(2, "sandbox", &["linux", "model"], &["tokio", "engine", "net", "image"]),
    room(2, "vmm", &["initramfs", "linux", "model"], &["tokio", "image", "net", "engine", "sandbox"]),
    room(3, "agent", &["linux", "model", "sandbox"], &["engine", "image", "net"]),
    // The engine starts moat-vmm; it never links it.
    room(3, "engine", &["image", "initramfs", "linux", "model", "net", "sandbox"], &["api", "cli", "vmm"]),
    room(4, "api", &["engine", "model"], &["vmm"]),
    room(4, "shim", &["engine", "model"], &["vmm"]),
    room(5, "cli", &["api", "engine", "linux", "model"], &[]),
    room(5, "runtime", &["linux", "model", "sandbox"], &["image", "net"]),
];

/// The tests of whole programs and the project's tools stand beside the house and are no rooms of it.
const BESIDE: [&str; 2] = ["tests", "xtask"];

/// The direct dependencies of one crate, by short name.
#[derive(Default)]
struct Uses {
    normal: BTreeSet<String>,
    dev: BTreeSet<String>,
}

pub(crate) fn run() -> Result<()> {
    let text = command::output(command::cargo().args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("`cargo metadata` is not JSON")?;
    let faults = faults(&read(&metadata)?);
    for fault in &faults {
        eprintln!("layers: {fault}");
    }
    if !faults.is_empty() {
        bail!("{} arrow(s) between crates are not allowed", faults.len());
    }
    eprintln!("--- layers: every arrow between the crates goes down");
    Ok(())
}

fn short(package: &str) -> &str {
    match package {
        "moat" => "cli",
        other => other.strip_prefix("moat-").unwrap_or(other),
    }
}

fn read(metadata: &Value) -> Result<BTreeMap<String, Uses>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` has no packages")?;
    let mut workspace = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let mut uses = Uses::default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = short(dependency["name"].as_str().context("a dependency has no name")?);
            match dependency["kind"].as_str() {
                Some("dev") => uses.dev.insert(used.to_owned()),
                _ => uses.normal.insert(used.to_owned()),
            };
        }
        workspace.insert(short(name).to_owned(), uses);
    }
    Ok(workspace)
}

fn find(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.name == name)
}

/// One sentence for each arrow that must not be.
fn faults(workspace: &BTreeMap<String, Uses>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, uses) in workspace.iter().filter(|(name, _)| !BESIDE.contains(&name.as_str())) {
        let Some(room) = find(name) else {
            faults.push(format!(
                "the crate {name} has no line in the table of layers; give it one there and in \
                 ARCHITECTURE.md"
            ));
            continue;
        };
        for used in uses.normal.iter().filter(|used| workspace.contains_key(*used)) {
            faults.extend(normal_fault(room, used));
        }
        for used in uses.dev.iter().filter(|used| workspace.contains_key(*used)) {
            if find(used).is_none_or(|used| used.layer > room.layer) {
                faults.push(format!("the tests of {name} use {used}, which stands above {name}"));
            }
        }
        faults.extend(never_faults(room, workspace));
    }
    faults
}

fn normal_fault(room: &Room, used: &str) -> Option<String> {
    let name = room.name;
    let target = find(used)?;
    if target.layer > room.layer {
        return Some(format!(
            "{name} (layer {}) uses {used} (layer {}): an arrow up",
            room.layer, target.layer
        ));
    }
    if target.layer == room.layer {
        return Some(format!("{name} uses {used}: both stand in layer {}", room.layer));
    }
    if !room.may_use.contains(&used) {
        return Some(format!("{name} uses {used}; it may use only {}", room.may_use.join(", ")));
    }
    None
}

/// What a room must never use, it must not reach through another room either.
fn never_faults(room: &Room, workspace: &BTreeMap<String, Uses>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::from([room.name]);
    let mut open = vec![(room.name, room.name.to_owned())];
    while let Some((name, path)) = open.pop() {
        let Some(uses) = workspace.get(name) else {
            continue;
        };
        for used in &uses.normal {
            if room.never.contains(&used.as_str()) {
                faults.push(format!("{} must never use {used}: {path} -> {used}", room.name));
            }
            if workspace.contains_key(used) && seen.insert(used) {
                open.push((used, format!("{path} -> {used}")));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(crates: &[(&str, &[&str], &[&str])]) -> BTreeMap<String, Uses> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let uses = |(name, normal, dev): &(&str, &[&str], &[&str])| {
            ((*name).to_owned(), Uses { normal: set(normal), dev: set(dev) })
        };
        crates.iter().map(uses).collect()
    }

    #[test]
    fn the_table_itself_only_points_down() {
        for room in ROOMS {
            for used in room.may_use {
                assert!(find(used).is_some_and(|used| used.layer < room.layer), "{}", room.name);
                assert!(!room.never.contains(used), "{} and {used}", room.name);
            }
        }
    }

    #[test]
    fn arrows_down_pass() {
        let workspace = workspace(&[
            ("linux", &["rustix"], &[]),
            ("model", &["serde"], &["proptest"]),
            ("sandbox", &["linux", "model"], &[]),
            ("runtime", &["sandbox", "clap"], &["linux"]),
            ("xtask", &["anyhow"], &[]),
        ]);
        assert_eq!(faults(&workspace), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_up_is_named() {
        let workspace = workspace(&[("linux", &["sandbox"], &[]), ("sandbox", &[], &[])]);
        assert_eq!(faults(&workspace), ["linux (layer 1) uses sandbox (layer 2): an arrow up".to_owned()]);
    }

    #[test]
    fn an_arrow_sideways_and_one_beside_the_list_are_named() {
        let workspace =
            workspace(&[("linux", &[], &[]), ("model", &["linux"], &[]), ("api", &["linux"], &[])]);
        assert_eq!(
            faults(&workspace),
            [
                "api uses linux; it may use only engine, model",
                "model uses linux: both stand in layer 1",
                "model must never use linux: model -> linux",
            ]
        );
    }

    #[test]
    fn a_forbidden_library_is_found_behind_another_crate() {
        let workspace = workspace(&[("model", &["tokio"], &[]), ("sandbox", &["model"], &["tokio"])]);
        assert_eq!(faults(&workspace), ["sandbox must never use tokio: sandbox -> model -> tokio"]);
    }

    #[test]
    fn tests_may_use_more_but_nothing_above() {
        let workspace =
            workspace(&[("linux", &[], &["model"]), ("model", &[], &["sandbox"]), ("sandbox", &[], &[])]);
        assert_eq!(faults(&workspace), ["the tests of model use sandbox, which stands above model"]);
    }

    #[test]
    fn an_unknown_crate_is_named() {
        let faults = faults(&workspace(&[("utils", &[], &[])]));
        assert!(faults[0].starts_with("the crate utils has no line"), "{faults:?}");
    }
}
