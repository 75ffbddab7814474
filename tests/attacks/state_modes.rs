//! CVE-2021-41091: state that other users of the host can read or change.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use moat_tests::{Bundle, Runtime};

/// The command with a umask that allows everything, so that the modes are the runtime's own.
fn careless(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

#[test]
fn state_belongs_to_its_owner_alone() {
    let runtime = Runtime::new();
    // Others may search the folder above, so that only the runtime's own modes protect.
    std::fs::set_permissions(runtime.folder(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let id = runtime.id();
    let bundle = Bundle::new(&["sleep", "1000000"]);
    let root = runtime.state_root();
    for step in ["created", "running"] {
        if step == "created" {
            let created = careless(&runtime.build("create", &bundle, &[], &id)).status().unwrap();
            assert!(created.success());
        } else {
            assert!(careless(&runtime.command(&["start", &id])).status().unwrap().success());
        }
        assert_eq!(mode(&root), 0o700, "{step}");
        assert_eq!(mode(&root.join(&id)), 0o700, "{step}");
        let files: Vec<_> = std::fs::read_dir(root.join(&id)).unwrap().flatten().collect();
        assert!(!files.is_empty(), "{files:?}");
        for file in files {
            assert_eq!(mode(&file.path()) & 0o077, 0, "{step}: {}", file.path().display());
        }
    }
}

#[test]
fn a_state_root_that_is_open_does_not_open_the_state() {
    let runtime = Runtime::new();
    std::fs::set_permissions(runtime.folder(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::create_dir(runtime.state_root()).unwrap();
    std::fs::set_permissions(runtime.state_root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let id = runtime.id();
    let bundle = Bundle::new(&["sleep", "1000000"]);
    assert!(careless(&runtime.build("create", &bundle, &[], &id)).status().unwrap().success());
    for file in ["state.json", "exec.fifo"] {
        let path = runtime.state_root().join(&id).join(file);
        assert!(path.exists(), "{file}");
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"]).arg(&path);
        let output = other.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{file}: {output:?}");
    }
}

#[test]
fn what_others_may_read_they_may_not_write() {
    let runtime = Runtime::new();
    let (pid_file, log) = (runtime.folder().join("pid"), runtime.folder().join("log"));
    let id = runtime.id();
    let bundle = Bundle::new(&["sleep", "1000000"]);
    let mut command = Command::new(runtime.program());
    command.arg("--root").arg(runtime.state_root()).arg("--log").arg(&log).args(["create", "--bundle"]);
    command.arg(bundle.path()).arg("--pid-file").arg(&pid_file).arg(&id);
    assert!(careless(&command).status().unwrap().success());
    for path in [&pid_file, &log] {
        assert_eq!(mode(path) & 0o022, 0, "{}: {:o}", path.display(), mode(path));
    }
}

/// In a folder that others may write to, somebody waits with a link under the name that comes next.
#[test]
fn a_pid_file_does_not_follow_a_link() {
    let runtime = Runtime::new();
    let folder = runtime.folder().join("shared");
    std::fs::create_dir(&folder).unwrap();
    let canary = runtime.folder().join("canary");
    std::fs::write(&canary, "canary").unwrap();
    let pid_file = folder.join("pid");
    let bundle = Bundle::new(&["sleep", "1000000"]);
    let flags = ["--pid-file", pid_file.to_str().unwrap()];
    let create = runtime.build("create", &bundle, &flags, &runtime.id());
    // The runtime will have the number of this shell, which waits for the links to be there.
    let mut shell = Command::new("sh");
    shell.args(["-c", "read go; exec \"$@\"", "sh"]).arg(create.get_program()).args(create.get_args());
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    symlink(&canary, folder.join(format!("pid.{}", shell.id()))).unwrap();
    symlink(&canary, &pid_file).unwrap();
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(shell.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary");
    assert!(pid_file.symlink_metadata().unwrap().is_file());
    assert!(std::fs::read_to_string(&pid_file).unwrap().parse::<i32>().is_ok());
}
