//! Looking for what is not as it should be, and mending it.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::collect::Removed;
use super::names::read_pointer;
use super::record::folder_names;
use super::work::remove_tree;
use super::{ImageRecord, Store, Work};
use crate::assemble::replace_layer;
use crate::digest::Hashing;
use crate::{Context, Digest, Result};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// Where.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: String,
    /// What was done; `None`: nothing, because that was not asked for or not possible.
    pub repair: Option<String>,
}

/// What kinds of things can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// What somebody who died has left half-done.
    Unfinished,
    /// Nothing needs it.
    Unused,
    /// A name or a hold leads to an image that is not there.
    Dangling,
    /// A blob is missing or is not what it is called.
    DamagedBlob,
    /// A layer's folder is missing or incomplete.
    DamagedLayer,
    /// A file that the store did not make.
    Foreign,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.fault)?;
        self.repair.as_ref().map_or(Ok(()), |repair| write!(f, "; {repair}"))
    }
}

/// Collects what is found, and mends when it is asked to.
struct Checker<'a> {
    store: &'a Store,
    repair: bool,
    findings: Vec<Finding>,
}

impl Store {
    /// Looks at everything in the store; with `repair` mends it. With `deep` every blob is read and hashed.
    ///
    /// Half-done work goes. A layer whose folder is damaged is unpacked again from its blob. An image whose blobs are
    /// damaged is removed, for its workloads keep their layers only while they run; it is to be pulled again.
    pub fn check(&self, repair: bool, deep: bool) -> Result<Vec<Finding>> {
        let mut checker = Checker { store: self, repair, findings: Vec::new() };
        checker.unfinished()?;
        checker.foreign()?;
        for id in self.image_ids()? {
            checker.image(&id, deep)?;
        }
        checker.pointers("names", "names an image that is not there")?;
        checker.pointers("holds", "holds an image that is not there")?;
        checker.unused()?;
        Ok(checker.findings)
    }
}

impl Checker<'_> {
    /// Notes a fault; `mend` does something about it and says what.
    fn found(
        &mut self,
        kind: FindingKind,
        path: &Path,
        fault: &str,
        mend: impl FnOnce() -> Result<Option<String>>,
    ) -> Result<()> {
        let repair = if self.repair { mend()? } else { None };
        self.findings.push(Finding { kind, path: path.to_owned(), fault: fault.to_owned(), repair });
        Ok(())
    }

    fn unfinished(&mut self) -> Result<()> {
        let lock = self.store.lock_to_remove()?;
        let stale = self.store.stale_work()?;
        let bin = self.store.root().join("work").join(super::work::unique_name("stale"));
        let bin = if self.repair && !stale.is_empty() { Some(Work::adopt(bin)?) } else { None };
        for path in &stale {
            let fault = "was left half-done by a process that is gone";
            self.found(FindingKind::Unfinished, path, fault, || {
                if let (Some(bin), Some(name)) = (&bin, path.file_name()) {
                    std::fs::rename(path, bin.path().join(name)).context(|| path.display().to_string())?;
                }
                Ok(Some("removed".to_owned()))
            })?;
        }
        // Trees are deleted when nobody waits for the lock any more.
        drop(lock);
        bin.map_or(Ok(()), |bin| remove_tree(bin.path()))
    }

    fn foreign(&mut self) -> Result<()> {
        for folder in ["images", "layers", "blobs"] {
            let folder = self.store.root().join(folder);
            for name in folder_names(&folder)? {
                let stem = name.strip_suffix(".json").filter(|_| folder.ends_with("images")).unwrap_or(&name);
                if Digest::from_hex(stem).is_none() {
                    let path = folder.join(&name);
                    self.found(FindingKind::Foreign, &path, "is no file of the store's", || Ok(None))?;
                }
            }
        }
        Ok(())
    }

    fn image(&mut self, id: &Digest, deep: bool) -> Result<()> {
        let path = self.store.image_path(id);
        let record = match self.store.record(id) {
            Ok(Some(record)) => record,
            // It went meanwhile.
            Ok(None) => return Ok(()),
            Err(error) => {
                let store = self.store;
                let fault = format!("can not be read: {error}");
                return self.found(FindingKind::DamagedBlob, &path, &fault, || remove_image(store, id));
            }
        };
        let store = self.store;
        for digest in record.blobs() {
            if let Some(fault) = blob_fault(store, &digest, deep)? {
                // It may have been removed while this looked.
                if !path.exists() {
                    return Ok(());
                }
                let blob = store.blob_path(&digest);
                self.found(
                    FindingKind::DamagedBlob,
                    &blob,
                    &format!("{fault}; the image {id} needs it"),
                    || {
                        let _ = std::fs::remove_file(&blob);
                        remove_image(store, id)
                    },
                )?;
                return Ok(());
            }
        }
        for index in 0..record.layers.len() {
            self.layer(&record, index)?;
        }
        for layer in &record.layers {
            self.disk(&layer.chain_id, deep)?;
        }
        Ok(())
    }

    fn layer(&mut self, record: &ImageRecord, index: usize) -> Result<()> {
        let Some(layer) = record.layers.get(index) else { return Ok(()) };
        let (store, folder) = (self.store, self.store.layer_folder(&layer.chain_id));
        let fault = match store.layer_state(&layer.chain_id) {
            Ok(Some(state)) if state.diff_id != layer.diff_id => "is of another layer",
            Ok(Some(_)) if folder.join("fs").is_dir() => return Ok(()),
            Ok(_) => "is missing or incomplete",
            Err(_) => "has a state that can not be read",
        };
        self.found(FindingKind::DamagedLayer, &folder, fault, || {
            replace_layer(store, &record.layers, index)?;
            Ok(Some("unpacked again".to_owned()))
        })
    }

    /// A layer's file as a disk, which is made again when it is next asked for.
    fn disk(&mut self, chain: &Digest, deep: bool) -> Result<()> {
        let (store, path) = (self.store, self.store.erofs_path(chain));
        let Some(fault) = store.erofs_fault(chain, deep)? else { return Ok(()) };
        self.found(FindingKind::DamagedLayer, &path, fault, || {
            std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
            Ok(Some("removed; it is made again when it is needed".to_owned()))
        })
    }

    /// Symbolic links to images.
    fn pointers(&mut self, folder: &str, fault: &str) -> Result<()> {
        let folder = self.store.root().join(folder);
        let _lock = self.store.lock_to_remove()?;
        for name in folder_names(&folder)? {
            let path = folder.join(&name);
            let leads = read_pointer(&path).ok().flatten();
            if leads.is_some_and(|id| self.store.image_path(&id).exists()) {
                continue;
            }
            self.found(FindingKind::Dangling, &path, fault, || {
                std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
                Ok(Some("removed".to_owned()))
            })?;
        }
        Ok(())
    }

    fn unused(&mut self) -> Result<()> {
        // Nobody adds or removes while the two are compared.
        let lock = self.store.lock_to_remove()?;
        let needed = self.store.needed()?;
        let mut unused = Vec::new();
        for (folder, kept) in [("layers", &needed.layers), ("blobs", &needed.blobs)] {
            let folder = self.store.root().join(folder);
            for name in folder_names(&folder)? {
                if Digest::from_hex(&name).is_some_and(|digest| !kept.contains(&digest)) {
                    unused.push(folder.join(name));
                }
            }
        }
        drop(lock);
        for path in &unused {
            let fault = "is needed by no image";
            self.found(FindingKind::Unused, path, fault, || Ok(Some("removed".to_owned())))?;
        }
        if self.repair && !unused.is_empty() {
            self.store.collect()?;
        }
        Ok(())
    }
}

fn remove_image(store: &Store, id: &Digest) -> Result<Option<String>> {
    let _lock = store.lock_to_remove()?;
    store.forget(id, &mut Removed::default())?;
    Ok(Some(format!("removed the image {id}, which is to be pulled again")))
}

/// What is wrong with a blob.
fn blob_fault(store: &Store, digest: &Digest, deep: bool) -> Result<Option<&'static str>> {
    let path = store.blob_path(digest);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some("is missing")),
        Err(error) => return Err(error).context(|| path.display().to_string()),
    };
    if deep {
        let mut hashing = Hashing::new(file);
        std::io::copy(&mut hashing, &mut std::io::sink()).context(|| path.display().to_string())?;
        if hashing.finish().1 != *digest {
            return Ok(Some("is not what it is called"));
        }
    }
    Ok(None)
}
