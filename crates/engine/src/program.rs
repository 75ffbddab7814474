//! The programs that the engine starts or puts into guests: they are installed beside `moat`.

use std::path::{Path, PathBuf};

use crate::{Context, Error, Result};

/// Where a distribution puts programs that users do not call.
const FOLDERS: [&str; 2] = ["/usr/libexec/moat", "/usr/local/libexec/moat"];

/// Finds `moat-vmm` or `moat-agent`: beside this program, else in the folders for programs of programs.
///
/// Errors: it is nowhere, or it can not be told where this program is.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = moat_sandbox::self_exe::own_path().context(|| "this program's own file")?;
    // A link in /usr/bin leads to the folder where all of them are.
    let own = own.canonicalize().unwrap_or(own);
    let beside = own.parent().unwrap_or(Path::new("/"));
    let folders = std::iter::once(beside).chain(FOLDERS.map(Path::new));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::not_found(format!("{name} is neither in {} nor in {}", beside.display(), FOLDERS.join(", ")))
            .hint(format!("install {name} beside {}", own.display()))
    })
}
