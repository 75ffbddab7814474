//! Running a test again in the emulated host that `cargo xtask lab` boots.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set by the lab for what runs in it.
const INSIDE: &str = "MOAT_LAB";

/// Whether this process runs in the lab.
pub fn in_lab() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Boots the lab and runs the test `name` of this test program in it, with the built runtime. The programs that it
/// starts often are copied into the lab's memory; all others are read from this machine's root.
///
/// Panics when the test fails there, or the lab can not be booted.
#[track_caller]
pub fn run_in_lab(name: &str) {
    run_in_lab_with(name, &[]);
}

/// As [`run_in_lab`], with more files in the lab's memory, below /tmp/lab.
#[track_caller]
pub fn run_in_lab_with(name: &str, files: &[&Path]) {
    let own = std::env::current_exe().expect("the test program's own path");
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|file| file.exists());
    let busybox = busybox.expect("busybox is not installed: it is the package busybox-static");
    let mut lab = xtask();
    lab.arg("lab");
    let runtime = crate::program();
    for file in [own.as_path(), &runtime, &busybox].iter().chain(files) {
        lab.arg("--copy").arg(file);
    }
    let copy = |file: &Path| Path::new("/tmp/lab").join(file.file_name().unwrap_or_default());
    // busybox from memory, not from the machine's disk.
    let path = format!("/tmp/lab:{}", std::env::var("PATH").unwrap_or_default());
    lab.env("MOAT_RUNTIME", copy(&runtime)).env("PATH", path).arg("--").arg(copy(&own));
    lab.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let status = lab.status().unwrap_or_else(|error| panic!("{lab:?}: {error}"));
    assert!(status.success(), "{lab:?}: {status}");
}

/// The project's tools: built already where `cargo xtask test` runs the tests, else by cargo.
fn xtask() -> Command {
    match std::env::var_os("MOAT_XTASK") {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.arg("xtask").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
            cargo
        }
    }
}
