//! An ordinary user, for whom the machine need not be changed.
//!
//! The user exists only in a private mount namespace, where copies of /etc/passwd, /etc/subuid and so on
//! are bound over the machine's. There a shell changes to that user and runs a script.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The folder of an ordinary user, who owns what is in it.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    user: u32,
    prelude: String,
}

impl Home {
    /// The first of the 65536 subordinate ids.
    pub const FIRST_SUBORDINATE: u32 = 900_000;

    /// A home with copies of `programs`, of a user and group with that id and with subordinate ids.
    pub fn new(user: u32, programs: &[&Path]) -> Self {
        let home = Self::without_ranges(user, programs);
        for file in ["subuid", "subgid"] {
            let line = format!("moatling:{}:65536\n", Self::FIRST_SUBORDINATE);
            let before = std::fs::read_to_string(home.path(file)).unwrap();
            std::fs::write(home.path(file), before + &line).unwrap();
        }
        home
    }

    /// As [`Home::new`], of a user without subordinate ids.
    pub fn without_ranges(user: u32, programs: &[&Path]) -> Self {
        let open = std::fs::Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("moat-home-").permissions(open).tempdir().unwrap();
        let home = Self { folder, user, prelude: String::new() };
        for program in programs {
            std::fs::copy(program, home.path(program.file_name().unwrap().to_str().unwrap())).unwrap();
        }
        for (file, line) in [
            ("passwd", format!("moatling:x:{user}:{user}::/:/bin/sh\n")),
            ("group", format!("moatling:x:{user}:\n")),
            ("subuid", String::new()),
            ("subgid", String::new()),
        ] {
            let before = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
            std::fs::write(home.path(file), before + &line).unwrap();
        }
        chown(home.folder.path(), Some(user), Some(user)).unwrap();
        home
    }

    /// Lets the user make taps, as udev does on most hosts.
    #[must_use]
    pub fn with_tun(self) -> Self {
        let tun = self.path("tun");
        let made =
            Command::new("mknod").args(["-m", "0666"]).arg(&tun).args(["c", "10", "200"]).status().unwrap();
        assert!(made.success());
        self
    }

    /// Defines a variable for all scripts; they are run in the home, so that `$PWD` is it.
    #[must_use]
    pub fn define(mut self, name: &str, value: &str) -> Self {
        self.prelude += &format!("{name}=\"{value}\"; ");
        self
    }

    /// A path in the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a shell script as the user, in the home.
    pub fn shell(&self, script: &str) -> Output {
        let (home, user) = (self.folder.path().display(), self.user);
        let prepare = format!(
            "for file in passwd group subuid subgid; do \
               [ -e /etc/$file ] || continue; mount --bind {home}/$file /etc/$file; \
             done; \
             [ ! -e {home}/tun ] || mount --bind {home}/tun /dev/net/tun; \
             exec setpriv --reuid {user} --regid {user} --clear-groups sh -ec \"$1\""
        );
        let script = format!("cd {home}; {}{script}", self.prelude);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &prepare, "sh", &script]);
        command.env("HOME", self.folder.path());
        command.env_remove("XDG_RUNTIME_DIR").env_remove("XDG_DATA_HOME").output().unwrap()
    }

    /// As [`Home::shell`], for a script that must succeed; gives its output.
    #[track_caller]
    pub fn succeeds(&self, script: &str) -> String {
        let output = self.shell(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}
