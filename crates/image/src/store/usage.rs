//! How much disk the store takes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use super::record::folder_names;
use super::{Image, Store};
use crate::{Context, Digest, Result};

/// What the store takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Each image.
    pub images: Vec<ImageUsage>,
    /// Bytes of the files of all layers, each counted once.
    pub layers_bytes: u64,
    /// Bytes of the layers that are disks, too.
    pub erofs_bytes: u64,
    /// Bytes of all blobs: compressed layers, configurations and manifests.
    pub blobs_bytes: u64,
    /// Bytes that a prune of all images without a holder would give back.
    pub reclaimable_bytes: u64,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// The image.
    pub image: Image,
    /// Bytes of the files of layers that other images have, too.
    pub shared_bytes: u64,
    /// Bytes of the files of layers that only this one has.
    pub unique_bytes: u64,
    /// Workloads that hold it.
    pub holders: usize,
}

impl Store {
    /// Counts what the store takes.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let images = self.list()?;
        let holds = self.holds()?;
        let mut users: BTreeMap<Digest, (u64, usize)> = BTreeMap::new();
        let mut held_layers = BTreeSet::new();
        let mut held_blobs = BTreeSet::new();
        for image in &images {
            let held = holds.iter().any(|hold| hold.image == image.id);
            if held {
                held_blobs.extend([image.id, image.manifest]);
            }
            // An image may have the same layer twice only with another chain id, so each is counted once.
            for layer in &image.layers {
                users.entry(layer.chain_id).or_insert((layer.size_bytes, 0)).1 += 1;
                if held {
                    held_layers.insert(layer.chain_id);
                    held_blobs.insert(layer.blob.digest);
                }
            }
        }
        let mut usage = DiskUsage::default();
        for name in folder_names(&self.root().join("layers"))? {
            let Some(chain) = Digest::from_hex(&name) else { continue };
            let bytes = self.layer_state(&chain)?.map_or(0, |state| state.size_bytes);
            let erofs_bytes = self.erofs_bytes(&chain);
            usage.layers_bytes += bytes;
            usage.erofs_bytes += erofs_bytes;
            usage.reclaimable_bytes += if held_layers.contains(&chain) { 0 } else { bytes + erofs_bytes };
        }
        for name in folder_names(&self.root().join("blobs"))? {
            let path = self.root().join("blobs").join(&name);
            let found = std::fs::symlink_metadata(&path).context(|| path.display().to_string())?;
            let bytes = found.blocks() * 512;
            usage.blobs_bytes += bytes;
            let held = Digest::from_hex(&name).is_some_and(|digest| held_blobs.contains(&digest));
            usage.reclaimable_bytes += if held { 0 } else { bytes };
        }
        for image in images {
            let is_shared = |chain: &Digest| users.get(chain).is_some_and(|(_, count)| *count > 1);
            let sum = |shared: bool| {
                let layers = image.layers.iter().filter(|layer| is_shared(&layer.chain_id) == shared);
                layers.map(|layer| layer.size_bytes).sum()
            };
            let holders = holds.iter().filter(|hold| hold.image == image.id).count();
            usage.images.push(ImageUsage {
                shared_bytes: sum(true),
                unique_bytes: sum(false),
                holders,
                image,
            });
        }
        Ok(usage)
    }
}
