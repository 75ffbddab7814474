//! The harness itself: what it says of a container must be true before other tests build on it.

use moat_tests::{Bundle, Runtime};
use serde_json::json;

#[test]
fn run_gives_output_and_code() {
    let runtime = Runtime::new();
    let output = runtime.run(&Bundle::shell("echo out; echo err >&2; exit 7"));
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
}

#[test]
fn a_container_lives_and_goes() {
    let runtime = Runtime::new();
    let container = runtime.create(&Bundle::shell("echo begun; exec sleep 1000"));
    assert_eq!(container.status(), "created");
    container.start().success();
    assert_eq!(container.status(), "running");
    assert_eq!(container.exec(&["echo", "hello"]).success(), "hello\n");
    moat_tests::wait_until(|| container.stdout() == "begun\n");
    let left = runtime.leftovers(container.id());
    for kind in ["cgroup /sys", "process ", "state /"] {
        assert!(left.iter().any(|line| line.starts_with(kind)), "{kind}: {left:#?}");
    }
    container.delete();
}

#[test]
fn the_configuration_is_changed_by_pointers() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.set("/linux/resources/pids/limit", json!(5)).push("/process/env", json!("A=1"));
    bundle.remove("/process/rlimits").remove_mount("/dev/mqueue").retain_namespaces(|kind| kind != "ipc");
    let text = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(&saved, bundle.config());
    assert_eq!(saved["linux"]["resources"]["pids"]["limit"], 5);
    assert_eq!(saved["process"]["env"][2], "A=1");
    assert!(!text.contains("RLIMIT") && !text.contains("mqueue") && !text.contains("\"ipc\""));
}
