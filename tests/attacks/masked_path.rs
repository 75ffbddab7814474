//! CVE-2025-31133, CVE-2025-52565: an image that has something else where the runtime takes the cover of a
//! masked path, or the terminal, from.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use moat_tests::{Bundle, ConsoleSocket, Runtime, read_master};
use serde_json::json;

use crate::racer::Racer;

const SECRET: &str = "what the mask has to cover";

/// Prints what is to be seen of each masked path: nothing, of a file and of a folder.
const LOOK: &str = "for path in /secret /linked /proc/version /proc/keys; do \
        echo \"$path $(stat -L -c '%F %t:%T' $path) [$(head -c 99 $path 2>&1)]\"; done; \
    echo \"/folder [$(ls -A /folder)] $(touch /folder/new 2>&1 | grep -c Read-only)\"";

const MASKED: &str = "/secret character special file 1:3 []\n\
    /linked character special file 1:3 []\n\
    /proc/version character special file 1:3 []\n\
    /proc/keys character special file 1:3 []\n\
    /folder [] 1\n";

/// An image with things to mask, one of them behind a link.
fn image() -> Bundle {
    let mut bundle = Bundle::shell(LOOK);
    bundle.file("secret", SECRET).file("target", SECRET).file("folder/inside", SECRET);
    bundle.link("/target", "linked");
    for path in ["/secret", "/linked", "/folder", "/proc/version", "/not/there", "/secret/below"] {
        bundle.push("/linux/maskedPaths", json!(path));
    }
    bundle
}

/// A file of the host's that nothing may change, and that an image's links point to.
struct Canary {
    folder: tempfile::TempDir,
    null: (u64, u32, u32),
}

fn host_null() -> (u64, u32, u32) {
    let found = Path::new("/dev/null").symlink_metadata().unwrap();
    (found.rdev(), found.mode(), found.uid())
}

impl Canary {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "canary").unwrap();
        Self { folder, null: host_null() }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("file")
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(std::fs::read_to_string(self.file()).unwrap(), "canary");
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 1);
        assert_eq!(host_null(), self.null, "the host's /dev/null was changed");
    }
}

#[track_caller]
fn is_masked(bundle: &Bundle) {
    let canary = Canary::new();
    let runtime = Runtime::new();
    assert_eq!(runtime.run(bundle).success(), MASKED);
    canary.check();
}

#[test]
fn masks_cover() {
    is_masked(&image());
}

#[test]
fn the_null_device_of_the_image_is_a_file() {
    let mut bundle = image();
    bundle.remove_mount("/dev").file("dev/null", "not masked");
    is_masked(&bundle);
}

#[test]
fn the_null_device_of_the_image_is_a_link() {
    let mut bundle = image();
    let canary = Canary::new();
    bundle.remove_mount("/dev").link(canary.file(), "dev/null");
    is_masked(&bundle);
    canary.check();
}

/// A /dev of the host's making: the runtime leaves it as it is, so its null device is whatever it is.
#[test]
fn the_null_device_of_a_shared_folder_is_a_file() {
    let mut bundle = image();
    let dev = bundle.path().join("dev");
    for name in ["pts", "shm", "mqueue"] {
        std::fs::create_dir_all(dev.join(name)).unwrap();
    }
    std::fs::write(dev.join("null"), "not masked").unwrap();
    bundle.remove_mount("/dev");
    let mounts = bundle.config()["mounts"].clone();
    bundle.set("/mounts", json!([]));
    bundle.push(
        "/mounts",
        json!({ "type": "bind", "source": dev, "destination": "/dev", "options": ["rbind"] }),
    );
    for mount in mounts.as_array().unwrap() {
        bundle.push("/mounts", mount.clone());
    }
    is_masked(&bundle);
    assert_eq!(std::fs::read_to_string(dev.join("null")).unwrap(), "not masked");
}

#[test]
fn the_whole_dev_of_the_image_is_a_link() {
    let bundle = image();
    let canary = Canary::new();
    bundle.link(canary.folder.path(), "dev");
    is_masked(&bundle);
    canary.check();
}

#[test]
fn the_null_device_is_exchanged_while_the_container_is_built() {
    let mut bundle = image();
    let canary = Canary::new();
    bundle.remove_mount("/dev").link(canary.file(), "dev/other");
    bundle.file("dev/null", "not masked");
    let runtime = Runtime::new();
    let racer = Racer::new(bundle.rootfs().join("dev/null"), bundle.rootfs().join("dev/other"));
    let mut succeeded = 0;
    for _ in 0..100 {
        let output = runtime.run(&bundle);
        if output.code == 0 {
            assert_eq!(output.stdout, MASKED);
            succeeded += 1;
        }
        canary.check();
    }
    // The first run may replace one of the two by the true device, after which there is less to exchange.
    drop(racer);
    assert!(succeeded > 0, "no container was ever built: the test shows nothing");
}

/// What a container with a terminal says of it.
fn terminal_of(bundle: &mut Bundle, runtime: &Runtime) -> Result<String, String> {
    bundle.set("/process/terminal", json!(true));
    let id = runtime.id();
    let socket = ConsoleSocket::new(runtime.folder().join(&id));
    let flags = ["--console-socket", socket.path().to_str().unwrap()];
    let container = runtime.create_with(bundle, &flags).map_err(|output| output.failure().to_owned())?;
    let mut master = socket.receive();
    container.start().success();
    Ok(read_master(&mut master).replace('\r', ""))
}

const TERMINAL: &str = "tty; stat -L -c '%t' /proc/self/fd/0; \
    [ $(stat -L -c %d /proc/self/fd/0) = $(stat -c %d /dev/pts) ] && echo own; \
    stat -L -c '%F %t:%T' /dev/console; cat /target";

#[test]
fn the_terminal_is_of_the_containers_own_devpts() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(TERMINAL);
    bundle.file("target", "");
    let told = terminal_of(&mut bundle, &runtime).unwrap();
    assert_eq!(told, "/dev/pts/0\n88\nown\ncharacter special file 88:0\n");
}

#[test]
fn the_console_of_the_image_is_a_link() {
    let canary = Canary::new();
    for target in ["/target".into(), canary.file(), "/proc/sysrq-trigger".into(), "/dev/pts/ptmx".into()] {
        let runtime = Runtime::new();
        let mut bundle = Bundle::shell("cat /proc/sysrq-trigger; tty; echo > /proc/sysrq-trigger");
        bundle.remove_mount("/dev").file("target", "").link(&target, "dev/console");
        match terminal_of(&mut bundle, &runtime) {
            Ok(told) => {
                assert!(told.contains("/dev/pts/0") || told.contains("console"), "{target:?}: {told}");
            }
            Err(why) => assert!(why.contains("terminal"), "{target:?}: {why}"),
        }
        canary.check();
    }
}

/// The multiplexer would be the host's, and with it the terminal.
#[test]
fn the_devpts_of_the_image_is_none() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(TERMINAL);
    bundle.remove_mount("/dev").remove_mount("/dev/pts");
    std::fs::create_dir(bundle.rootfs().join("dev/pts")).unwrap();
    bundle.link("/dev/pts/ptmx", "dev/pts/ptmx");
    let why = terminal_of(&mut bundle, &runtime).unwrap_err();
    assert!(why.contains("/dev/pts, which is something else"), "{why}");
}

#[test]
fn the_devpts_of_the_image_is_a_link() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(TERMINAL);
    bundle.remove_mount("/dev").remove_mount("/dev/pts").link("/target", "dev/pts");
    std::fs::create_dir(bundle.rootfs().join("target")).unwrap();
    bundle.link("/dev/pts/ptmx", "target/ptmx");
    let why = terminal_of(&mut bundle, &runtime).unwrap_err();
    assert!(why.contains("/dev/pts"), "{why}");
}
