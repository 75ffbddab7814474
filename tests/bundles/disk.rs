//! A state root that is full, read-only, or no folder. What is mounted for that is mounted in a mount
//! namespace of a shell's own, which is private.

use std::process::Command;

use moat_tests::{Bundle, leftovers};

use super::Sentences;

/// The runtime, started by a shell that first prepares `$ROOT`.
fn prepared(said: &Sentences, prepare: &str, bundle: &Bundle, id: &str) -> Command {
    let root = said.runtime.state_root();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command
        .arg(format!("{prepare}\nexec \"$@\""))
        .arg("sh")
        .arg(said.runtime.program())
        .arg("--root")
        .arg(&root);
    command.args(["run", "--bundle"]).arg(bundle.path()).arg(id).env("ROOT", root);
    command
}

#[test]
fn state_roots() {
    let mut text = String::new();
    let cases = [
        ("a full disk", "mkdir -p $ROOT; mount -t tmpfs -o size=4k,nr_inodes=2 none $ROOT"),
        (
            "space for a folder alone",
            "mkdir -p $ROOT; mount -t tmpfs -o size=4k,nr_inodes=3 none $ROOT; echo > $ROOT/x; rm $ROOT/x; dd if=/dev/zero of=$ROOT/full 2>/dev/null || true",
        ),
        ("read-only", "mkdir -p $ROOT; mount -t tmpfs -o ro none $ROOT"),
        ("a file", "echo > $ROOT"),
        ("below a file", "echo > ${ROOT%/*}/state"),
    ];
    for (name, prepare) in cases {
        let said = Sentences::new();
        let bundle = Bundle::new(&["/bin/true"]);
        let id = said.runtime.id();
        let output = prepared(&said, prepare, &bundle, &id).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let folder = said.runtime.folder().display().to_string();
        let error = error.replace(&folder, "FOLDER").replace(&id, "ID");
        text += &format!("{name} [{}]: {error}", output.status.code().unwrap());
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
        assert_eq!(leftovers(&said.runtime.state_root(), &id), Vec::<String>::new(), "{name}");
        let _ = std::fs::remove_file(said.runtime.state_root());
    }
    insta::assert_snapshot!("state_roots", text);
}
