//! CVE-2019-5736, CVE-2016-9962: a container overwrites the runtime's program through /proc/PID/exe.
//!
//! The attacker is the first process of a container. It takes hold of the file of any process around it
//! that is not its own program, waits until nobody runs that file, and opens it again for writing. The
//! runtime is a copy in a folder of the test's, writable for everybody.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use moat_tests::{Bundle, Container, Runtime, wait_until};
use serde_json::json;

/// A process of the runtime's that is given this as its log waits until somebody reads.
const FIFO: &str = "/fifo";

fn copy_of_runtime(folder: &std::path::Path) -> PathBuf {
    let copy = folder.join("moat-runtime");
    std::fs::copy(moat_tests::program(), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o777)).unwrap();
    copy
}

fn hunting_ground(capabilities: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(&["/attacker", "hunt", FIFO]);
    bundle.program(crate::ATTACKER, "attacker");
    bundle.script("script", "#!/proc/self/exe state\n");
    moat_linux::fs::mkfifo(&bundle.rootfs().join("fifo"), 0o666).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(capabilities));
    }
    bundle
}

/// Starts the attacker, shows it a victim, and gives what it told. The runtime's file must be unchanged.
fn attack(capabilities: &[&str], victim: impl Fn(&Runtime, &Container<'_>, &Bundle)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of_runtime(folder.path());
    let before = std::fs::read(&copy).unwrap();
    let runtime = Runtime::of(&copy);
    let bundle = hunting_ground(capabilities);
    let attacker = runtime.start(&bundle);
    wait_until(|| attacker.stdout().contains("ready"));
    victim(&runtime, &attacker, &bundle);
    let told = attacker.stdout();
    let unchanged = std::fs::read(&copy).unwrap() == before;
    if !unchanged {
        // What was overwritten could not clean up.
        std::fs::remove_file(&copy).unwrap();
        std::fs::copy(moat_tests::program(), &copy).unwrap();
    }
    assert!(unchanged, "the runtime's program was overwritten: {told}");
    told
}

/// Waits for the end of the hunt.
fn outcome(attacker: &Container<'_>) {
    wait_until(|| attacker.stdout().contains("outcome: "));
}

/// A second container in the attacker's PID namespace.
fn neighbour(bundle: &Bundle, attacker: &Container<'_>, args: &[&str]) -> Bundle {
    let mut neighbour = Bundle::new(args);
    neighbour.set("/root/path", json!(bundle.rootfs()));
    // Who has more rights than the attacker is hidden from it.
    neighbour.set("/process/capabilities", bundle.config()["process"]["capabilities"].clone());
    neighbour.retain_namespaces(|kind| kind != "pid");
    let path = format!("/proc/{}/ns/pid", attacker.pid());
    neighbour.push("/linux/namespaces", json!({ "type": "pid", "path": path }));
    neighbour
}

fn caught_and_refused(told: &str) {
    assert!(told.contains("caught"), "{told}");
    assert!(told.contains("outcome: refused: Read-only file system"), "{told}");
}

#[test]
fn exec_of_proc_self_exe() {
    let log = format!("--log={FIFO}");
    caught_and_refused(&attack(&[], |_, attacker, _| {
        attacker.exec(&["/proc/self/exe", &log, "list"]);
        outcome(attacker);
    }));
}

/// The script's path is no command of the runtime's, which ends at once: it takes a few tries to catch it.
#[test]
fn exec_of_a_script_whose_interpreter_is_proc_self_exe() {
    caught_and_refused(&attack(&[], |_, attacker, _| {
        while !attacker.stdout().contains("caught") {
            attacker.exec(&["/script"]);
        }
        outcome(attacker);
    }));
}

#[test]
fn run_of_proc_self_exe() {
    let log = format!("--log={FIFO}");
    caught_and_refused(&attack(&[], |runtime, attacker, bundle| {
        runtime.run(&neighbour(bundle, attacker, &["/proc/self/exe", &log, "list"]));
        outcome(attacker);
    }));
}

/// Between create and start init is the runtime. With the right to trace it can be looked into; that right
/// must be of no use.
#[test]
fn init_that_waits_for_start() {
    caught_and_refused(&attack(&["CAP_SYS_PTRACE"], |runtime, attacker, bundle| {
        let waiting = runtime.create(&neighbour(bundle, attacker, &["/bin/true"]));
        wait_until(|| attacker.stdout().contains("caught"));
        waiting.start();
        outcome(attacker);
    }));
}

/// Without that right it is hidden, from the first moment on.
#[test]
fn init_is_not_dumpable() {
    let told = attack(&[], |runtime, attacker, bundle| {
        let waiting = runtime.create(&neighbour(bundle, attacker, &["/bin/true"]));
        let denials = || attacker.stdout().matches("denied").count();
        let before = denials();
        wait_until(|| denials() > before + 2 || attacker.stdout().contains("caught"));
        waiting.start();
    });
    assert!(!told.contains("caught"), "{told}");
}

/// The short time in which `exec` has joined the container and is still the runtime.
#[test]
fn exec_in_a_loop() {
    let told = attack(&["CAP_SYS_PTRACE"], |_, attacker, _| {
        while !attacker.stdout().contains("caught") {
            attacker.exec(&["/bin/true"]);
        }
        outcome(attacker);
    });
    caught_and_refused(&told);
}
