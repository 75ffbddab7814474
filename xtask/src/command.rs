//! Running other programs, and the places of the checkout.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    // The manifest's folder is known when this crate is built, and it stands in the checkout.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The cargo that started this program, so that a chosen toolchain stays chosen.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![base_name(Path::new(command.get_program()))];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Says what runs, runs it, and fails with its line when it fails.
pub(crate) fn step(command: &mut Command) -> Result<()> {
    eprintln!("--- {}", line(command));
    quiet(command)
}

/// Runs a command with the caller's output and fails with its line when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a command with the caller's output and returns how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start `{}`", line(command)))
}

/// Runs a command and returns what it wrote on its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("`{}` ended with {}: {}", line(command), done.status, said.trim());
    }
    String::from_utf8(done.stdout)
        .with_context(|| format!("`{}` wrote something that is not text", line(command)))
}

/// Where a program stands in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An ordinary user's PATH often lacks the administrator's folders.
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The folder of the built programs of a profile (`debug`, `release`), beside this program's own.
pub(crate) fn built(profile: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    let folder = me.parent().and_then(Path::parent);
    Ok(folder.context("this program's file has no folder")?.join(profile))
}
