//! From a description of an image and a source of its layers to an image of the store.
//!
//! Layers come side by side and are unpacked as they come. Each is completed and moved into place in its turn, those
//! that are ready together with one sync. What an interrupted pull has brought in place is there for the next one.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use crate::ingest::{Ingested, Target, ingest};
use crate::layer::complete::{Below, complete};
use crate::manifest::{Descriptor, Manifest, media_type};
use crate::progress::{LayerProgress, Listener, Progress};
use crate::store::{ImageRecord, LayerState, Lease, Work, chain_ids};
use crate::{Context, Digest, Error, Image, ImageConfig, Kind, Layer, Reference, Result, Store};

/// Bytes between two reports of one layer's progress.
const REPORT_BYTES: u64 = 512 << 10;

/// What a source of layers gives.
pub(crate) type LayerStream<'a> = Box<dyn Read + Send + 'a>;

/// Where the bytes of layers come from, packed or not.
pub(crate) trait Source: Sync {
    /// Opens the layer of this number, from the lowest.
    fn open(&self, index: usize) -> Result<LayerStream<'_>>;
}

/// An image to be: what it says of itself, and what is promised of its layers.
pub(crate) struct Draft {
    pub(crate) config: ImageConfig,
    /// The bytes of `config`, whose digest is the image's id.
    pub(crate) config_bytes: Vec<u8>,
    /// The bytes of its manifest; `None`: it has none yet, and gets one of our own.
    pub(crate) manifest_bytes: Option<Vec<u8>>,
    /// The layers' blobs, lowest first, where they are promised.
    pub(crate) blobs: Vec<Option<Descriptor>>,
    /// Under which names the image is to be known.
    pub(crate) names: Vec<Reference>,
    /// Repositories and the digest that the image has there.
    pub(crate) digests: Vec<Reference>,
}

impl Draft {
    /// A draft of an image that comes with a manifest.
    ///
    /// Errors: configuration and manifest do not fit each other.
    pub(crate) fn of_manifest(
        manifest: &Manifest,
        manifest_bytes: Vec<u8>,
        config_bytes: Vec<u8>,
    ) -> Result<Self> {
        if !matches!(
            manifest.config.media_type.as_str(),
            media_type::OCI_CONFIG | media_type::DOCKER_CONFIG | ""
        ) {
            return Err(Error::new(format!(
                "manifest describes something of the type {:?}, which is no container image",
                manifest.config.media_type
            )));
        }
        crate::digest::verify("image configuration", &manifest.config.digest, &Digest::of(&config_bytes))?;
        let config = ImageConfig::parse(&config_bytes)?;
        let blobs = manifest.layers.iter().cloned().map(Some).collect();
        let draft = Self {
            config,
            config_bytes,
            manifest_bytes: Some(manifest_bytes),
            blobs,
            names: Vec::new(),
            digests: Vec::new(),
        };
        draft.check()?;
        Ok(draft)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let (blobs, diff_ids) = (self.blobs.len(), self.config.rootfs.diff_ids.len());
        if blobs != diff_ids {
            return Err(Error::new(format!(
                "image has {blobs} layers, but its configuration tells of {diff_ids}"
            ))
            .with_kind(Kind::Corrupt));
        }
        Ok(())
    }
}

/// Brings an image into the store.
///
/// `parallel` layers come at once. Errors: a layer could not be had, is not what was promised, or could not be
/// written; what is in place by then stays for the next try.
pub(crate) fn assemble(
    store: &Store,
    draft: Draft,
    source: &dyn Source,
    parallel: usize,
    progress: Listener<'_>,
) -> Result<Image> {
    draft.check()?;
    let work = Work::new(store, "image")?;
    let id = Digest::of(&draft.config_bytes);
    let diff_ids = &draft.config.rootfs.diff_ids;
    let chain = chain_ids(diff_ids);
    let mut lease = Lease::default();
    lease.layers.extend(&chain);
    lease.blobs.extend(draft.blobs.iter().flatten().map(|blob| blob.digest));
    lease.blobs.insert(id);
    lease.blobs.extend(draft.manifest_bytes.as_deref().map(Digest::of));
    for chain in &chain {
        lease.blobs.extend(store.layer_state(chain)?.map(|state| state.blob.digest));
    }
    work.lease(store, &lease)?;

    let jobs: Vec<Job> = (0..chain.len())
        .map(|index| Job::plan(store, index, chain[index], diff_ids[index], draft.blobs[index].as_ref()))
        .collect::<Result<_>>()?;
    let assembly = Assembly {
        store,
        work: &work,
        jobs: &jobs,
        source,
        progress,
        lease: Mutex::new(lease),
        stop: AtomicBool::new(false),
    };
    let layers = assembly.run(parallel)?;

    let manifest_bytes = match draft.manifest_bytes {
        Some(bytes) => bytes,
        None => own_manifest(&draft.config_bytes, &layers)?,
    };
    assembly.keep([Digest::of(&manifest_bytes)])?;
    let kind = serde_json::from_slice::<Manifest>(&manifest_bytes).map(|manifest| manifest.media_type);
    let kind = kind.ok().filter(|kind| !kind.is_empty());
    let kind = kind.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
    let manifest = Descriptor::new(&kind, store.put_blob(&manifest_bytes)?, manifest_bytes.len() as u64);
    store.put_blob(&draft.config_bytes)?;
    let digests = draft.digests.iter().map(Reference::full).collect();
    let stored = humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string();
    let record = ImageRecord { id, manifest, layers, digests, stored };
    let (image, superseded) = store.register(record, &draft.names)?;
    drop(work);
    if superseded {
        store.collect()?;
    }
    Ok(image)
}

/// Writes the manifest of an image that came without one.
fn own_manifest(config: &[u8], layers: &[Layer]) -> Result<Vec<u8>> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        config: Descriptor::new(media_type::OCI_CONFIG, Digest::of(config), config.len() as u64),
        layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
        annotations: None,
    };
    serde_json::to_vec(&manifest).map_err(|error| Error::new(error.to_string()))
}

/// What one layer needs.
struct Job {
    index: usize,
    chain: Digest,
    diff_id: Digest,
    promised: Option<Descriptor>,
    /// The layer's state and blob when its folder is in the store.
    unpacked: Option<LayerState>,
    /// The blob when the store has it.
    blob: Option<Descriptor>,
}

impl Job {
    fn plan(
        store: &Store,
        index: usize,
        chain: Digest,
        diff_id: Digest,
        promised: Option<&Descriptor>,
    ) -> Result<Self> {
        let unpacked = store.layer_state(&chain)?;
        let blob = promised.or(unpacked.as_ref().map(|state| &state.blob));
        let blob = blob.filter(|blob| store.has_blob(&blob.digest)).cloned();
        Ok(Self { index, chain, diff_id, promised: promised.cloned(), unpacked, blob })
    }

    /// The layer when nothing is to be done.
    fn done(&self) -> Option<Layer> {
        let (state, blob) = (self.unpacked.as_ref()?, self.blob.as_ref()?);
        Some(self.layer(blob.clone(), state.size_bytes))
    }

    fn layer(&self, blob: Descriptor, size_bytes: u64) -> Layer {
        Layer { diff_id: self.diff_id, chain_id: self.chain, blob, size_bytes }
    }

    fn digest(&self) -> Digest {
        self.promised.as_ref().map_or(self.diff_id, |promised| promised.digest)
    }
}

struct Assembly<'a> {
    store: &'a Store,
    work: &'a Work,
    jobs: &'a [Job],
    source: &'a dyn Source,
    progress: Listener<'a>,
    lease: Mutex<Lease>,
    /// Set when something has failed: the others need not go on.
    stop: AtomicBool,
}

/// A layer that has come, or why it has not.
type Arrival = (usize, Result<Arrived>);

struct Arrived {
    ingested: Ingested,
    folder: Option<PathBuf>,
    blob: Option<PathBuf>,
}

impl Assembly<'_> {
    fn run(&self, parallel: usize) -> Result<Vec<Layer>> {
        let next = AtomicUsize::new(0);
        let waiting: Vec<&Job> = self.jobs.iter().filter(|job| job.done().is_none()).collect();
        for job in self.jobs {
            let state = if job.done().is_some() { LayerProgress::Exists } else { LayerProgress::Waiting };
            self.tell(job, state);
        }
        std::thread::scope(|scope| {
            let (to, from) = channel();
            for _ in 0..parallel.min(waiting.len()) {
                let (to, waiting, next) = (to.clone(), &waiting, &next);
                scope.spawn(move || {
                    while let Some(job) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if self.stop.load(Ordering::Relaxed) {
                            return;
                        }
                        // The receiver is gone when another layer has failed.
                        let _ = to.send((job.index, self.fetch(job)));
                    }
                });
            }
            drop(to);
            let layers = self.place(&from);
            self.stop.store(layers.is_err(), Ordering::Relaxed);
            layers
        })
    }

    /// Keeps further blobs from being collected.
    fn keep(&self, blobs: impl IntoIterator<Item = Digest>) -> Result<()> {
        let mut lease = self.lease.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lease.blobs.extend(blobs);
        self.work.lease(self.store, &lease)
    }

    fn tell(&self, job: &Job, state: LayerProgress) {
        (self.progress)(Progress::Layer { index: job.index, digest: job.digest(), state });
    }

    /// Gets and unpacks one layer.
    fn fetch(&self, job: &Job) -> Result<Arrived> {
        let folder = match job.unpacked {
            Some(_) => None,
            None => {
                let outer = self.work.folder(&format!("layer-{}", job.index))?;
                let path = outer.join("fs");
                std::fs::create_dir(&path).context(|| format!("make {}", path.display()))?;
                Some(outer)
            }
        };
        let inner = folder.as_ref().map(|folder| folder.join("fs"));
        let blob = match job.blob {
            Some(_) => None,
            None => Some(self.work.path().join(format!("blob-{}", job.index))),
        };
        let target = Target {
            folder: inner.as_deref(),
            blob: blob.clone(),
            ownership: self.store.ownership(),
            limits: self.store.limits(),
            promised: job.promised.as_ref().map(|promised| (promised.digest, promised.size)),
            diff_id: Some(job.diff_id),
        };
        let stream: LayerStream<'_> = match &job.blob {
            Some(known) => Box::new(self.store.open_blob(&known.digest)?),
            None => self.source.open(job.index)?,
        };
        let total = job.promised.as_ref().map(|promised| promised.size);
        let (mut done, mut told) = (0, 0);
        let mut seen = |count: u64| {
            done += count;
            if done - told >= REPORT_BYTES || Some(done) == total {
                told = done;
                self.tell(job, LayerProgress::Moving { done_bytes: done, total_bytes: total });
            }
        };
        let stream = Stoppable { inner: stream, stop: &self.stop };
        let ingested = ingest(stream, &target, &mut seen).context(|| format!("layer {}", job.digest()))?;
        self.tell(job, LayerProgress::Unpacked(ingested.report));
        Ok(Arrived { ingested, folder, blob })
    }

    /// Moves layers into place in their order, as they come.
    fn place(&self, arrivals: &Receiver<Arrival>) -> Result<Vec<Layer>> {
        let mut layers: Vec<Option<Layer>> = self.jobs.iter().map(Job::done).collect();
        let mut arrived: Vec<Option<Arrived>> = self.jobs.iter().map(|_| None).collect();
        let mut next = 0;
        loop {
            let mut ready = Vec::new();
            while let Some(job) = self.jobs.get(next) {
                if let Some(arrival) = arrived[next].take() {
                    ready.push(self.complete(job, arrival, next)?);
                } else if layers[next].is_none() {
                    break;
                }
                next += 1;
            }
            self.commit(ready, &mut layers)?;
            if next == self.jobs.len() {
                break;
            }
            let lost = || Error::new("a thread that gets layers has panicked");
            let (index, result) = arrivals.recv().map_err(|_| lost())?;
            arrived[index] = Some(result?);
            // Those that have come meanwhile share the sync.
            while let Ok((index, result)) = arrivals.try_recv() {
                arrived[index] = Some(result?);
            }
        }
        layers.into_iter().collect::<Option<_>>().ok_or_else(|| Error::new("a layer is missing"))
    }

    /// Does what depends on the layers below, which are complete. They may still be in `work`.
    fn complete<'j>(&self, job: &'j Job, mut arrived: Arrived, index: usize) -> Result<(&'j Job, Arrived)> {
        if let Some(folder) = &arrived.folder {
            let below: Vec<PathBuf> =
                self.jobs[..index].iter().rev().map(|job| self.layer_path(job)).collect();
            let below = Below::new(&below, self.store.ownership());
            let pending = std::mem::take(&mut arrived.ingested.pending);
            let ignored = complete(&folder.join("fs"), pending, &below)
                .context(|| format!("layer {}", job.digest()))?;
            let report = &mut arrived.ingested.report;
            report.ignored_xattrs += ignored;
            if report.skipped_devices + report.ignored_xattrs > 0 {
                (self.progress)(Progress::Note(format!(
                    "layer {}: {} devices and {} attributes were left out",
                    job.digest(),
                    report.skipped_devices,
                    report.ignored_xattrs
                )));
            }
            let state = LayerState {
                diff_id: job.diff_id,
                size_bytes: report.bytes,
                entries: report.entries,
                blob: job.blob.clone().unwrap_or_else(|| arrived.ingested.blob.clone()),
            };
            let text = serde_json::to_vec(&state).map_err(|error| Error::new(error.to_string()))?;
            let path = folder.join("layer.json");
            std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        }
        Ok((job, arrived))
    }

    fn layer_path(&self, job: &Job) -> PathBuf {
        let placed = self.store.layer_path(&job.chain);
        if placed.exists() { placed } else { self.work.path().join(format!("layer-{}/fs", job.index)) }
    }

    /// Syncs what is ready, once, and renames it into place.
    fn commit(&self, ready: Vec<(&Job, Arrived)>, layers: &mut [Option<Layer>]) -> Result<()> {
        if ready.is_empty() {
            return Ok(());
        }
        self.store.sync()?;
        // Blobs that were compressed here have digests that nobody knew before.
        self.keep(ready.iter().map(|(_, arrived)| arrived.ingested.blob.digest))?;
        let _lock = self.store.lock_to_add()?;
        for (job, arrived) in ready {
            let blob = match (&arrived.blob, &job.blob) {
                (Some(path), _) => {
                    self.store.adopt_blob(path, &arrived.ingested.blob.digest)?;
                    job.promised.clone().unwrap_or(arrived.ingested.blob)
                }
                (None, Some(known)) => known.clone(),
                (None, None) => return Err(Error::new(format!("layer {} has no blob", job.digest()))),
            };
            let mut size_bytes = arrived.ingested.report.bytes;
            if let Some(folder) = &arrived.folder {
                let to = self.store.layer_folder(&job.chain);
                match std::fs::rename(folder, &to) {
                    // Somebody else has brought the same layer meanwhile.
                    Err(error) if is_taken(&error) => {}
                    other => other.context(|| format!("rename {} to {}", folder.display(), to.display()))?,
                }
            } else if let Some(state) = &job.unpacked {
                size_bytes = state.size_bytes;
            }
            layers[job.index] = Some(job.layer(blob, size_bytes));
            self.tell(job, LayerProgress::Done);
        }
        Ok(())
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// A stream that ends with an error when another layer has failed.
struct Stoppable<'a> {
    inner: LayerStream<'a>,
    stop: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer has failed"));
        }
        self.inner.read(buffer)
    }
}

/// Unpacks a damaged layer again from its blob; those below it are in place.
pub(crate) fn replace_layer(store: &Store, layers: &[Layer], index: usize) -> Result<()> {
    struct Nothing;
    impl Source for Nothing {
        fn open(&self, _: usize) -> Result<LayerStream<'_>> {
            Err(Error::new("the layer's blob is not in the store"))
        }
    }
    let layer = layers.get(index).ok_or_else(|| Error::new("there is no such layer"))?;
    let work = Work::new(store, "layer")?;
    let old = store.layer_folder(&layer.chain_id);
    if old.exists() {
        std::fs::rename(&old, work.path().join("damaged"))
            .context(|| format!("move {} out of the way", old.display()))?;
    }
    let jobs: Vec<Job> = layers[..=index]
        .iter()
        .enumerate()
        .map(|(index, layer)| Job::plan(store, index, layer.chain_id, layer.diff_id, Some(&layer.blob)))
        .collect::<Result<_>>()?;
    let progress = &crate::progress::silent;
    let assembly = Assembly {
        store,
        work: &work,
        jobs: &jobs,
        source: &Nothing,
        progress,
        lease: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    assembly.run(1).map(drop)
}
