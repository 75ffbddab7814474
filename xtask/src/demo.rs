//! `cargo xtask demo`: one container, with every step of its wall told.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{bundle, command, packages, scratch::Scratch};

const SCRIPT: &str = "echo; echo \"I am process $$ on $(hostname), and this is all I see:\"; \
                      ps; ls /; echo";

pub(crate) fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demonstration needs root: its container has no user namespace");
    }
    packages::ensure(packages::DEMO)?;
    command::step(command::cargo().args(["build", "--release", "--locked", "--package", "moat-runtime"]))?;
    let runtime = command::built("release")?.join("moat-runtime");
    let scratch = Scratch::new("demo")?;
    let name = format!("moat-demo-{}", std::process::id());
    let shown = show(&runtime, scratch.path(), &name);
    if shown.is_err() {
        // The container may have come half-way; without one this fails, and that is fine.
        let _ = moat(&runtime, scratch.path()).args(["delete", "--force", &name]).output();
    }
    shown
}

fn moat(runtime: &Path, scratch: &Path) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(scratch.join("state"));
    command
}

fn show(runtime: &Path, scratch: &Path, name: &str) -> Result<()> {
    let rootfs = scratch.join("rootfs");
    bundle::rootfs(&rootfs)?;
    let config = bundle::default_config(runtime, scratch)?;
    let arguments = ["/bin/sh", "-c", SCRIPT];
    let cgroup = format!("/{name}");
    let folder = bundle::write(scratch.join("bundle"), &rootfs, &config, &cgroup, &arguments)?;
    let mut run = moat(runtime, scratch);
    command::step(run.args(["run", "--explain", "--bundle"]).arg(folder).arg(name))?;
    command::step(Command::new(runtime).arg("features"))
}
