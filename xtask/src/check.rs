//! `cargo xtask check`: what must hold before a commit, cheapest first.

use anyhow::Result;

use crate::{command, layers, sizes};

pub(crate) fn run() -> Result<()> {
    command::step(command::cargo().args(["fmt", "--all", "--check"]))?;
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
