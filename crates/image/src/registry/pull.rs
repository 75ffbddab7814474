//! `pull`: an image from a registry, or from a mirror of it.

use super::blob::BlobStream;
use super::client::{Call, Endpoint, read_all};
use super::credentials::Credentials;
use super::spec::RegistriesSpec;
use crate::assemble::{Draft, LayerStream, Source, assemble};
use crate::config::MAX_CONFIG_BYTES;
use crate::digest::verify;
use crate::hello::{hello, is_hello};
use crate::manifest::{Document, MAX_MANIFEST_BYTES, Manifest, media_type};
use crate::progress::{Listener, Progress};
use crate::{Context, Digest, Error, Image, Kind, Platform, Reference, Result, Store};

/// How an image is pulled.
#[derive(Clone, Debug)]
pub struct PullSpec {
    /// Which image of an index; `None`: the one for this machine.
    pub platform: Option<Platform>,
    /// How registries are reached.
    pub registries: RegistriesSpec,
    /// Who the user is.
    pub credentials: Credentials,
    /// So many layers come at once.
    pub parallel: usize,
}

impl Default for PullSpec {
    fn default() -> Self {
        Self {
            platform: None,
            registries: RegistriesSpec::default(),
            credentials: Credentials::of_user(),
            parallel: 3,
        }
    }
}

/// What is accepted in place of a manifest.
const ACCEPT: [&str; 4] =
    [media_type::OCI_MANIFEST, media_type::OCI_INDEX, media_type::DOCKER_MANIFEST, media_type::DOCKER_LIST];

/// Pulls an image and names it as it was asked for; one that was asked for by digest alone gets no name.
///
/// `moat/hello` comes out of the program itself. Layers that the store has are not fetched again. Errors: there is no such image ([`Kind::NotFound`]), the registry
/// grants nothing ([`Kind::Unauthorized`]), something is not what its digest says ([`Kind::Corrupt`]).
pub fn pull(store: &Store, reference: &Reference, spec: &PullSpec, progress: Listener<'_>) -> Result<Image> {
    if is_hello(reference) {
        return hello(store);
    }
    let endpoints = endpoints(reference.domain(), spec, progress)?;
    let what = || format!("pull {reference}");
    let (first, (bytes, digest)) = first_that_has(&endpoints, reference).context(what)?;
    let mut ordered: Vec<&Endpoint<'_>> = endpoints.iter().skip(first).collect();
    ordered.extend(endpoints.iter().take(first));
    pull_from(&ordered, store, reference, spec, (bytes, digest), progress).context(what)
}

/// The mirrors of a registry, then the registry itself.
fn endpoints<'a>(domain: &str, spec: &PullSpec, progress: Listener<'a>) -> Result<Vec<Endpoint<'a>>> {
    let mut endpoints = Vec::new();
    for mirror in spec.registries.mirrors.get(domain).into_iter().flatten() {
        let host = mirror.split_once("://").map_or(mirror.as_str(), |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or(host);
        let credential = spec.credentials.find(host)?;
        endpoints.push(Endpoint::with_progress(mirror, &spec.registries, credential, progress)?);
    }
    let credential = spec.credentials.find(domain)?;
    endpoints.push(Endpoint::with_progress(domain, &spec.registries, credential, progress)?);
    Ok(endpoints)
}

/// The bytes of a manifest or index, and their digest.
type Fetched = (Vec<u8>, Digest);

/// The number of the first endpoint that has the image, and what it has.
fn first_that_has(endpoints: &[Endpoint<'_>], reference: &Reference) -> Result<(usize, Fetched)> {
    let mut last = Error::new("no registry was asked");
    for (index, endpoint) in endpoints.iter().enumerate() {
        let wanted = reference.digest().map(|digest| digest.to_string());
        let wanted = wanted.as_deref().or(reference.tag()).unwrap_or(crate::DEFAULT_TAG);
        match manifest(endpoint, reference.path(), wanted, reference.digest()) {
            Ok(fetched) => return Ok((index, fetched)),
            // The registry itself stands last, and what it says counts.
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn manifest(
    endpoint: &Endpoint<'_>,
    repository: &str,
    wanted: &str,
    promised: Option<Digest>,
) -> Result<Fetched> {
    let path = format!("/v2/{repository}/manifests/{wanted}");
    let headers = [("accept", ACCEPT.join(", "))];
    let answer = endpoint.send(&Call::get(&path, &headers))?;
    let header = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    let told = header.and_then(|value| value.parse::<Digest>().ok());
    let bytes = read_all(answer, MAX_MANIFEST_BYTES).context(|| "manifest")?;
    let digest = Digest::of(&bytes);
    if let Some(promised) = promised.or(told) {
        verify("manifest", &promised, &digest)?;
    }
    Ok((bytes, digest))
}

fn pull_from(
    endpoints: &[&Endpoint<'_>],
    store: &Store,
    reference: &Reference,
    spec: &PullSpec,
    (bytes, digest): Fetched,
    progress: Listener<'_>,
) -> Result<Image> {
    let (bytes, manifest) = select(endpoints, reference.path(), spec, bytes)?;
    let layers = manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    progress(Progress::Resolved { digest, layers });
    let config = config(endpoints, store, reference.path(), &manifest)?;
    let mut draft = Draft::of_manifest(&manifest, bytes, config)?;
    let found = draft.config.platform();
    let wanted = spec.platform.clone().unwrap_or_else(Platform::host);
    if !wanted.accepts(&found) {
        if spec.platform.is_some() {
            return Err(
                Error::new(format!("the image is for {found}, not for {wanted}")).with_kind(Kind::NotFound)
            );
        }
        progress(Progress::Note(format!("the image is for {found}, and this machine is {wanted}")));
    }
    draft.digests.push(reference.with_digest(digest));
    if let Some(tag) = reference.tag() {
        draft.names.push(reference.with_tag(tag)?);
    }
    let source = Registry { endpoints, repository: reference.path(), manifest: &manifest };
    assemble(store, draft, &source, spec.parallel.max(1), progress)
}

/// The manifest itself, or the one of an index that is for the wanted platform.
fn select(
    endpoints: &[&Endpoint<'_>],
    repository: &str,
    spec: &PullSpec,
    bytes: Vec<u8>,
) -> Result<(Vec<u8>, Manifest)> {
    let index = match Document::parse(&bytes)? {
        Document::Image(manifest) => return Ok((bytes, manifest)),
        Document::Index(index) => index,
    };
    let platform = spec.platform.clone().unwrap_or_else(Platform::host);
    let entry = index.select(&platform)?;
    let wanted = entry.digest.to_string();
    let (bytes, _) = any(endpoints, |endpoint| manifest(endpoint, repository, &wanted, Some(entry.digest)))?;
    match Document::parse(&bytes)? {
        Document::Image(manifest) => Ok((bytes, manifest)),
        Document::Index(_) => Err(Error::new(format!("{wanted} is an index within an index"))),
    }
}

/// Asks one after the other until one succeeds.
fn any<T>(endpoints: &[&Endpoint<'_>], mut ask: impl FnMut(&Endpoint<'_>) -> Result<T>) -> Result<T> {
    let mut last = Error::new("no registry was asked");
    for endpoint in endpoints {
        match ask(endpoint) {
            Ok(value) => return Ok(value),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn config(
    endpoints: &[&Endpoint<'_>],
    store: &Store,
    repository: &str,
    manifest: &Manifest,
) -> Result<Vec<u8>> {
    let wanted = &manifest.config;
    if wanted.size > MAX_CONFIG_BYTES {
        return Err(Error::new(format!("image configuration is larger than {MAX_CONFIG_BYTES} bytes"))
            .with_kind(Kind::TooLarge));
    }
    if let Ok(bytes) = store.read_blob(&wanted.digest, MAX_CONFIG_BYTES) {
        return Ok(bytes);
    }
    any(endpoints, |endpoint| {
        use std::io::Read;
        let mut bytes = Vec::new();
        let mut stream = BlobStream::open(endpoint, repository, &wanted.digest, wanted.size)?;
        stream.read_to_end(&mut bytes).context(|| "image configuration")?;
        verify("image configuration", &wanted.digest, &Digest::of(&bytes))?;
        Ok(bytes)
    })
}

/// Layers as blobs of a registry.
struct Registry<'a> {
    endpoints: &'a [&'a Endpoint<'a>],
    repository: &'a str,
    manifest: &'a Manifest,
}

impl Source for Registry<'_> {
    fn open(&self, index: usize) -> Result<LayerStream<'_>> {
        let layer = self.manifest.layers.get(index).ok_or_else(|| Error::new("there is no such layer"))?;
        let mut last = Error::new("no registry was asked");
        for endpoint in self.endpoints {
            match BlobStream::open(endpoint, self.repository, &layer.digest, layer.size) {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
