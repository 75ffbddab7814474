//! What boots a guest with the agent as its first process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{Moat, in_lab, run_in_lab_with};

/// A kernel, an initramfs with the agent, and the monitor.
#[derive(Debug)]
pub struct GuestKernel {
    /// The kernel, with all that a guest needs built in.
    pub kernel: PathBuf,
    /// The agent as `/init`.
    pub initramfs: PathBuf,
    /// `moat-vmm`.
    pub monitor: PathBuf,
    _folder: Option<TempDir>,
}

impl GuestKernel {
    /// The small kernel where `cargo xtask kernel` has built it, and the programs that were built beside the tests.
    ///
    /// `None`, which the test prints, where there is no such kernel: building it takes longer than all tests.
    pub fn find() -> Option<Self> {
        let kernel = small_kernel()?;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let init = root.join("init");
        let stripped = Command::new("strip").arg("-o").arg(&init).arg(beside("moat-agent")).status().unwrap();
        assert!(stripped.success());
        let initramfs = folder.path().join("initramfs");
        let archive = std::fs::File::create(&initramfs).unwrap();
        let mut cpio = Command::new("sh");
        cpio.args(["-c", "find . | cpio --create --format=newc --quiet"]).current_dir(&root);
        assert!(cpio.stdout(Stdio::from(archive)).status().unwrap().success());
        Some(Self { kernel, initramfs, monitor: beside("moat-vmm"), _folder: Some(folder) })
    }

    /// The same within the lab, which was given [`files`](Self::files).
    pub fn in_lab() -> Self {
        let lab = Path::new("/tmp/lab");
        let of = |name: &str| lab.join(name);
        Self { kernel: of("vmlinux"), initramfs: of("initramfs"), monitor: of("moat-vmm"), _folder: None }
    }

    /// What the lab should hold in memory.
    pub fn files(&self) -> [&Path; 3] {
        [&self.kernel, &self.initramfs, &self.monitor]
    }
}

/// Runs the test `name` of this program in the lab, which has KVM with hardware virtualization, with `moat`, its monitor
/// of machines, the small kernel, and `agent` in place of the built agent. `inside` is what is done there.
///
/// Where there is no such kernel, nothing is done, which is printed.
#[track_caller]
#[expect(clippy::print_stdout, reason = "a test that does nothing says so")]
pub fn visit_with_machines(name: &str, agent: Option<&Path>, inside: fn()) {
    if in_lab() {
        return inside();
    }
    let Some(kernel) = small_kernel() else {
        println!(
            "skipped: there is no guest kernel; `cargo xtask kernel` builds it once, in a quarter of an hour"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let moat = Moat::empty();
    let stripped = |name: &str, from: &Path| {
        let to = folder.path().join(name);
        let status = Command::new("strip").arg("-o").arg(&to).arg(from).status().unwrap();
        assert!(status.success(), "`cargo build -p {name}` builds {}", from.display());
        to
    };
    let built = ["moat", "moat-vmm", "moat-agent"].map(|name| moat.program().with_file_name(name));
    let files = [
        stripped("moat", &built[0]),
        stripped("moat-vmm", &built[1]),
        stripped("moat-agent", agent.unwrap_or(&built[2])),
        kernel,
    ];
    run_in_lab_with(name, &files.each_ref().map(PathBuf::as_path));
}

/// Where `cargo xtask kernel` has built it.
fn small_kernel() -> Option<PathBuf> {
    std::env::var_os("MOAT_GUEST_KERNEL").map(PathBuf::from)
}

impl Moat {
    /// The built program with an image of busybox and the small kernel, within what [`visit_with_machines`] visits.
    pub fn with_machines() -> Self {
        let moat = Self::new();
        moat.call(&["kernel", "import", "--name", "small", "/tmp/lab/vmlinux"]).success();
        moat.call(&["kernel", "use", "small"]).success();
        moat
    }
}

/// A program that was built beside the tests.
fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("there is no {name} beside {}: `cargo build -p {name}` builds it", own.display())
    })
}
