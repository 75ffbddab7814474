//! `cargo xtask check`: what must hold before a commit, cheapest first.

use anyhow::Result;

use crate::{command, layers, sizes};

pub(crate) fn run() -> Result<()> {
    command::step(command::cargo().args(["fmt", "--all", "--check"]))?;
    // The fuzz targets are a workspace of their own, since they are built with other flags.
    let fuzz = command::root().join("fuzz/Cargo.toml");
    if fuzz.is_file() {
        let mut format = command::cargo();
        command::step(format.arg("fmt").arg("--check").arg("--manifest-path").arg(fuzz))?;
    }
    layers::run()?;
    command::step(command::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    sizes::run()
}
