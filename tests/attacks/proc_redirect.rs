//! CVE-2025-52881, CVE-2019-16884, CVE-2019-19921, CVE-2023-27561: an image that has something else where the
//! runtime expects /proc, so that what is written there lands elsewhere and what is to be masked is not.

use moat_tests::{Bundle, Runtime};
use serde_json::json;

use crate::racer::Racer;

const SYSCTL: &str = "net.ipv4.ip_forward";
const FILE: &str = "sys/net/ipv4/ip_forward";

fn host_value() -> String {
    std::fs::read_to_string(format!("/proc/{FILE}")).unwrap()
}

/// The value that the host does not have.
fn other_value() -> &'static str {
    if host_value().trim() == "1" { "0" } else { "1" }
}

#[test]
fn a_proc_that_is_a_link_is_refused() {
    for (path, target) in [("proc", "/tmp"), ("proc", "/sys"), ("sys", "/tmp"), ("proc", "../../../../tmp")] {
        let bundle = Bundle::new(&["/bin/true"]);
        bundle.link(target, path);
        let why = Runtime::new().run(&bundle).failure().to_owned();
        assert!(why.contains(&format!("mount /{path}")) && why.contains("without symbolic links"), "{why}");
    }
}

#[test]
fn a_proc_that_is_a_file_is_refused() {
    let bundle = Bundle::new(&["/bin/true"]);
    std::fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    bundle.file("proc", "");
    let why = Runtime::new().run(&bundle).failure().to_owned();
    assert!(why.contains("mount /proc"), "{why}");
}

/// The image's own files below /proc are neither read nor written, with a procfs on top and without.
#[test]
fn a_kernel_parameter_lands_in_the_containers_namespace() {
    let before = host_value();
    for procfs in [true, false] {
        let mut bundle = Bundle::shell(&format!("cat /true/{FILE}"));
        bundle.set("/linux/sysctl", json!({ SYSCTL: other_value() }));
        bundle.push("/mounts", json!({ "type": "proc", "source": "proc", "destination": "/true" }));
        bundle.file(&format!("proc/{FILE}"), "fake").file("proc/self/attr/exec", "fake");
        bundle.file("elsewhere", "fake").link("/elsewhere", "proc/sys/net/ipv4/link");
        if !procfs {
            bundle.remove_mount("/proc");
        }
        let runtime = Runtime::new();
        assert_eq!(runtime.run(&bundle).success().trim(), other_value());
        for path in [&format!("proc/{FILE}"), "proc/self/attr/exec", "elsewhere"] {
            assert_eq!(std::fs::read_to_string(bundle.rootfs().join(path)).unwrap(), "fake", "{path}");
        }
    }
    assert_eq!(host_value(), before);
}

#[test]
fn parameters_of_the_host_are_refused() {
    let names = [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "net/ipv4/..//..//kernel/core_pattern",
        "net....kernel.core_pattern",
        "kernel.shm_rmid_forced/../core_pattern",
        "fs.mqueue./../../kernel/core_pattern",
        "/kernel/core_pattern",
        "",
        "net.",
    ];
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for name in names {
        let mut bundle = Bundle::new(&["/bin/true"]);
        // What the host has already: were it written, nothing would change.
        bundle.set("/linux/sysctl", json!({ name: before.trim() }));
        let why = Runtime::new().run(&bundle).failure().to_owned();
        assert!(why.contains("linux.sysctl"), "{name:?}: {why}");
    }
}

/// Where there is a procfs, whatever its name is by now, it must be masked and its switches read-only.
/// The working directory stays the same while the names are still being exchanged.
const LOOK: &str = "for folder in /proc /decoy; do \
        cd $folder; [ -e 1/stat ] || continue; \
        [ \"$(stat -c %t:%T version)\" = 1:3 ] || echo \"$folder is not masked\"; \
        ( echo 1 > sys/net/ipv4/ip_forward ) 2>/dev/null && echo \"$folder/sys can be written\"; \
    done; echo looked";

#[test]
fn proc_is_exchanged_while_the_container_is_built() {
    let before = host_value();
    let mut bundle = Bundle::shell(LOOK);
    bundle.set("/linux/sysctl", json!({ SYSCTL: other_value() }));
    bundle.push("/linux/maskedPaths", json!("/proc/version"));
    bundle.file(&format!("decoy/{FILE}"), "fake").file("decoy/self/attr/exec", "fake");
    let runtime = Runtime::new();
    let racer = Racer::new(bundle.rootfs().join("proc"), bundle.rootfs().join("decoy"));
    let mut looked = 0;
    for _ in 0..200 {
        let output = runtime.run(&bundle);
        assert!(output.signal.is_none(), "{output:?}");
        if output.code == 0 {
            assert_eq!(output.stdout, "looked\n");
            looked += 1;
        }
    }
    assert!(racer.turns() > 1000, "the race was none: {} turns", racer.turns());
    drop(racer);
    assert!(looked > 0, "no container was ever built: the test shows nothing");
    assert_eq!(host_value(), before);
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join(format!("decoy/{FILE}"))).unwrap(), "fake");
}

#[test]
fn proc_is_exchanged_with_a_link() {
    let before = host_value();
    let mut bundle = Bundle::shell(&LOOK.replace("/decoy", "/decoy /elsewhere"));
    bundle.set("/linux/sysctl", json!({ SYSCTL: other_value() }));
    bundle.push("/linux/maskedPaths", json!("/proc/version"));
    bundle.file(&format!("elsewhere/{FILE}"), "fake").link("/elsewhere", "decoy");
    let runtime = Runtime::new();
    let racer = Racer::new(bundle.rootfs().join("proc"), bundle.rootfs().join("decoy"));
    let (mut looked, mut refused) = (0, 0);
    for _ in 0..200 {
        let output = runtime.run(&bundle);
        assert!(output.signal.is_none(), "{output:?}");
        if output.code == 0 {
            assert_eq!(output.stdout, "looked\n");
            looked += 1;
        } else {
            refused += 1;
        }
    }
    drop(racer);
    assert!(looked > 0 && refused > 0, "the race was none: {looked} built, {refused} refused");
    assert_eq!(host_value(), before);
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join(format!("elsewhere/{FILE}"))).unwrap(), "fake");
}
