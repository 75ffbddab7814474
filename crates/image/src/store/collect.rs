//! Removing images, and what no image needs any more.
//!
//! An image needs its blobs and layers while it has a record; a lease keeps what somebody is about to use. Whoever
//! removes holds the store's lock for itself, renames what goes out of the way, and deletes it after the lock.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::record::folder_names;
use super::work::remove_tree;
use super::{Image, Store, Work};
use crate::{Context, Digest, Error, Kind, Reference, Result};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Tags, in familiar form, and digests of repositories.
    pub untagged: Vec<String>,
    /// Ids of images and of layers.
    pub deleted: Vec<Digest>,
}

/// What was pruned, and how much room that makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What went.
    pub removed: Removed,
    /// Bytes of blobs and of the files of layers.
    pub reclaimed_bytes: u64,
}

/// What is on its way out: moved already, deleted when the lock is given back.
struct Garbage {
    work: Work,
    layers: Vec<Digest>,
    bytes: u64,
}

impl Store {
    /// Removes a tag; with the last one, the image. By an id, the image with all its tags.
    ///
    /// Errors: a workload holds the image, or it has several tags and was named by its id ([`Kind::InUse`]). With
    /// `force` the tags go all the same; an image that is held stays, without a name, until nobody holds it.
    pub fn remove(&self, name_or_id: &str, force: bool) -> Result<Removed> {
        let lock = self.lock_to_remove()?;
        let id = self.find_id(name_or_id)?;
        let names = self.names_of(&id)?;
        let named = Reference::parse(name_or_id).ok().filter(|name| names.contains(name));
        let holders: Vec<String> =
            self.holds()?.into_iter().filter(|hold| hold.image == id).map(|hold| hold.holder).collect();
        let mut removed = Removed::default();
        let going: Vec<Reference> = match named {
            Some(name) if names.len() > 1 => {
                self.unpoint(&name)?;
                removed.untagged.push(name.to_string());
                return Ok(removed);
            }
            Some(name) => vec![name],
            None => names,
        };
        if !force && !holders.is_empty() {
            return Err(Error::new(format!("image {name_or_id} is used by {}", holders.join(", ")))
                .with_kind(Kind::InUse)
                .hint(
                    "remove these workloads first; --force takes the name away and leaves the image to them",
                ));
        }
        if !force && going.len() > 1 {
            let list: Vec<String> = going.iter().map(Reference::to_string).collect();
            return Err(Error::new(format!("image {name_or_id} has several names: {}", list.join(", ")))
                .with_kind(Kind::InUse)
                .hint("remove it by a name, or use --force"));
        }
        for name in &going {
            self.unpoint(name)?;
            removed.untagged.push(name.to_string());
        }
        if !holders.is_empty() {
            return Ok(removed);
        }
        self.forget(&id, &mut removed)?;
        let garbage = self.sweep()?;
        drop(lock);
        removed.deleted.extend(&garbage.layers);
        garbage.delete()?;
        Ok(removed)
    }

    /// Removes one tag and nothing else.
    ///
    /// Errors: there is no such tag.
    pub fn untag(&self, name: &Reference) -> Result<()> {
        let _lock = self.lock_to_remove()?;
        if self.pointed(name)?.is_none() {
            return Err(Error::new(format!("no such image: {name}")).with_kind(Kind::NotFound));
        }
        self.unpoint(name)
    }

    /// Removes the images without a name that nobody holds, or with `all` every one that nobody holds, as far as
    /// `wanted` agrees; and what no image needs.
    pub fn prune(&self, all: bool, wanted: &dyn Fn(&Image) -> bool) -> Result<Pruned> {
        let lock = self.lock_to_remove()?;
        let held: BTreeSet<Digest> = self.holds()?.into_iter().map(|hold| hold.image).collect();
        let mut removed = Removed::default();
        for image in self.list()? {
            let candidate = all || image.names.is_empty();
            if !candidate || held.contains(&image.id) || !wanted(&image) {
                continue;
            }
            for name in &image.names {
                self.unpoint(name)?;
                removed.untagged.push(name.to_string());
            }
            self.forget(&image.id, &mut removed)?;
        }
        let garbage = self.sweep()?;
        drop(lock);
        removed.deleted.extend(&garbage.layers);
        let reclaimed_bytes = garbage.bytes;
        garbage.delete()?;
        Ok(Pruned { removed, reclaimed_bytes })
    }

    /// Removes an image's record. The caller may remove.
    pub(super) fn forget(&self, id: &Digest, removed: &mut Removed) -> Result<()> {
        if let Some(record) = self.record(id).ok().flatten() {
            removed.untagged.extend(record.digests);
        }
        let path = self.image_path(id);
        std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
        removed.deleted.push(*id);
        Ok(())
    }

    /// Removes what nothing needs; returns how many bytes that makes.
    pub(crate) fn collect(&self) -> Result<u64> {
        let lock = self.lock_to_remove()?;
        let garbage = self.sweep()?;
        drop(lock);
        let bytes = garbage.bytes;
        garbage.delete()?;
        Ok(bytes)
    }

    /// Moves what nothing needs out of the way. The caller may remove.
    fn sweep(&self) -> Result<Garbage> {
        let needed = self.needed()?;
        let bin = self.root().join("work").join(super::work::unique_name("garbage"));
        let work = Work::adopt(bin)?;
        let mut garbage = Garbage { work, layers: Vec::new(), bytes: 0 };
        // What an interrupted pull has left half-done is of no use to the next one.
        for path in self.stale_work()? {
            let to = garbage.work.path().join(path.file_name().unwrap_or_default());
            std::fs::rename(&path, &to).context(|| format!("remove {}", path.display()))?;
        }
        for name in folder_names(&self.root().join("layers"))? {
            let Some(chain) = Digest::from_hex(&name) else { continue };
            if needed.layers.contains(&chain) {
                continue;
            }
            garbage.bytes += self.layer_state(&chain).ok().flatten().map_or(0, |state| state.size_bytes);
            garbage.bytes += self.erofs_bytes(&chain);
            let to = garbage.work.path().join(&name);
            std::fs::rename(self.layer_folder(&chain), &to)
                .context(|| format!("remove the layer {chain}"))?;
            garbage.layers.push(chain);
        }
        for name in folder_names(&self.root().join("blobs"))? {
            let Some(digest) = Digest::from_hex(&name).filter(|digest| !needed.blobs.contains(digest)) else {
                continue;
            };
            let path = self.blob_path(&digest);
            garbage.bytes += path.metadata().map_or(0, |found| found.len());
            std::fs::remove_file(&path).context(|| format!("remove the blob {digest}"))?;
        }
        Ok(garbage)
    }

    /// The blobs and layers that an image or somebody's lease needs.
    pub(super) fn needed(&self) -> Result<super::work::Lease> {
        let mut needed = super::work::Lease::default();
        for id in self.image_ids()? {
            let Some(record) = self.record(&id)? else { continue };
            needed.blobs.extend(record.blobs());
            needed.layers.extend(record.layers.iter().map(|layer| layer.chain_id));
        }
        let (leases, _) = self.look_at_work()?;
        for lease in leases {
            needed.blobs.extend(lease.blobs);
            needed.layers.extend(lease.layers);
        }
        Ok(needed)
    }

    /// Paths in `work` that nobody owns.
    pub(super) fn stale_work(&self) -> Result<Vec<PathBuf>> {
        Ok(self.look_at_work()?.1)
    }
}

impl Garbage {
    fn delete(self) -> Result<()> {
        remove_tree(self.work.path())
    }
}
