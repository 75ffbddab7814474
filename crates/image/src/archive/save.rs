//! `save`: images as an archive that `docker load` reads, which is an OCI layout, too.
//!
//! ```text
//! oci-layout, index.json       for readers of OCI layouts
//! manifest.json                for `docker load`
//! blobs/sha256/...             configurations, manifests, layers as they are in the store
//! ```
//!
//! Layers stay compressed: Docker, Podman and skopeo tell by their first bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use tar::{EntryType, Header};

use crate::{Context, Descriptor, Digest, Error, Image, Index, Reference, Result, Store, media_type};

/// The annotations by which readers of a layout know an image's name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A line of Docker's `manifest.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Files that a layout consists of.
struct Contents {
    documents: Vec<(&'static str, Vec<u8>)>,
    blobs: BTreeSet<Digest>,
}

/// Writes images, each by a name or id, as one archive. What is named by a tag keeps it; what is named by an id has
/// no name there.
///
/// Errors: there is no such image; reading or writing failed.
pub fn save(store: &Store, names: &[&str], to: impl Write) -> Result<()> {
    let contents = contents(store, names)?;
    let mut to = tar::Builder::new(to);
    let add = |to: &mut tar::Builder<_>, name: &str, size: u64, from: &mut dyn std::io::Read| {
        let mut header = header(EntryType::Regular, size);
        to.append_data(&mut header, name, from).context(|| format!("write {name} to the archive"))
    };
    for folder in ["blobs/", "blobs/sha256/"] {
        let mut header = header(EntryType::Directory, 0);
        to.append_data(&mut header, folder, std::io::empty()).context(|| "write the archive")?;
    }
    for digest in &contents.blobs {
        let mut file = store.open_blob(digest)?;
        let size = file.metadata().context(|| format!("blob {digest}"))?.len();
        add(&mut to, &blob_name(digest), size, &mut file)?;
    }
    for (name, bytes) in &contents.documents {
        add(&mut to, name, bytes.len() as u64, &mut bytes.as_slice())?;
    }
    to.into_inner().and_then(|mut to| to.flush()).context(|| "write the archive")
}

/// As [`save`], into a folder, which is made.
pub fn save_to_folder(store: &Store, names: &[&str], folder: &Path) -> Result<()> {
    let contents = contents(store, names)?;
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).context(|| format!("make {}", blobs.display()))?;
    for digest in &contents.blobs {
        let path = blobs.join(digest.hex());
        std::fs::copy(store.blob_path(digest), &path).context(|| format!("write {}", path.display()))?;
    }
    for (name, bytes) in &contents.documents {
        let path = folder.join(name);
        std::fs::write(&path, bytes).context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header
}

fn contents(store: &Store, names: &[&str]) -> Result<Contents> {
    let mut images: Vec<(Image, Vec<Reference>)> = Vec::new();
    for text in names {
        let image = store.find(text)?;
        let name = Reference::parse(text).ok().filter(|name| image.names.contains(name));
        match images.iter_mut().find(|(known, _)| known.id == image.id) {
            Some((_, known)) => known.extend(name),
            None => images.push((image, name.into_iter().collect())),
        }
    }
    let mut blobs = BTreeSet::new();
    let (mut manifests, mut saved) = (Vec::new(), Vec::new());
    for (image, names) in &images {
        let missing = || Error::new(format!("no such image: {}", image.id));
        let record = store.record(&image.id)?.ok_or_else(missing)?;
        blobs.extend(record.blobs());
        let described = |name: Option<&Reference>| {
            let mut entry = record.manifest.clone();
            entry.platform = Some(image.config.platform());
            entry.annotations = name.map(|name| {
                let full = name.full();
                BTreeMap::from([(REF_NAME.to_owned(), full.clone()), (CONTAINERD_NAME.to_owned(), full)])
            });
            entry
        };
        if names.is_empty() {
            manifests.push(described(None));
        }
        manifests.extend(names.iter().map(|name| described(Some(name))));
        saved.push(SavedImage {
            config: blob_name(&image.id),
            repo_tags: Some(names.iter().map(Reference::to_string).collect()),
            layers: image.layers.iter().map(|layer| blob_name(&layer.blob.digest)).collect(),
        });
    }
    Ok(Contents { documents: documents(manifests, &saved)?, blobs })
}

fn documents(manifests: Vec<Descriptor>, saved: &[SavedImage]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX.to_owned(), manifests };
    let json = |error: serde_json::Error| Error::new(error.to_string());
    Ok(vec![
        ("index.json", serde_json::to_vec(&index).map_err(json)?),
        ("manifest.json", serde_json::to_vec(saved).map_err(json)?),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ])
}
