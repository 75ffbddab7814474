//! What the program finds itself with: limits, ids, privileges, scheduling, descriptors.

use moat_tests::{Bundle, Runtime, wait_until};
use serde_json::json;

use crate::{prepared, sleeping};

/// What a line of shell says in a container that a change has made special.
#[track_caller]
fn said(script: &str, change: impl FnOnce(&mut Bundle)) -> String {
    let mut bundle = Bundle::shell(script);
    bundle.set("/root/readonly", json!(false));
    change(&mut bundle);
    Runtime::new().run(&bundle).success().to_owned()
}

#[test]
fn resource_limits() {
    let limits = json!([
        { "type": "RLIMIT_NOFILE", "soft": 123, "hard": 456 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 },
        { "type": "RLIMIT_STACK", "soft": 1_048_576, "hard": u64::MAX },
    ]);
    let script =
        "awk '/open files/{print $4,$5} /core file/{print $5,$6} /stack/{print $4,$5}' /proc/self/limits";
    let text = said(script, |bundle| {
        bundle.set("/process/rlimits", limits);
    });
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0 4096", "1048576 unlimited", "123 456"]);
}

#[test]
fn ids_and_the_mask_of_new_files() {
    let script = "id -u; id -g; id -G; umask; echo > /tmp/file; stat -c %a /tmp/file";
    let text = said(script, |bundle| {
        bundle.set(
            "/process/user",
            json!({ "uid": 12, "gid": 13, "additionalGids": [20, 30], "umask": 0o027 }),
        );
        let tmp = bundle.rootfs().join("tmp");
        std::os::unix::fs::chown(tmp, Some(12), None).unwrap();
    });
    assert_eq!(text, "12\n13\n13 20 30\n0027\n640\n");
    assert_eq!(said("umask; id -G", |_| {}), "0022\n0\n");
}

#[test]
fn the_score_of_the_oom_killer() {
    let text = said("cat /proc/self/oom_score_adj", |bundle| {
        bundle.set("/process/oomScoreAdj", json!(321));
    });
    assert_eq!(text, "321\n");
}

#[test]
fn the_personality() {
    let text = said("uname -m", |bundle| {
        bundle.set("/linux/personality", json!({ "domain": "LINUX32" }));
    });
    assert_eq!(text, if cfg!(target_arch = "x86_64") { "i686\n" } else { "armv8l\n" });
}

#[test]
fn the_scheduler() {
    // Nice and policy: 3 is SCHED_BATCH.
    let text = said("exec cut -d ' ' -f 19,41 /proc/self/stat", |bundle| {
        bundle.set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 5 }));
    });
    assert_eq!(text, "5 3\n");
}

#[test]
fn the_priority_of_input_and_output() {
    let text = said("busybox ionice -p $$", |bundle| {
        bundle.set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }));
    });
    assert_eq!(text, "best-effort: prio 6\n");
}

#[test]
fn the_processors_of_exec() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let last = own.rsplit([',', '-']).next().unwrap();
    let mut bundle = sleeping();
    bundle.set("/process/execCPUAffinity", json!({ "final": last }));
    let runtime = Runtime::new();
    let container = runtime.start(&bundle);
    let look = |pid: &str| container.shell(&format!("sed -n 's/Cpus_allowed_list:.//p' /proc/{pid}/status"));
    assert_eq!(look("self").success(), format!("{last}\n"));
    // It concerns what exec starts alone.
    assert_eq!(look("1").success(), format!("{own}\n"));
}

#[test]
fn capabilities_reach_a_user_who_is_not_root() {
    // CAP_NET_BIND_SERVICE is number 10, CAP_KILL number 5.
    let script = "exec sed -n 's/^Cap//p; /NoNewPrivs/p' /proc/self/status";
    let (one, both) = (json!(["CAP_NET_BIND_SERVICE"]), json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]));
    let text = said(script, |bundle| {
        bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
        bundle.set(
            "/process/capabilities",
            json!({ "bounding": both, "permitted": both, "effective": both, "inheritable": one, "ambient": one }),
        );
    });
    let set = |bits: u64| format!("{bits:016x}");
    let expected =
        [("Inh", 1 << 10), ("Prm", 1 << 10), ("Eff", 1 << 10), ("Bnd", 1 << 10 | 1 << 5), ("Amb", 1 << 10)]
            .map(|(name, bits)| format!("{name}:\t{}\n", set(bits)))
            .concat();
    assert_eq!(text, expected + "NoNewPrivs:\t1\n");
    let text = said(script, |bundle| {
        bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
        bundle.remove("/process/capabilities").set("/process/noNewPrivileges", json!(false));
    });
    let none = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|name| format!("{name}:\t{}\n", set(0))).concat();
    assert_eq!(text, none + "NoNewPrivs:\t0\n");
}

#[test]
fn the_filter_of_system_calls() {
    let script = "mkdir /tmp/refused 2>&1; echo $?; grep Seccomp: /proc/self/status";
    let text = said(script, |bundle| {
        let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122 });
        bundle.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
    });
    assert_eq!(text, "mkdir: can't create directory '/tmp/refused': Disk quota exceeded\n1\nSeccomp:\t2\n");
}

/// A 32-bit program that ends with the error that getpid(2) gave it, 0 where it gave none.
fn program_of_32_bits() -> Vec<u8> {
    #[rustfmt::skip]
    let code: &[u8] = &[
        0xb8, 20, 0, 0, 0, // mov eax, 20 (getpid)
        0xcd, 0x80,        // int 0x80
        0xf7, 0xd8,        // neg eax: the error, or less than nothing
        0x89, 0xc3,        // mov ebx, eax
        0x85, 0xdb,        // test ebx, ebx
        0x79, 0x02,        // jns over the next
        0x31, 0xdb,        // xor ebx, ebx
        0xb8, 1, 0, 0, 0,  // mov eax, 1 (exit)
        0xcd, 0x80,        // int 0x80
    ];
    let (base, size) = (0x0804_8000_u32, 84 + code.len() as u32);
    // The header of an executable for the 386, and one segment that is the whole file.
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0".to_vec();
    [1, base + 84, 52, 0, 0].iter().for_each(|word| elf.extend(u32::to_le_bytes(*word)));
    [52, 32, 1, 0, 0, 0].iter().for_each(|half| elf.extend(u16::to_le_bytes(*half)));
    [1, 0, base, base, size, size, 5, 0x1000].iter().for_each(|word| elf.extend(u32::to_le_bytes(*word)));
    elf.extend(code);
    elf
}

/// A filter decides for every architecture that it names, by that one's own numbers; others are not let in.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_of_32_bits_is_filtered() {
    use std::os::unix::fs::PermissionsExt;
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["/tmp/small"]);
    let program = bundle.rootfs().join("tmp/small");
    std::fs::write(&program, program_of_32_bits()).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(runtime.run(&bundle).code, 0, "without a filter");
    let rule = json!([{ "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42 }]);
    for (architectures, code) in
        [(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), 42), (json!(["SCMP_ARCH_X86_64"]), 128 + 31)]
    {
        let filter =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rule });
        bundle.set("/linux/seccomp", filter);
        assert_eq!(runtime.run(&bundle).code, code, "{architectures}");
    }
}

#[test]
fn descriptors_are_kept_when_asked_for() {
    let runtime = Runtime::new();
    let bundle = Bundle::shell("cat <&3; cat <&4; ls /proc/self/fd | wc -l");
    let given = "echo third > \"$0.3\"; echo fourth > \"$0.4\"; exec \"$@\" 3< \"$0.3\" 4< \"$0.4\"";
    let given = given.replace("$0", runtime.folder().join("given").to_str().unwrap());
    let command = runtime.build("run", &bundle, &["--preserve-fds", "2"], &runtime.id());
    // Besides the five there is the folder that ls reads.
    assert_eq!(prepared(&given, &command, &[]).success(), "third\nfourth\n6\n");
    let bundle = Bundle::shell("ls /proc/self/fd | wc -l");
    let command = runtime.build("run", &bundle, &[], &runtime.id());
    assert_eq!(prepared(&given, &command, &[]).success(), "4\n");
}

#[test]
fn the_pid_file_and_the_annotations() {
    let runtime = Runtime::new();
    let mut bundle = sleeping();
    bundle.set("/annotations", json!({ "org.moat.one": "1", "empty": "" }));
    let (file, second) = (runtime.folder().join("pid"), runtime.folder().join("second"));
    let container = runtime.create_with(&bundle, &["--pid-file", file.to_str().unwrap()]).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), container.pid().to_string());
    assert_eq!(container.state()["annotations"], json!({ "org.moat.one": "1", "empty": "" }));
    container.start().success();
    let flags = ["--detach", "--pid-file", second.to_str().unwrap()];
    container.exec_with(&flags, &["sleep", "100003"]).success();
    let pid = std::fs::read_to_string(second).unwrap();
    assert_eq!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"sleep\x00100003\x00");
}

/// A signal is the first process's; with `--all` it is everybody's.
#[test]
fn kill_and_kill_all() {
    let runtime = Runtime::new();
    let body = "while :; do sleep 0.02; done";
    let script = format!(
        "trap 'echo > /tmp/first' USR1; \
         (trap 'echo > /tmp/second' USR1; echo > /tmp/ready; {body}) 2>/dev/null & \
         {body} 2>/dev/null"
    );
    let mut bundle = Bundle::shell(&script);
    bundle.set("/root/readonly", json!(false));
    let container = runtime.start(&bundle);
    let there = |name: &str| bundle.rootfs().join("tmp").join(name).exists();
    wait_until(|| there("ready"));
    container.kill("USR1").success();
    wait_until(|| there("first"));
    // The second shell would have made its file within one of its turns.
    for _ in 0..10 {
        container.shell("sleep 0.02").success();
    }
    assert!(!there("second"));
    runtime.call(&["kill", "--all", container.id(), "USR1"]).success();
    wait_until(|| there("second"));
    container.delete();
}

/// The program has a session keyring of its own, named after the container, unless the caller's is to be kept.
#[test]
fn the_session_keyring() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::new(&["true"]);
    bundle.remove("/linux/maskedPaths");
    for (flags, count) in [(&[][..], "1\n"), (&["--no-new-keyring"], "0\n")] {
        let id = runtime.id();
        bundle.set("/process/args", json!(["sh", "-c", "grep -c \"_ses.$0\" /proc/keys || true", id]));
        let output = runtime.build("run", &bundle, flags, &id).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), count, "{flags:?}: {output:?}");
    }
}
