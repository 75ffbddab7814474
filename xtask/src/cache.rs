//! The place for what is made once and kept: kernels, root file systems.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The folder for what outlives a run and belongs to no checkout.
pub(crate) fn cache() -> Result<PathBuf> {
    let home = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let base = match home {
        Some(path) => PathBuf::from(path),
        None => {
            let home = std::env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?;
            PathBuf::from(home).join(".cache")
        }
    };
    let path = base.join("moat");
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
