//! What boots a guest with the agent as its first process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

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
        let kernel = PathBuf::from(std::env::var_os("MOAT_GUEST_KERNEL")?);
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

/// A program that was built beside the tests.
fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("there is no {name} beside {}: `cargo build -p {name}` builds it", own.display())
    })
}
