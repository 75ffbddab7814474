//! The store within a user namespace, as an ordinary user with subordinate ids has it.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use moat_image::{LoadSpec, load, silent};
use moat_tests::{LayerTar, TarEntry, plain_layout, wait_until};

use super::Scratch;

/// The user's ids on the host.
const FIRST_ID: u32 = 100_000;

/// Runs a script as root of a user namespace of 65536 ids, in a mount namespace of its own.
fn in_user_namespace(script: &str) -> String {
    let line = "read go; exec setpriv --reuid 0 --regid 0 --clear-groups sh -c \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-U", "-m", "--keep-caps", "sh", "-c", line, "sh", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).unwrap();
    let process = child.id().to_string();
    wait_until(|| namespace(&process) != namespace("self"));
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{process}/{map}"), format!("0 {FIRST_ID} 65536")).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the overlay shows is the same, owners included, but for devices; opaque folders and whiteouts work.
#[test]
fn an_ordinary_user_sees_the_same_image() {
    let scratch = Scratch::new();
    let mut low = LayerTar::new();
    low.folder("a").file("a/x", "x").file("a/y", "y").folder("b").file("b/x", "x");
    low.entry(&TarEntry { owner: (7, 8), mode: 0o4755, ..TarEntry::new(b'0', "suid") });
    low.entry(&TarEntry { device: (1, 3), ..TarEntry::new(b'3', "null") });
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs: [(&str, &[u8]); 2] = [("security.capability", &capability), ("user.a", b"b")];
    low.entry(&TarEntry { xattrs: &xattrs, content: b"p", ..TarEntry::new(b'0', "ping") });
    let mut high = LayerTar::new();
    high.file("a/.wh.x", "").folder("b").file("b/.wh..wh..opq", "").file("b/z", "z");
    high.entry(&TarEntry { owner: (65_000, 65_000), mode: 0o700, ..TarEntry::new(b'5', "own") });
    let layout = plain_layout(&scratch.path().join("layout"), &[low.finish(), high.finish()]);
    let image = load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0);
    let expected: Vec<String> =
        scratch.tree(&image).into_iter().filter(|line| !line.starts_with("./null ")).collect();

    // Others may search the way to the layout, the program and the user's own folder.
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, home) = (scratch.path().join("program"), scratch.path().join("home"));
    std::fs::copy(PathBuf::from(env!("CARGO_BIN_EXE_images")), &program).unwrap();
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    let script = format!(
        "set -e
        images() {{ {program} {home}/images \"$@\"; }}
        images load {layout} > /dev/null
        images check deep >&2
        images tree test.example/image:1
        images remove test.example/image:1 > /dev/null
        images check deep >&2
        test -z \"$(find {home}/images/layers {home}/images/blobs -mindepth 1)\"",
        program = program.display(),
        home = home.display(),
        layout = layout.display(),
    );
    let shown = in_user_namespace(&script);
    let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
    super::assert_same(&shown, &expected);
}
