//! A path within a layer, as a checked type.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Error, Kind, Result};

/// The longest name of a file, and of a path, that Linux takes.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4095;

/// Relative, without `.`, `..`, empty names and NULs, and no deeper than its layer's limit; empty for the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerPath(PathBuf);

impl LayerPath {
    /// Checks a path as it stands in an archive. A leading slash and `./` mean nothing there.
    ///
    /// Errors: it holds `..` or a NUL, is too long, or deeper than `max_depth` names.
    pub fn new(raw: &[u8], max_depth: usize) -> Result<Self> {
        let fault = |what: String| {
            let shown = String::from_utf8_lossy(raw.get(..200).unwrap_or(raw)).into_owned();
            Error::new(format!("layer path {shown:?} {what}")).with_kind(Kind::Corrupt)
        };
        if raw.contains(&0) {
            return Err(fault("holds a NUL".to_owned()));
        }
        let mut clean = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for name in raw.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(fault("leads out of the layer by \"..\"".to_owned())),
                _ if name.len() > MAX_NAME => {
                    return Err(fault(format!("has a name longer than {MAX_NAME} bytes")));
                }
                _ => {}
            }
            depth += 1;
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
        }
        if depth > max_depth {
            return Err(fault(format!("is deeper than {max_depth} folders")).with_kind(Kind::TooLarge));
        }
        if clean.len() > MAX_PATH {
            return Err(fault(format!("is longer than {MAX_PATH} bytes")));
        }
        Ok(Self(PathBuf::from(OsStr::from_bytes(&clean))))
    }

    /// The root of the layer.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path below the layer's root; empty for the root itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// The folder that it is in and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        let name = self.0.file_name()?;
        Some((Self(self.0.parent().unwrap_or(Path::new("")).to_owned()), name))
    }

    /// The folder that it is in.
    pub fn parent(&self) -> Option<Self> {
        self.split().map(|(parent, _)| parent)
    }

    /// Something in this folder. `name` comes out of a checked path or a directory.
    pub(crate) fn join(&self, name: &OsStr) -> Self {
        Self(self.0.join(name))
    }

    /// The same path with another last name, which is checked.
    pub(crate) fn with_name(&self, name: &[u8]) -> Result<Self> {
        let mut raw = self.parent().unwrap_or_default().0.into_os_string().into_encoded_bytes();
        let bad = name.is_empty() || name == b"." || name == b".." || name.contains(&b'/');
        if bad {
            let shown = String::from_utf8_lossy(name).into_owned();
            return Err(Error::new(format!(
                "layer path {:?} hides {shown:?}, which is no name of a file",
                self.0
            ))
            .with_kind(Kind::Corrupt));
        }
        raw.push(b'/');
        raw.extend_from_slice(name);
        Self::new(&raw, usize::MAX)
    }
}

impl std::fmt::Display for LayerPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_root() { f.write_str("/") } else { write!(f, "{}", self.0.display()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_paths() {
        for (raw, clean) in
            [("./a//b/", "a/b"), ("/etc/x", "etc/x"), (".", ""), ("./", ""), ("", ""), ("...", "...")]
        {
            assert_eq!(LayerPath::new(raw.as_bytes(), 255).unwrap().as_path(), Path::new(clean));
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "a/".repeat(2048);
        let deep = "a/".repeat(256);
        let name = "a".repeat(256);
        for bad in ["..", "a/..", "../a", "a/../b", "/..", "./..", "a\0", &long, &deep, &name] {
            assert!(LayerPath::new(bad.as_bytes(), 255).is_err(), "{bad}");
        }
    }
}
