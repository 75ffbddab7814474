//! The same rules through libseccomp: both programs must answer the same calls in the same way.
//!
//! libseccomp's Python module comes with Debian's own Python, package python3-seccomp.

use std::io::Write;
use std::process::{Command, Stdio};

use moat_linux::capability::Set;
use moat_linux::seccomp::Instruction;
use moat_model::oci::{Seccomp, SeccompRule};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::generate::{self, NAMES};
use crate::seccomp::bpf::Listing;
use crate::seccomp::{compile, default_profile, evaluate, rules};

/// What an x86_64 kernel runs.
const ARCHES: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];

/// What both understand in the same way: the rules of one call that have conditions share an action.
/// Where they do not, libseccomp sorts them by rules of its own, or refuses.
fn config() -> impl Strategy<Value = Seccomp> {
    let names = select(
        NAMES.into_iter().filter(|name| !matches!(*name, "no_such_call" | "setup")).collect::<Vec<_>>(),
    );
    let actions =
        ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"];
    let action = move || select(actions.to_vec()).prop_map(str::to_owned);
    let rule = (names, vec(generate::arg(), 0..3));
    let rules = vec(rule, 1..8);
    (action(), action(), vec(select(ARCHES.to_vec()).prop_map(str::to_owned), 0..4), rules).prop_map(
        |(default_action, action, architectures, rules)| Seccomp {
            default_action,
            architectures,
            syscalls: rules
                .into_iter()
                .map(|(name, args)| SeccompRule {
                    names: vec![name.to_owned()],
                    action: action.clone(),
                    errno_ret: None,
                    args,
                })
                .collect(),
            ..Seccomp::default()
        },
    )
}

/// Compiles with libseccomp; `None` for what it refuses.
fn theirs(configs: &[Seccomp]) -> Vec<Option<Vec<Instruction>>> {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", include_str!("libseccomp.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("/usr/bin/python3 starts");
    let mut input = python.stdin.take().unwrap();
    let lines: Vec<String> = configs.iter().map(|one| serde_json::to_string(one).unwrap() + "\n").collect();
    let writer = std::thread::spawn(move || input.write_all(lines.concat().as_bytes()));
    let output = python.wait_with_output().unwrap();
    let written = writer.join().unwrap();
    assert!(output.status.success() && written.is_ok(), "is the package python3-seccomp installed?");
    let parse =
        |line: &str| serde_json::from_str::<Option<String>>(line).unwrap().map(|hex| instructions(&hex));
    std::str::from_utf8(&output.stdout).unwrap().lines().map(parse).collect()
}

fn instructions(hex: &str) -> Vec<Instruction> {
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let one = |chunk: &[u8]| Instruction {
        code: u16::from_ne_bytes([chunk[0], chunk[1]]),
        jt: chunk[2],
        jf: chunk[3],
        k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
    };
    bytes.chunks_exact(8).map(one).collect()
}

/// Whether a program compares something else with the numbers of an architecture: where two ABIs have rules
/// of the same form, libseccomp 2.5.4 joins them, and now and then forgets to load the number.
fn forgets(program: &[Instruction], arch: u32) -> bool {
    program.iter().enumerate().any(|(at, one)| {
        let next = program.get(at + 1 + usize::from(one.jt));
        one.code == 0x15 && one.k == arch && next.is_none_or(|next| (next.code, next.k) != (0x20, 0))
    })
}

#[test]
fn libseccomp_decides_the_same() {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    );
    let mut draw = |count: usize| -> Vec<Seccomp> {
        (0..count).map(|_| config().new_tree(&mut runner).unwrap().current()).collect()
    };
    let mut configs = draw(400);
    configs.push(default_profile(Set(0xa804_25fb), "SCMP_ARCH_X86_64", (6, 1)));
    let theirs = theirs(&configs);
    assert_eq!(theirs.len(), configs.len());
    let mut compared = 0;
    let mut refused = 0;
    let mut forgotten = 0;
    for (config, theirs) in configs.iter().zip(&theirs) {
        let Some(theirs) = theirs else {
            refused += 1;
            continue;
        };
        let ours = compile(config).unwrap();
        for data in generate::data(200).new_tree(&mut runner).unwrap().current() {
            let found = evaluate(&ours.program, &data);
            if found == rules::NO_SUCH_CALL {
                // runc puts this in front of what libseccomp makes.
                continue;
            }
            if forgets(theirs, data.arch) {
                forgotten += 1;
                continue;
            }
            let expected = evaluate(theirs, &data);
            assert_eq!(
                (rules::action_name(found), found),
                (rules::action_name(expected), expected),
                "{data:x?}\n{}\n{ours}\ntheirs:\n{}",
                serde_json::to_string(config).unwrap(),
                Listing(theirs),
            );
            compared += 1;
        }
    }
    println!(
        "{compared} calls compared, {refused} rule sets refused by libseccomp, {forgotten} calls misread by it"
    );
    let lengths = |config: &Seccomp, theirs: &Option<Vec<Instruction>>| {
        (compile(config).unwrap().program.len(), theirs.as_ref().map_or(0, Vec::len))
    };
    let (ours, others) = configs.iter().zip(&theirs).next_back().map(|(a, b)| lengths(a, b)).unwrap();
    println!("the default profile takes {ours} instructions, with libseccomp {others}");
    assert!(ours < others);
    assert!(compared > 20_000 && refused < configs.len() / 2, "{compared}, {refused}");
}
