//! Files of the engine's state: read whole, replaced whole.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Context, Error, Result};

/// Whether a file must outlive a crash of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// It is on the disk when the call returns.
    Synced,
    /// A process that is killed does no harm to it; after a crash of the machine it may be the old one, or gone.
    Renamed,
}

/// Writes `value` as JSON beside `path` and renames it into place: whoever reads sees the old file or the new.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T, lasting: Lasting) -> Result<()> {
    let what = || format!("write {}", path.display());
    let text = serde_json::to_vec(value).map_err(|error| Error::new(error.to_string())).context(what)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = write_new(&temporary, &text, lasting).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is what the caller has to know; `system check` removes what is left.
        let _ = std::fs::remove_file(&temporary);
    }
    written.context(what)?;
    if lasting == Lasting::Synced
        && let Some(folder) = path.parent()
    {
        File::open(folder).and_then(|folder| folder.sync_all()).context(what)?;
    }
    Ok(())
}

fn write_new(path: &Path, text: &[u8], lasting: Lasting) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    if lasting == Lasting::Synced { file.sync_all() } else { Ok(()) }
}

/// Reads JSON; `None` when there is no such file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("read {}", path.display()))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(format!("{}: {error}", path.display())).hint("`system check` tells what else is damaged")
    })
}

/// Removes a file or an empty folder that may already be gone.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a folder with all that is in it, which may already be gone.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The names in a folder, none when it does not exist; names that are not UTF-8 are none of ours.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(|| format!("read {}", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("read {}", folder.display()))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}
