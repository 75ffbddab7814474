//! Images that are made here: from a bare root file system, and from what a workload has changed.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Mutex;

use super::export::{write_root, write_upper};
use crate::assemble::{Draft, LayerStream, Source, assemble};
use crate::config::{History, RunConfig};
use crate::ingest::unpacked;
use crate::store::Work;
use crate::{Context, Digest, Error, Image, ImageConfig, Listener, Platform, Reference, Result, Store};

/// How a root file system becomes an image.
#[derive(Clone, Debug, Default)]
pub struct ImportSpec {
    /// The image's name.
    pub name: Option<Reference>,
    /// What a workload of it starts with.
    pub config: RunConfig,
    /// A remark for its history.
    pub message: Option<String>,
    /// What it is for; `None`: this machine.
    pub platform: Option<Platform>,
}

/// How a workload's changes become an image.
#[derive(Clone, Debug, Default)]
pub struct CommitSpec {
    /// The image's name.
    pub name: Option<Reference>,
    /// What a workload of it starts with; `None`: as with the image below.
    pub config: Option<RunConfig>,
    /// A remark for its history.
    pub message: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// The command that made the changes, as the history shows it.
    pub created_by: Option<String>,
}

/// Makes an image of one layer from an archive (plain, gzip or zstd) or a folder at `path`; `-` is no path here, see
/// [`import_from`].
pub fn import(store: &Store, path: &Path, spec: ImportSpec, progress: Listener<'_>) -> Result<Image> {
    let what = || format!("import {}", path.display());
    if path.is_dir() {
        let work = Work::new(store, "import")?;
        let archive = archived(&work, |to| write_root(path, store.ownership(), to, &|_| false))?;
        return import_file(store, archive, spec, progress).context(what);
    }
    let file = File::open(path).context(what)?;
    if file.metadata().is_ok_and(|found| found.is_file()) {
        return import_file(store, file, spec, progress).context(what);
    }
    import_from(store, file, spec, progress).context(what)
}

/// As [`import`], from an archive that is read from anywhere.
///
/// A configuration names the digest of its layers, and the layer stands below its configuration: the archive is
/// written to the store's `work` first.
pub fn import_from(
    store: &Store,
    mut from: impl Read,
    spec: ImportSpec,
    progress: Listener<'_>,
) -> Result<Image> {
    let work = Work::new(store, "import")?;
    let archive = archived(&work, |mut to| {
        std::io::copy(&mut from, &mut to).context(|| "read the archive")?;
        Ok(())
    })?;
    import_file(store, archive, spec, progress)
}

fn import_file(store: &Store, archive: File, spec: ImportSpec, progress: Listener<'_>) -> Result<Image> {
    let platform = spec.platform.unwrap_or_else(Platform::host);
    let config = ImageConfig {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        config: spec.config,
        comment: spec.message.clone(),
        ..ImageConfig::default()
    };
    let line = History { created_by: Some("import".to_owned()), comment: spec.message, ..History::default() };
    add_layer(store, config, Vec::new(), archive, line, spec.name, progress)
}

/// Makes an image of `base` and one more layer: what `upper`, the upper folder of an overlay, holds.
///
/// `left_out` names paths that are no part of the image, such as the places of volumes; see
/// [`write_upper`]. `base` is held by the caller.
pub fn commit(
    store: &Store,
    base: &Image,
    upper: &Path,
    left_out: &dyn Fn(&Path) -> bool,
    spec: CommitSpec,
    progress: Listener<'_>,
) -> Result<Image> {
    let work = Work::new(store, "commit")?;
    let archive = archived(&work, |to| write_upper(upper, store.ownership(), to, left_out))
        .context(|| format!("archive {}", upper.display()))?;
    let mut config = base.config.clone();
    config.author = spec.author.clone().or(config.author);
    config.comment = spec.message.clone();
    if let Some(changed) = spec.config {
        config.config = changed;
    }
    let line = History {
        created_by: spec.created_by,
        author: spec.author,
        comment: spec.message,
        ..History::default()
    };
    let blobs = base.layers.iter().map(|layer| Some(layer.blob.clone())).collect();
    add_layer(store, config, blobs, archive, line, spec.name, progress)
}

/// Writes an archive to a file without a name.
fn archived(work: &Work, write: impl FnOnce(&mut dyn std::io::Write) -> Result<()>) -> Result<File> {
    let path = work.path().join("archive");
    let what = || format!("write {}", path.display());
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(&path).context(what)?;
    std::fs::remove_file(&path).context(what)?;
    let mut to = std::io::BufWriter::with_capacity(256 << 10, file);
    write(&mut to)?;
    to.into_inner().map_err(|error| Error::from(error.into_error())).context(what)
}

/// The layer that is added; those below it are in the store.
struct Added {
    index: usize,
    archive: Mutex<Option<File>>,
}

impl Source for Added {
    fn open(&self, index: usize) -> Result<LayerStream<'_>> {
        let mut archive = self.archive.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let archive = archive.take().filter(|_| index == self.index);
        Ok(Box::new(archive.ok_or_else(|| Error::new("a layer of the image below is not in the store"))?))
    }
}

fn add_layer(
    store: &Store,
    mut config: ImageConfig,
    mut blobs: Vec<Option<crate::Descriptor>>,
    mut archive: File,
    mut line: History,
    name: Option<Reference>,
    progress: Listener<'_>,
) -> Result<Image> {
    use std::io::Seek;
    archive.rewind().context(|| "read the archive")?;
    let mut plain = unpacked(BufReader::with_capacity(256 << 10, &archive))?;
    let mut hashing = crate::digest::Hashing::new(std::io::sink());
    std::io::copy(&mut plain, &mut hashing).context(|| "read the archive")?;
    drop(plain);
    let (_, diff_id, _): (_, Digest, _) = hashing.finish();
    archive.rewind().context(|| "read the archive")?;

    let now = humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string();
    line.created = Some(now.clone());
    config.created = Some(now);
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids.push(diff_id);
    config.history.push(line);
    let config_bytes = config.to_bytes()?;
    // What is made here passes the door that everything else passes.
    let config = ImageConfig::parse(&config_bytes)?;
    let source = Added { index: blobs.len(), archive: Mutex::new(Some(archive)) };
    blobs.push(None);
    let names = name.into_iter().collect();
    let draft = Draft { config, config_bytes, manifest_bytes: None, blobs, names, digests: Vec::new() };
    assemble(store, draft, &source, 1, progress)
}
