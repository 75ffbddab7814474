//! `load`: images from an archive of `docker save`, or from an OCI layout in an archive or a folder.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

use super::layout::Layout;
use crate::assemble::{Draft, LayerStream, Source, assemble};
use crate::config::MAX_CONFIG_BYTES;
use crate::manifest::{Document, MAX_MANIFEST_BYTES};
use crate::progress::Listener;
use crate::store::Work;
use crate::{Context, Digest, Error, Image, ImageConfig, Kind, Platform, Reference, Result, Store};

/// Layers that are unpacked at once.
const PARALLEL: usize = 2;

/// Which images are loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadSpec {
    /// From an index: the image for this platform; `None`: for this machine.
    pub platform: Option<Platform>,
}

/// A line of Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Loads every image of the archive or folder at `path`.
pub fn load(store: &Store, path: &Path, spec: &LoadSpec, progress: Listener<'_>) -> Result<Vec<Image>> {
    let what = || format!("load {}", path.display());
    if path.is_dir() {
        return load_layout(store, &Layout::of_folder(path)?, spec, progress).context(what);
    }
    let mut file = File::open(path).context(what)?;
    let mut first = [0; 4];
    let is_plain = file.metadata().is_ok_and(|found| found.is_file())
        && file.read_at(&mut first, 0).is_ok_and(|count| count == first.len())
        && !first.starts_with(&[0x1f, 0x8b])
        && first != [0x28, 0xb5, 0x2f, 0xfd];
    if is_plain {
        return load_layout(store, &Layout::of_archive(file).context(what)?, spec, progress).context(what);
    }
    load_from(store, &mut file, spec, progress).context(what)
}

/// Loads every image of an archive that is read from anywhere; it may be compressed by gzip or zstd.
///
/// Its table of contents may stand at its end, so it is written to the store's `work` first.
pub fn load_from(
    store: &Store,
    from: &mut dyn Read,
    spec: &LoadSpec,
    progress: Listener<'_>,
) -> Result<Vec<Image>> {
    let work = Work::new(store, "load")?;
    let file = spool(&work, from)?;
    load_layout(store, &Layout::of_archive(file)?, spec, progress)
}

/// Writes an archive to a file without a name, uncompressed.
fn spool(work: &Work, from: &mut dyn Read) -> Result<File> {
    let path = work.path().join("archive");
    let what = || format!("copy the archive to {}", path.display());
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(&path).context(what)?;
    std::fs::remove_file(&path).context(what)?;
    let mut from = BufReader::with_capacity(256 << 10, from);
    let mut first = [0; 4];
    let mut read = 0;
    while read < first.len() {
        match from.read(first.get_mut(read..).unwrap_or_default()).context(what)? {
            0 => break,
            count => read += count,
        }
    }
    let from = std::io::Cursor::new(first.get(..read).unwrap_or_default().to_vec()).chain(from);
    let mut from: Box<dyn Read + '_> = match first {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(from).context(what)?),
        _ => Box::new(from),
    };
    let mut to = BufWriter::with_capacity(256 << 10, file);
    std::io::copy(&mut from, &mut to).context(what)?;
    to.flush().context(what)?;
    let mut file = to.into_inner().map_err(|error| Error::from(error.into_error()))?;
    file.seek(SeekFrom::Start(0)).context(what)?;
    Ok(file)
}

fn load_layout(
    store: &Store,
    layout: &Layout,
    spec: &LoadSpec,
    progress: Listener<'_>,
) -> Result<Vec<Image>> {
    let list = layout.read("manifest.json", MAX_MANIFEST_BYTES)?;
    let saved = list.as_deref().map(parse_saved).transpose()?;
    // Newer archives of `docker save` are both; manifests tell the layers' digests, too.
    let is_layout = layout.read("oci-layout", MAX_MANIFEST_BYTES)?.is_some() || saved.is_none();
    let index = if is_layout { layout.read("index.json", MAX_MANIFEST_BYTES)? } else { None };
    if let Some(index) = index {
        return load_oci(store, layout, &index, &saved.unwrap_or_default(), spec, progress);
    }
    if let Some(saved) = saved {
        return load_saved(store, layout, saved, progress);
    }
    Err(Error::new("it holds neither manifest.json (docker save) nor index.json (OCI layout)")
        .with_kind(Kind::Corrupt)
        .hint("a root file system without an image around it is imported: moat import FILE"))
}

/// Layers as files of an archive.
struct Files<'a> {
    layout: &'a Layout,
    names: Vec<String>,
}

impl Source for Files<'_> {
    fn open(&self, index: usize) -> Result<LayerStream<'_>> {
        let name = self.names.get(index).ok_or_else(|| Error::new("there is no such layer"))?;
        self.layout.open(name)
    }
}

fn parse_saved(list: &[u8]) -> Result<Vec<SavedImage>> {
    serde_json::from_slice(list)
        .map_err(|error| Error::new(format!("manifest.json is malformed: {error}")).with_kind(Kind::Corrupt))
}

fn load_saved(
    store: &Store,
    layout: &Layout,
    saved: Vec<SavedImage>,
    progress: Listener<'_>,
) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for one in saved {
        let bytes = layout.read(&one.config, MAX_CONFIG_BYTES)?;
        let missing = || Error::new(format!("archive has no file {:?}", one.config)).with_kind(Kind::Corrupt);
        let config_bytes = bytes.ok_or_else(missing)?;
        let config = ImageConfig::parse(&config_bytes)?;
        let mut names = Vec::new();
        for tag in one.repo_tags.unwrap_or_default() {
            names.push(Reference::parse(&tag)?);
        }
        let draft = Draft {
            config,
            config_bytes,
            manifest_bytes: None,
            blobs: vec![None; one.layers.len()],
            names,
            digests: Vec::new(),
        };
        let source = Files { layout, names: one.layers };
        images.push(assemble(store, draft, &source, PARALLEL, progress)?);
    }
    Ok(images)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn load_oci(
    store: &Store,
    layout: &Layout,
    index: &[u8],
    saved: &[SavedImage],
    spec: &LoadSpec,
    progress: Listener<'_>,
) -> Result<Vec<Image>> {
    let Document::Index(index) = Document::parse(index).context(|| "index.json")? else {
        return Err(Error::new("index.json is no index").with_kind(Kind::Corrupt));
    };
    let platform = spec.platform.clone().unwrap_or_else(Platform::host);
    let mut images = Vec::new();
    for entry in &index.manifests {
        let annotations = entry.annotations.clone().unwrap_or_default();
        let (bytes, digest) = select(layout, entry.digest, &platform)?;
        let Document::Image(manifest) = Document::parse(&bytes)? else {
            return Err(Error::new(format!("{digest} is no image")).with_kind(Kind::Corrupt));
        };
        let config = read_blob(layout, &manifest.config.digest, MAX_CONFIG_BYTES)?;
        let mut draft = Draft::of_manifest(&manifest, bytes, config)?;
        draft.names.extend(name(&annotations));
        let config_name = blob_name(&manifest.config.digest);
        let tags = saved.iter().filter(|one| one.config == config_name).flat_map(|one| &one.repo_tags);
        for tag in tags.flatten() {
            draft.names.push(Reference::parse(tag)?);
        }
        let names = manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        images.push(assemble(store, draft, &Files { layout, names }, PARALLEL, progress)?);
    }
    Ok(images)
}

/// The name of an image in a layout: containerd's annotation, or OCI's where it is more than a tag.
fn name(annotations: &std::collections::BTreeMap<String, String>) -> Option<Reference> {
    let containerd = annotations.get("io.containerd.image.name");
    let oci = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    containerd.or(oci).and_then(|name| Reference::parse(name).ok())
}

/// The manifest at `digest`, or the one for `platform` of the index there.
fn select(layout: &Layout, digest: Digest, platform: &Platform) -> Result<(Vec<u8>, Digest)> {
    let bytes = read_blob(layout, &digest, MAX_MANIFEST_BYTES)?;
    match Document::parse(&bytes)? {
        Document::Image(_) => Ok((bytes, digest)),
        Document::Index(index) => {
            let digest = index.select(platform)?.digest;
            Ok((read_blob(layout, &digest, MAX_MANIFEST_BYTES)?, digest))
        }
    }
}

fn read_blob(layout: &Layout, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
    let name = blob_name(digest);
    let missing = || Error::new(format!("archive has no file {name:?}")).with_kind(Kind::Corrupt);
    let bytes = layout.read(&name, max_bytes)?.ok_or_else(missing)?;
    crate::digest::verify(&name, digest, &Digest::of(&bytes))?;
    Ok(bytes)
}
