//! Tests of the compiler that need no kernel.

mod generate;
mod libseccomp;

use moat_linux::capability::Set;
use moat_linux::seccomp::Flags;
use moat_model::oci::Seccomp;
use proptest::prelude::*;

use super::bpf::LIMIT;
use super::*;

fn config(json: &str) -> Seccomp {
    serde_json::from_str(json).unwrap()
}

fn sentence(json: &str) -> String {
    compile(&config(json)).unwrap_err().to_string()
}

fn call(architecture: &str, name: &str, args: [u64; 6]) -> SeccompData {
    let nr = number(architecture, name).unwrap() as i32;
    SeccompData { nr, arch: audit_value(architecture).unwrap(), instruction_pointer: 0, args }
}

/// What the compiled filter does to a call on x86_64, as text.
fn action(filter: &Filter, name: &str, args: [u64; 6]) -> String {
    rules::action_name(evaluate(&filter.program, &call("SCMP_ARCH_X86_64", name, args)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 1500 } else { 20_000 }))]

    #[test]
    fn a_program_does_what_its_rules_say(config in generate::config(), data in generate::data(64)) {
        let filter = compile(&config).unwrap();
        for data in &data {
            let expected = decide(&config, data).unwrap();
            let found = evaluate(&filter.program, data);
            prop_assert_eq!(found, expected, "{:?}\n{}", data, filter);
        }
    }
}

#[test]
fn the_table_agrees_with_the_crate_syscalls() {
    fn compare<S: fmt::Display>(arch: &str, known: impl Iterator<Item = (S, i32)>) {
        let arch = arch::Arch::find(arch).unwrap();
        let mut wrong = Vec::new();
        for (name, id) in known {
            let name = name.to_string().replace("r#", "");
            let generic = matches!(arch.name, "SCMP_ARCH_AARCH64" | "SCMP_ARCH_LOONGARCH64");
            // The crate counts calls of the generic table that these architectures leave out.
            let phantom =
                generic && ((403..424).contains(&id) || matches!(name.as_str(), "fstatat" | "renameat"));
            let multiplexer = matches!(name.as_str(), "socketcall" | "ipc");
            if phantom || name.starts_with("reserved") || name.starts_with("unused") {
                continue;
            }
            let ours = table::find(&name).and_then(|row| arch.number(row));
            if ours != Some(id as u32) && !multiplexer {
                wrong.push(format!("{} {name}: {id}, ours {ours:?}", arch.name));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    macro_rules! compare {
        ($($arch:literal $module:ident,)*) => {
            $(compare($arch, syscalls::$module::Sysno::iter().map(|one| (one, one.id())));)*
        };
    }
    compare! {
        "SCMP_ARCH_X86_64" x86_64,
        "SCMP_ARCH_X86" x86,
        "SCMP_ARCH_AARCH64" aarch64,
        "SCMP_ARCH_ARM" arm,
        "SCMP_ARCH_RISCV64" riscv64,
        "SCMP_ARCH_LOONGARCH64" loongarch64,
        "SCMP_ARCH_S390X" s390x,
        "SCMP_ARCH_PPC64LE" powerpc64,
        "SCMP_ARCH_PPC" powerpc,
        "SCMP_ARCH_MIPS" mips,
        "SCMP_ARCH_MIPS64" mips64,
    }
}

#[test]
fn the_table_is_sorted() {
    assert!(table::ROWS.is_sorted_by(|one, other| one.name < other.name));
}

#[test]
fn a_wrong_configuration_is_named_in_a_sentence() {
    let sentences = [
        sentence(r#"{"defaultAction":"SCMP_ACT_FOO"}"#),
        sentence(r#"{"defaultAction":""}"#),
        sentence(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
        sentence(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":65536}"#),
        sentence(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"]}"#),
        sentence(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_FAST"]}"#),
        sentence(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_KILL"}]}"#,
        ),
        sentence(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        ),
        sentence(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ),
        sentence(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
                "args":[{"index":0,"value":0,"op":"=="}]}]}"#,
        ),
    ];
    let expected = [
        "seccomp: unknown action \"SCMP_ACT_FOO\"",
        "seccomp: unknown action \"\"",
        "seccomp: SCMP_ACT_NOTIFY cannot be the default action",
        "seccomp: the errnoRet 65536 of SCMP_ACT_ERRNO is above 65535",
        "seccomp: unknown architecture \"SCMP_ARCH_VAX\"",
        "seccomp: unknown flag \"SECCOMP_FILTER_FLAG_FAST\"",
        "seccomp: a rule has an empty system call name",
        "seccomp: SCMP_ACT_NOTIFY cannot be used for write",
        "seccomp: a condition names argument 6; system calls have arguments 0 to 5",
        "seccomp: unknown operator \"==\"",
    ];
    assert_eq!(sentences, expected);
}

#[test]
fn a_filter_that_is_too_long_is_refused() {
    // Every second value is allowed: nothing can be joined.
    let args: Vec<String> =
        (0..3000).map(|value| format!(r#"{{"index":0,"value":{},"op":"SCMP_CMP_EQ"}}"#, value * 2)).collect();
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_KILL","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{}]}}]}}"#,
        args.join(",")
    );
    assert_eq!(
        sentence(&json),
        "seccomp: the filter needs more than the 4096 instructions that the kernel takes"
    );
    let names = vec![r#""read""#; 5000].join(",");
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_KILL","syscalls":[{{"names":[{names}],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":0,"value":1,"op":"SCMP_CMP_EQ"}}]}}]}}"#
    );
    assert_eq!(
        sentence(&json),
        "seccomp: a rule has 1 conditions for 5000 system calls: a filter has at most 4096 instructions"
    );
}

#[test]
fn flags_follow_the_rules() {
    let filter = |flags: &str, action: &str| {
        compile(&config(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[{flags}],"syscalls":[{{"names":["mkdir"],"action":"{action}"}}]}}"#
        )))
        .unwrap()
    };
    let all =
        r#""SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#;
    assert_eq!(filter(all, "SCMP_ACT_TRAP").flags, Flags::LOG);
    let notify = filter(all, "SCMP_ACT_NOTIFY");
    assert_eq!(notify.flags, Flags::LOG.with(Flags::NEW_LISTENER).with(Flags::WAIT_KILLABLE_RECV));
    assert!(notify.notifies);
}

#[test]
fn rules_are_read_as_runc_reads_them() {
    let filter = compile(&config(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[
            {"names":["no_such_call","mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
            {"names":["mkdir"],"action":"SCMP_ACT_ALLOW"},
            {"names":["getppid"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["getppid"],"action":"SCMP_ACT_TRAP"},
            {"names":["dup2"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":3,"op":"SCMP_CMP_EQ"},{"index":0,"value":5,"op":"SCMP_CMP_GE"}]},
            {"names":["dup3"],"action":"SCMP_ACT_TRACE","args":[
                {"index":0,"value":3,"op":"SCMP_CMP_EQ"},{"index":1,"value":5,"op":"SCMP_CMP_GE"}]}
        ]}"#,
    ))
    .unwrap();
    assert_eq!(filter.unknown, ["no_such_call"]);
    // A rule that repeats the default hides no later one.
    assert_eq!(action(&filter, "mkdir", [0; 6]), "ALLOW");
    // Without conditions stands above with conditions.
    assert_eq!(action(&filter, "getppid", [1, 0, 0, 0, 0, 0]), "TRAP");
    // The same argument twice: either is enough.
    let dup2 = |fd| action(&filter, "dup2", [fd, 0, 0, 0, 0, 0]);
    assert_eq!([dup2(2), dup2(3), dup2(4), dup2(5)], ["ERRNO 13", "ALLOW", "ERRNO 13", "ALLOW"]);
    // Two arguments: both must hold.
    let dup3 = |one, two| action(&filter, "dup3", [one, two, 0, 0, 0, 0]);
    assert_eq!([dup3(3, 4), dup3(3, 5), dup3(4, 5)], ["ERRNO 13", "TRACE 1", "ERRNO 13"]);
    // Newer than anything that the profile names; and unnamed, but older.
    assert_eq!(action(&filter, "clone3", [0; 6]), "ERRNO 38");
    assert_eq!(action(&filter, "read", [0; 6]), "ERRNO 13");
    // Architectures that are not listed, and x32 under x86_64.
    let foreign = SeccompData { arch: audit_value("SCMP_ARCH_X86").unwrap(), ..SeccompData::default() };
    assert_eq!(evaluate(&filter.program, &foreign), rules::KILL_THREAD);
    let mut x32 = call("SCMP_ARCH_X86_64", "mkdir", [0; 6]);
    x32.nr |= arch::X32_BIT as i32;
    assert_eq!(evaluate(&filter.program, &x32), rules::KILL_THREAD);
}

#[test]
fn the_default_profile_guards_what_capabilities_grant() {
    let profile = |capabilities| default_profile(capabilities, "SCMP_ARCH_X86_64", (6, 1));
    let plain = compile(&profile(Set(0))).unwrap();
    let admin = Set(0).with(Set::number("CAP_SYS_ADMIN").unwrap());
    let powerful = compile(&profile(admin)).unwrap();
    let vm_sockets = |family: u64| action(&plain, "socket", [family, 1, 0, 0, 0, 0]);
    let clone = |filter, flags| action(filter, "clone", [flags, 0, 0, 0, 0, 0]);
    assert_eq!(action(&plain, "read", [0; 6]), "ALLOW");
    assert_eq!(action(&plain, "mount", [0; 6]), "ERRNO 1");
    assert_eq!(action(&powerful, "mount", [0; 6]), "ALLOW");
    assert_eq!(action(&plain, "clone3", [0; 6]), "ERRNO 38");
    assert_eq!(action(&powerful, "clone3", [0; 6]), "ALLOW");
    assert_eq!([clone(&plain, 17), clone(&plain, 0x1000_0000)], ["ALLOW", "ERRNO 1"]);
    assert_eq!(clone(&powerful, 0x1000_0000), "ALLOW");
    assert_eq!([vm_sockets(1), vm_sockets(2), vm_sockets(16)], ["ALLOW", "ALLOW", "ALLOW"]);
    assert_eq!([vm_sockets(40), vm_sockets(38), vm_sockets(12)], ["ERRNO 1", "ERRNO 1", "ERRNO 1"]);
    assert_eq!(action(&plain, "ptrace", [0; 6]), "ALLOW");
    let old = compile(&default_profile(Set(0), "SCMP_ARCH_X86_64", (4, 7))).unwrap();
    assert_eq!(action(&old, "ptrace", [0; 6]), "ERRNO 1");
    assert_eq!(action(&plain, "personality", [0; 6]), "ALLOW");
    assert_eq!(action(&plain, "personality", [0x40000, 0, 0, 0, 0, 0]), "ERRNO 1");
}

#[test]
fn every_grant_of_the_default_profile_states_its_reason() {
    assert!(profile::GROUPS.iter().all(|group| !group.reason.is_empty()));
}

#[test]
fn the_default_profile_names_only_calls_that_exist() {
    for arch in architectures() {
        let filter = compile(&default_profile(Set(u64::MAX >> 23), arch, (6, 18))).unwrap();
        assert_eq!(filter.unknown, Vec::<String>::new(), "{arch}");
        assert!(filter.program.len() < LIMIT / 4, "{arch}: {} instructions", filter.program.len());
    }
}

#[test]
#[ignore = "prints times"]
fn the_default_profile_is_compiled_quickly() {
    let start = std::time::Instant::now();
    let profile = default_profile(Set(0xa804_25fb), "SCMP_ARCH_X86_64", (6, 18));
    let made = start.elapsed();
    let mut best = std::time::Duration::MAX;
    let mut filter = compile(&profile).unwrap();
    for _ in 0..100 {
        let start = std::time::Instant::now();
        filter = compile(&profile).unwrap();
        best = best.min(start.elapsed());
    }
    println!("profile made in {made:?}, compiled in {best:?}, {} instructions", filter.program.len());
    println!("{filter}");
}
