//! Holds: that a workload uses an image, told by a file, so that nobody removes the image.

use std::path::PathBuf;

use super::names::read_pointer;
use super::record::folder_names;
use super::{Image, Store};
use crate::{Context, Digest, Error, Kind, Result};

/// That somebody uses an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hold {
    /// Who: the id of a workload.
    pub holder: String,
    /// Which image.
    pub image: Digest,
}

impl Store {
    /// Keeps an image until `holder` releases it; a holder holds one image.
    ///
    /// Errors: the image is gone ([`Kind::NotFound`]); the holder holds another one; `holder` is not 1 to 200 of
    /// `[A-Za-z0-9_.-]`.
    pub fn hold(&self, image: &Image, holder: &str) -> Result<()> {
        let path = self.hold_path(holder)?;
        let _lock = self.lock_to_add()?;
        if !self.image_path(&image.id).exists() {
            return Err(Error::new(format!("no such image: {}", image.id)).with_kind(Kind::NotFound));
        }
        match std::os::unix::fs::symlink(image.id.hex(), &path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => match read_pointer(&path)? {
                Some(held) if held == image.id => Ok(()),
                Some(held) => Err(Error::new(format!("{holder} already holds the image {held}"))),
                None => Err(Error::new(format!("{} came and went", path.display()))),
            },
            Err(error) => Err(error).context(|| format!("hold {} for {holder}", image.id)),
        }
    }

    /// Gives up what `holder` holds; nothing is fine.
    pub fn release(&self, holder: &str) -> Result<()> {
        let path = self.hold_path(holder)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Who holds what, sorted by holder.
    pub fn holds(&self) -> Result<Vec<Hold>> {
        let folder = self.root().join("holds");
        let mut holds = Vec::new();
        for holder in folder_names(&folder)? {
            // One that is released while this looks is not listed.
            holds.extend(read_pointer(&folder.join(&holder))?.map(|image| Hold { holder, image }));
        }
        holds.sort();
        Ok(holds)
    }

    fn hold_path(&self, holder: &str) -> Result<PathBuf> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=200).contains(&holder.len()) || !holder.bytes().all(legal) || matches!(holder, "." | "..") {
            return Err(Error::new(format!(
                "{holder:?} is no name of a holder: 1 to 200 of A-Z a-z 0-9 _ . -"
            )));
        }
        Ok(self.root().join("holds").join(holder))
    }
}
