//! CVE-2021-43784: a length in a configuration that overflows a field of a message to the container's first
//! process, so that what follows is taken for something else.
//!
//! Whatever the size, the answer is a sentence or a container that has exactly what was asked for; never a
//! crash, and never a part.

use moat_tests::{Bundle, Output, Runtime};
use serde_json::{Value, json};

/// Lengths around those at which fields of 8, 12, 15, 16 and 17 bits end.
const LENGTHS: [usize; 15] =
    [1, 63, 64, 65, 127, 255, 256, 257, 4095, 4096, 4097, 65_534, 65_535, 65_536, 131_072];

fn run(runtime: &Runtime, bundle: &Bundle) -> Output {
    let output = runtime.run(bundle);
    assert!(output.signal.is_none(), "the runtime crashed: {:?}", output.stderr.get(..500));
    assert!(output.code == 0 || !output.stderr.trim().is_empty(), "no sentence: {}", output.code);
    let garbled = ["panicked", "message that is not one", "said", "not a step"];
    for word in garbled {
        assert!(!output.stderr.contains(word), "{:?}", output.stderr.get(..500));
    }
    output
}

#[test]
fn arguments_arrive_whole() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&[]);
    for length in LENGTHS {
        let long = "a".repeat(length);
        bundle.args(&["/bin/sh", "-c", "echo ${#1} $2", "sh", &long, "end"]);
        let output = run(&runtime, &bundle);
        // The kernel takes strings of up to 32 pages.
        assert_eq!(output.code == 0, length < 131_072, "{length}: {:?}", output.stderr.get(..500));
        assert!(output.code != 0 || output.stdout == format!("{length} end\n"), "{length}");
    }
    for count in [255, 256, 65_535, 65_536, 100_000] {
        let many = vec!["b"; count];
        bundle.args(&[&["/bin/sh", "-c", "echo $#", "sh"], many.as_slice()].concat());
        assert_eq!(run(&runtime, &bundle).success(), format!("{count}\n"));
    }
    let megabytes = vec!["c".repeat(100_000); 60];
    let args: Vec<&str> = ["/bin/echo"].into_iter().chain(megabytes.iter().map(String::as_str)).collect();
    assert_ne!(run(&runtime, bundle.args(&args)).code, 0);
}

#[test]
fn the_environment_arrives_whole() {
    let runtime = Runtime::new();
    for length in LENGTHS {
        let mut bundle = Bundle::shell("echo ${#LONG} $LAST");
        bundle.push("/process/env", json!(format!("LONG={}", "e".repeat(length))));
        bundle.push("/process/env", json!("LAST=end"));
        let output = run(&runtime, &bundle);
        assert!(output.code != 0 || output.stdout == format!("{length} end\n"), "{length}");
    }
}

#[test]
fn names_arrive_whole_or_are_refused() {
    let runtime = Runtime::new();
    for length in LENGTHS {
        let mut bundle = Bundle::shell("cat /proc/sys/kernel/hostname");
        let name = "h".repeat(length);
        bundle.set("/hostname", json!(name));
        let output = run(&runtime, &bundle);
        assert_eq!(output.code == 0, length <= 64, "{length}");
        assert!(output.code != 0 || output.stdout.trim() == name, "{length}");
        let long_id = "i".repeat(length.min(100_000));
        let output = runtime.call(&["state", &long_id]);
        assert!(!output.failure().is_empty(), "{length}");
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    for pointer in ["/process/cwd", "/root/path", "/linux/cgroupsPath", "/linux/rootfsPropagation"] {
        for length in LENGTHS.into_iter().filter(|length| *length > 256) {
            bundle = Bundle::new(&["/bin/true"]);
            bundle.set(pointer, json!(format!("/{}", "p".repeat(length))));
            assert_ne!(run(&runtime, &bundle).code, 0, "{pointer} {length}");
        }
    }
    bundle.remove("/linux/rootfsPropagation");
    assert_eq!(run(&runtime, &bundle).code, 0);
}

/// A program's name that is too long is an error whose sentence is longer than a message of init's.
#[test]
fn a_long_error_is_told() {
    let runtime = Runtime::new();
    for length in LENGTHS {
        for name in [format!("/{}", "x".repeat(length)), "y".repeat(length), "/é".repeat(length)] {
            let output = run(&runtime, &Bundle::new(&[&name]));
            assert!(output.failure().contains("exec: \""), "{length}: {:?}", output.stderr.get(..500));
            let container = runtime.create_with(&Bundle::new(&[&name]), &[]);
            assert!(container.is_err(), "{length}");
        }
    }
}

/// A list of the configuration and an entry of it by its number.
type List = (&'static str, fn(usize) -> Value);

fn lists() -> Vec<List> {
    vec![
        ("/linux/namespaces", |_| json!({ "type": "ipc" })),
        (
            "/linux/namespaces",
            |n| json!({ "type": "pid", "path": format!("/proc/{n}/ns/{}", "p".repeat(300)) }),
        ),
        ("/linux/maskedPaths", |n| json!(format!("/tmp/{n}"))),
        ("/linux/readonlyPaths", |n| json!(format!("/tmp/{n}"))),
        ("/linux/uidMappings", |n| json!({ "containerID": n, "hostID": n, "size": 1 })),
        ("/linux/gidMappings", |n| json!({ "containerID": n, "hostID": n, "size": 1 })),
        (
            "/linux/resources/devices",
            |n| json!({ "allow": true, "type": "c", "major": n, "minor": 1, "access": "r" }),
        ),
        ("/process/rlimits", |_| json!({ "type": "RLIMIT_NOFILE", "hard": 10, "soft": 10 })),
        ("/process/user/additionalGids", |n| json!(n)),
        ("/process/capabilities/bounding", |_| json!("CAP_KILL")),
    ]
}

#[test]
fn long_lists() {
    let runtime = Runtime::new();
    for (pointer, entry) in lists() {
        // The kernel compares each rule of a v1 hierarchy with all before it.
        let most = if pointer.ends_with("devices") { 4_097 } else { 65_537 };
        for count in [341, most] {
            let mut bundle = Bundle::shell("echo whole");
            if pointer.ends_with("Mappings") {
                let other = if pointer.contains("uid") { "/linux/gidMappings" } else { "/linux/uidMappings" };
                bundle.push(other, json!({ "containerID": 0, "hostID": 0, "size": 65_536 }));
                bundle.push("/linux/namespaces", json!({ "type": "user" }));
            }
            let list: Vec<Value> = (0..count).map(entry).collect();
            bundle.set(pointer, json!(list));
            let output = run(&runtime, &bundle);
            assert!(output.code != 0 || output.stdout == "whole\n", "{pointer} {count}: {output:?}");
        }
    }
}

#[test]
fn many_mounts() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("grep -c ' /tmp/[0-9]' /proc/self/mountinfo");
    let mount = |n: usize| json!({ "type": "tmpfs", "source": "tmpfs", "destination": format!("/tmp/{n}") });
    let mut mounts = bundle.config()["mounts"].as_array().unwrap().clone();
    mounts.extend((0..3_000).map(mount));
    bundle.set("/mounts", json!(mounts));
    assert_eq!(run(&runtime, &bundle).success(), "3000\n");
}

#[test]
fn annotations_come_back_whole() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["/bin/true"]);
    let annotations: serde_json::Map<String, Value> =
        LENGTHS.iter().map(|length| (format!("of.{length}"), json!("n".repeat(*length)))).collect();
    bundle.set("/annotations", json!(annotations));
    let container = runtime.create(&bundle);
    assert_eq!(container.state()["annotations"], json!(annotations));
}

#[test]
fn what_is_no_configuration_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["/bin/true"]);
    let file = bundle.path().join("config.json");
    let texts = [
        "[".repeat(100_000),
        format!("{}1{}", "{\"annotations\":".repeat(50_000), "}".repeat(50_000)),
        format!("{{\"ociVersion\":\"1.0.{}\"}}", "0".repeat(70_000)),
        format!("{{\"ociVersion\":\"1.0.0\",\"hostname\":\"{}\"}}", "h".repeat(17 << 20)),
        "9".repeat(70_000),
    ];
    for text in texts {
        std::fs::write(&file, &text).unwrap();
        assert_ne!(run(&runtime, &bundle).code, 0, "{:?}", text.get(..40));
    }
}
