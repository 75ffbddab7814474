//! Any bytes as a seccomp profile in Docker's form: a configuration comes out that holds the rules whose conditions
//! are met, in order and unchanged, or a sentence; what the sandbox then makes of it decides as its rules say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_engine::oci::{HostFacts, parse_profile};
use moat_linux::capability::Set;
use moat_sandbox::cgroup::Layout;
use moat_sandbox::host::Host;
use moat_sandbox::seccomp::{self, SeccompData};
use serde_json::Value;

fn facts() -> HostFacts {
    HostFacts {
        sandbox: Host {
            user: 0,
            group: 0,
            in_user_namespace: false,
            groups_denied: false,
            cgroups: Layout::None,
            bounding: Set(0x1ff_ffff_ffff),
            apparmor: false,
            selinux: false,
        },
        architecture: "SCMP_ARCH_X86_64".to_owned(),
        kernel: (5, 10),
        host_name: "host".to_owned(),
        swap_limit: false,
        terminal_group: true,
        processors: 1,
    }
}

/// The texts of a list; `null` and nothing are an empty one.
fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether this machine, as Docker names it, is among them.
fn has_machine(names: &[&str]) -> bool {
    names.iter().any(|name| matches!(*name, "amd64" | "x32" | "X86_64"))
}

fn new_enough(text: &str) -> bool {
    let (major, minor) = text.split_once('.').expect("a version was read");
    (5_u32, 10_u32) >= (major.parse().expect("a number"), minor.parse().expect("a number"))
}

/// What Docker's documentation says of a rule's conditions, from the JSON itself.
fn applies(rule: &Value, capabilities: Set) -> bool {
    let has = |name: &&str| Set::number(name).is_some_and(|number| capabilities.has(number));
    let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
    let version =
        |conditions: &Value| conditions["minKernel"].as_str().filter(|text| !text.is_empty()).map(new_enough);
    let wanted = texts(&includes["arches"]);
    (wanted.is_empty() || has_machine(&wanted))
        && texts(&includes["caps"]).iter().all(has)
        && version(includes).unwrap_or(true)
        && !has_machine(&texts(&excludes["arches"]))
        && !texts(&excludes["caps"]).iter().any(has)
        && !version(excludes).unwrap_or(false)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let facts = facts();
    for capabilities in [Set::default(), Set(0xa804_25fb), Set(0x1ff_ffff_ffff)] {
        let profile = match parse_profile(text, capabilities, &facts) {
            Ok(profile) => profile,
            Err(error) => {
                assert!(error.to_string().starts_with("--security-opt seccomp: the profile "), "{error}");
                return;
            }
        };
        // One key twice is refused by the door, so this is the same document; only numbers that it passed over may
        // be too large.
        let Ok(document) = serde_json::from_str::<Value>(text) else { return };
        let rules = document["syscalls"].as_array().into_iter().flatten();
        let expected: Vec<&Value> = rules.filter(|rule| applies(rule, capabilities)).collect();
        assert_eq!(profile.syscalls.len(), expected.len(), "{capabilities:?}");
        for (rule, expected) in profile.syscalls.iter().zip(expected) {
            assert_eq!(Some(rule.action.as_str()), expected["action"].as_str());
            let old = expected["name"].as_str().filter(|name| !name.is_empty());
            let names = old.map_or_else(|| texts(&expected["names"]), |name| vec![name]);
            assert_eq!(rule.names, names);
            assert_eq!(rule.args.len(), expected["args"].as_array().map_or(0, Vec::len));
        }
        let Ok(filter) = seccomp::compile(&profile) else { continue };
        for nr in [0, 1, 57, 59, 101, 165, 272, 435, 450, 0x4000_0001] {
            let data = SeccompData { nr, arch: 0xc000_003e, ..SeccompData::default() };
            let decided = seccomp::decide(&profile, &data).expect("what compiles can be decided");
            assert_eq!(seccomp::evaluate(&filter.program, &data), decided, "{data:x?}");
        }
    }
});
