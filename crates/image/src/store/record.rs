//! What belongs to an image, and an image as others see it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Store;
use crate::config::{History, MAX_CONFIG_BYTES};
use crate::manifest::Descriptor;
use crate::{Context, Digest, Error, ImageConfig, Kind, Reference, Result};

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration, as with Docker.
    pub id: Digest,
    /// What it says about itself.
    pub config: ImageConfig,
    /// The tags that lead to it.
    pub names: Vec<Reference>,
    /// Where it came from or went to: repositories with the digest that it has there.
    pub digests: Vec<Reference>,
    /// The digest of its manifest here.
    pub manifest: Digest,
    /// When it was made, RFC 3339, as it says itself.
    pub created: Option<String>,
    /// When it came into this store, RFC 3339.
    pub stored: String,
    /// Bytes of the files of all its layers.
    pub size_bytes: u64,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// The digest of its archive before compression.
    pub diff_id: Digest,
    /// The digest of it and all layers below.
    pub chain_id: Digest,
    /// The compressed archive.
    pub blob: Descriptor,
    /// Bytes of its files.
    pub size_bytes: u64,
}

/// A line of an image's history with what it added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerHistory {
    /// The line.
    pub entry: History,
    /// Bytes of the files of its layer; 0 when it made none.
    pub size_bytes: u64,
}

/// What is saved of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) manifest: Descriptor,
    pub(crate) layers: Vec<Layer>,
    /// `REPOSITORY@DIGEST`.
    #[serde(default)]
    pub(crate) digests: Vec<String>,
    pub(crate) stored: String,
}

impl ImageRecord {
    /// Every blob that the image needs.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let layers = self.layers.iter().map(|layer| layer.blob.digest);
        layers.chain([self.id, self.manifest.digest])
    }
}

/// The chain ids of layers: that of the lowest is its digest; each further one is the digest of the one below, a
/// blank, and its own digest.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// What is saved beside a layer's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerState {
    pub(crate) diff_id: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) entries: u64,
    /// The blob that it was unpacked from.
    pub(crate) blob: Descriptor,
}

impl Store {
    pub(crate) fn record(&self, id: &Digest) -> Result<Option<ImageRecord>> {
        let path = self.image_path(id);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| path.display().to_string())?,
        };
        let record: ImageRecord = serde_json::from_slice(&text)
            .map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
        Ok(Some(record))
    }

    /// Every image's id. Nothing is said of names that the folder should not hold; the check does.
    pub(crate) fn image_ids(&self) -> Result<Vec<Digest>> {
        let mut ids = Vec::new();
        for name in folder_names(&self.root().join("images"))? {
            ids.extend(name.strip_suffix(".json").and_then(Digest::from_hex));
        }
        ids.sort();
        Ok(ids)
    }

    /// The image of a record.
    pub(crate) fn image(&self, record: ImageRecord, names: Vec<Reference>) -> Result<Image> {
        let id = record.id;
        let bytes = self.read_blob(&id, MAX_CONFIG_BYTES).context(|| format!("image {id}"))?;
        let config = ImageConfig::parse(&bytes)?;
        let digests = record.digests.iter().filter_map(|text| Reference::parse(text).ok()).collect();
        Ok(Image {
            id,
            names,
            digests,
            manifest: record.manifest.digest,
            created: config.created.clone(),
            config,
            stored: record.stored,
            size_bytes: record.layers.iter().map(|layer| layer.size_bytes).sum(),
            layers: record.layers,
        })
    }

    /// The image of that id.
    pub(crate) fn image_by_id(&self, id: &Digest) -> Result<Image> {
        let missing = || Error::new(format!("no such image: {id}")).with_kind(Kind::NotFound);
        let record = self.record(id)?.ok_or_else(missing)?;
        let names = self.names_of(id)?;
        match self.image(record, names) {
            // It went while this looked.
            Err(_) if !self.image_path(id).exists() => Err(missing()),
            other => other,
        }
    }

    /// Puts a blob that is at hand into the store.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest) {
            self.replace(&self.blob_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Moves a blob that was written in `work` to its place.
    pub(crate) fn adopt_blob(&self, path: &Path, digest: &Digest) -> Result<()> {
        let to = self.blob_path(digest);
        std::fs::rename(path, &to).context(|| format!("rename {} to {}", path.display(), to.display()))
    }

    /// The state of a layer that the store has.
    pub(crate) fn layer_state(&self, chain: &Digest) -> Result<Option<LayerState>> {
        let path = self.layer_folder(chain).join("layer.json");
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| path.display().to_string()),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::new(format!("{}: {error}", path.display()))),
        }
    }

    /// Makes an image known. All that it names is in the store, and kept by the caller's lease.
    ///
    /// An image that is known already gets the further digests; its names are set, and taken from other images. The
    /// second value is whether blobs of the known one are of no more use.
    pub(crate) fn register(&self, mut record: ImageRecord, names: &[Reference]) -> Result<(Image, bool)> {
        // Alone, because the record is read and written.
        let lock = self.lock_to_remove()?;
        let id = record.id;
        let (mut changed, mut superseded) = (true, false);
        if let Some(mut known) = self.record(&id)? {
            let further = std::mem::take(&mut record.digests);
            // A manifest that a repository has goes before one that is only ours.
            superseded = !further.is_empty() && known.manifest.digest != record.manifest.digest;
            if superseded {
                (known.manifest, known.layers) = (record.manifest, record.layers);
            }
            let before = known.digests.len();
            let unknown = |digest: &String| !known.digests.contains(digest);
            let further: Vec<String> = further.into_iter().filter(unknown).collect();
            known.digests.extend(further);
            changed = superseded || known.digests.len() != before;
            record = known;
        }
        if changed {
            let text = serde_json::to_vec(&record).map_err(|error| Error::new(error.to_string()))?;
            self.replace(&self.image_path(&id), &text)?;
        }
        for name in names {
            self.point(name, &id)?;
        }
        drop(lock);
        Ok((self.image_by_id(&id)?, superseded))
    }

    /// Notes that a repository has an image under a digest.
    pub(crate) fn add_digest(&self, id: &Digest, digest: &Reference) -> Result<()> {
        let _lock = self.lock_to_remove()?;
        let Some(mut record) = self.record(id)? else { return Ok(()) };
        let text = digest.full();
        if record.digests.contains(&text) {
            return Ok(());
        }
        record.digests.push(text);
        let text = serde_json::to_vec(&record).map_err(|error| Error::new(error.to_string()))?;
        self.replace(&self.image_path(id), &text)
    }

    /// The history of an image, newest first, with the size of each line's layer.
    pub fn history(&self, image: &Image) -> Vec<LayerHistory> {
        let told = image.config.history.iter().filter(|entry| !entry.empty_layer).count();
        let mut layers = image.layers.iter().map(|layer| layer.size_bytes);
        // Layers that no line tells of are the oldest: lines are only ever added. They are there, so they are shown.
        let untold = image.layers.len().saturating_sub(told);
        let mut lines: Vec<LayerHistory> = layers
            .by_ref()
            .take(untold)
            .map(|size_bytes| LayerHistory { entry: History::default(), size_bytes })
            .collect();
        lines.extend(image.config.history.iter().map(|entry| {
            let size_bytes = if entry.empty_layer { None } else { layers.next() };
            LayerHistory { entry: entry.clone(), size_bytes: size_bytes.unwrap_or(0) }
        }));
        lines.reverse();
        lines
    }
}

pub(crate) fn folder_names(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).context(|| path.display().to_string())? {
        names.extend(entry.context(|| path.display().to_string())?.file_name().into_string());
    }
    Ok(names)
}
