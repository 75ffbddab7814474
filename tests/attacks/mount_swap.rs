//! CVE-2021-30465, CVE-2024-45310: a folder that is exchanged with a symbolic link while a container is
//! built, so that what is mounted or made there lands on the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use moat_tests::{Bundle, Runtime};
use serde_json::json;

use crate::racer::Racer;

const RUNS: usize = 300;

fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// Everything in a configuration that makes or covers something below a path.
fn build_below(bundle: &mut Bundle, path: &str, source: &Path) {
    let options = ["bind", "rw"];
    bundle.push(
        "/mounts",
        json!({ "type": "tmpfs", "source": "tmpfs", "destination": format!("{path}/tmpfs") }),
    );
    bundle.push(
        "/mounts",
        json!({ "type": "tmpfs", "source": "tmpfs", "destination": format!("{path}/deep/er"), "options": ["tmpcopyup"] }),
    );
    bundle.push(
        "/mounts",
        json!({ "type": "bind", "source": source, "destination": format!("{path}/file"), "options": options }),
    );
    bundle.push(
        "/linux/devices",
        json!({ "path": format!("{path}/null"), "type": "c", "major": 1, "minor": 3 }),
    );
    bundle.push("/linux/maskedPaths", json!(format!("{path}/masked")));
    bundle.push("/linux/readonlyPaths", json!(format!("{path}/readonly")));
}

/// Runs containers whose `/folder` is exchanged with a link to a folder of the host's, as `target` writes it.
fn race(target: impl Fn(&Path) -> PathBuf) {
    let canary = tempfile::tempdir().unwrap();
    for name in ["masked", "readonly", "secret"] {
        std::fs::write(canary.path().join(name), "canary of the host").unwrap();
    }
    let before = tree(canary.path());
    let mut bundle = Bundle::shell("cat /folder/secret /link/secret 2>/dev/null; true");
    let source = bundle.path().join("source");
    std::fs::write(&source, "").unwrap();
    std::fs::create_dir(bundle.rootfs().join("folder")).unwrap();
    bundle.link(target(canary.path()), "link");
    build_below(&mut bundle, "/folder", &source);
    let runtime = Runtime::new();
    let racer = Racer::new(bundle.rootfs().join("folder"), bundle.rootfs().join("link"));
    let mut succeeded = 0;
    for _ in 0..RUNS {
        let output = runtime.run(&bundle);
        assert!(output.signal.is_none(), "{output:?}");
        assert!(!output.stdout.contains("canary"), "the container saw the host: {output:?}");
        assert_eq!(tree(canary.path()), before, "something was made on the host");
        succeeded += usize::from(output.code == 0);
    }
    assert!(racer.turns() > 1000, "the race was none: {} turns", racer.turns());
    drop(racer);
    assert!(succeeded > 0, "no container was ever built: the test shows nothing");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&canary.path().display().to_string()), "something was mounted on the host");
    for name in ["masked", "readonly", "secret"] {
        assert_eq!(std::fs::read_to_string(canary.path().join(name)).unwrap(), "canary of the host");
    }
}

#[test]
fn a_link_to_a_folder_of_the_host() {
    race(Path::to_owned);
}

#[test]
fn a_link_that_climbs_to_a_folder_of_the_host() {
    race(|canary| format!("{}{}", "../".repeat(24), canary.display()).into());
}
