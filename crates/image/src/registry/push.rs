//! `push`: an image to a registry. Its blobs are in the store as the registry gets them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::auth::percent;
use super::client::{Answer, Call, Content, Endpoint};
use super::credentials::Credentials;
use super::spec::RegistriesSpec;
use crate::manifest::{Descriptor, MAX_MANIFEST_BYTES};
use crate::progress::{LayerProgress, Listener, Progress};
use crate::{Context, Digest, Error, Image, Kind, Reference, Result, Store};

/// Bytes between two reports of one layer's progress.
const REPORT_BYTES: u64 = 512 << 10;

/// How an image is pushed.
#[derive(Clone, Debug)]
pub struct PushSpec {
    /// How registries are reached.
    pub registries: RegistriesSpec,
    /// Who the user is.
    pub credentials: Credentials,
    /// So many layers go at once.
    pub parallel: usize,
}

impl Default for PushSpec {
    fn default() -> Self {
        Self { registries: RegistriesSpec::default(), credentials: Credentials::of_user(), parallel: 3 }
    }
}

/// Pushes an image of the store under a name that leads to it; returns the digest that it has in the registry.
///
/// Errors: the name has no tag; the registry refuses ([`Kind::Unauthorized`]).
pub fn push(
    store: &Store,
    image: &Image,
    name: &Reference,
    spec: &PushSpec,
    progress: Listener<'_>,
) -> Result<Digest> {
    push_to(store, image, name, spec, progress).context(|| format!("push {name}"))
}

fn push_to(
    store: &Store,
    image: &Image,
    name: &Reference,
    spec: &PushSpec,
    progress: Listener<'_>,
) -> Result<Digest> {
    let tag = name.tag().ok_or_else(|| Error::new("a tag is needed"))?;
    let missing = || Error::new(format!("no such image: {}", image.id)).with_kind(Kind::NotFound);
    let record = store.record(&image.id)?.ok_or_else(missing)?;
    let manifest = store.read_blob(&record.manifest.digest, MAX_MANIFEST_BYTES)?;
    let credential = spec.credentials.find(name.domain())?;
    let endpoint = Endpoint::with_progress(name.domain(), &spec.registries, credential, progress)?;
    let sources: BTreeSet<String> = image
        .digests
        .iter()
        .filter(|known| known.domain() == name.domain() && known.path() != name.path())
        .map(|known| known.path().to_owned())
        .collect();
    let push = Push { store, endpoint: &endpoint, repository: name.path(), sources, progress };

    let layers: Vec<Descriptor> = record.layers.iter().map(|layer| layer.blob.clone()).collect();
    progress(Progress::Resolved {
        digest: record.manifest.digest,
        layers: layers.iter().map(|layer| (layer.digest, layer.size)).collect(),
    });
    push.layers(&layers, spec.parallel.max(1))?;
    let config = store.blob_path(&image.id).metadata().context(|| "image configuration")?.len();
    push.blob(&Descriptor::new("", image.id, config), &|_| {})?;

    let path = format!("/v2/{}/manifests/{tag}", name.path());
    let headers = [("content-type", record.manifest.media_type.clone())];
    endpoint.send(&Call {
        method: "PUT",
        path: &path,
        headers: &headers,
        content: Content::Bytes(&manifest),
    })?;
    store.add_digest(&image.id, &name.with_digest(record.manifest.digest))?;
    Ok(record.manifest.digest)
}

struct Push<'a> {
    store: &'a Store,
    endpoint: &'a Endpoint<'a>,
    repository: &'a str,
    /// Repositories of the registry that may have the layers.
    sources: BTreeSet<String>,
    progress: Listener<'a>,
}

impl Push<'_> {
    fn layers(&self, layers: &[Descriptor], parallel: usize) -> Result<()> {
        // An image may have the same layer twice.
        let mut seen = BTreeSet::new();
        let wanted: Vec<(usize, &Descriptor)> =
            layers.iter().enumerate().filter(|(_, layer)| seen.insert(layer.digest)).collect();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..parallel.min(wanted.len()) {
                scope.spawn(|| {
                    while let Some((index, layer)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.layer(*index, layer) {
                            // No further ones are begun.
                            next.store(wanted.len(), Ordering::Relaxed);
                            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn layer(&self, index: usize, layer: &Descriptor) -> Result<()> {
        let tell = |state| (self.progress)(Progress::Layer { index, digest: layer.digest, state });
        let (done, told) = (AtomicU64::new(0), AtomicU64::new(0));
        let sent = self.blob(layer, &|count| {
            let done_bytes = done.fetch_add(count, Ordering::Relaxed) + count;
            if done_bytes - told.load(Ordering::Relaxed) >= REPORT_BYTES || done_bytes == layer.size {
                told.store(done_bytes, Ordering::Relaxed);
                tell(LayerProgress::Moving { done_bytes, total_bytes: Some(layer.size) });
            }
        })?;
        tell(if sent { LayerProgress::Done } else { LayerProgress::Exists });
        Ok(())
    }

    /// Brings a blob to the registry; false when it has it already.
    fn blob(&self, blob: &Descriptor, seen: &dyn Fn(u64)) -> Result<bool> {
        let what = || format!("blob {}", blob.digest);
        let path = format!("/v2/{}/blobs/{}", self.repository, blob.digest);
        match self.endpoint.send(&Call {
            method: "HEAD",
            path: &path,
            headers: &[],
            content: Content::Nothing,
        }) {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error).context(what),
        }
        let mut start = format!("/v2/{}/blobs/uploads/", self.repository);
        if let Some(source) = self.sources.first() {
            start.push_str(&format!("?mount={}&from={}", percent(&blob.digest.to_string()), percent(source)));
        }
        let begun = self.post(&start).context(what)?;
        if begun.status().as_u16() == 201 {
            return Ok(false);
        }
        let place = begun.headers().get("location").and_then(|value| value.to_str().ok());
        let place =
            place.ok_or_else(|| Error::new("it does not say where to send the blob")).context(what)?;
        let joint = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{joint}digest={}", percent(&blob.digest.to_string()));
        let headers = [("content-type", "application/octet-stream".to_owned())];
        let open = || self.store.open_blob(&blob.digest);
        let content = Content::File { open: &open, size: blob.size, seen };
        self.endpoint
            .send(&Call { method: "PUT", path: &place, headers: &headers, content })
            .context(what)?;
        Ok(true)
    }

    fn post(&self, path: &str) -> Result<Answer> {
        self.endpoint.send(&Call { method: "POST", path, headers: &[], content: Content::Bytes(b"") })
    }
}
