//! `moat/hello`, the image that is a part of the program: one static file, for whoever has no registry at hand.

use std::io::Read;

use crate::assemble::{Draft, LayerStream, Source, assemble};
use crate::config::{History, RootFs, RunConfig};
use crate::digest::Hashing;
use crate::ingest::unpacked;
use crate::manifest::{Descriptor, media_type};
use crate::{Context, Digest, Image, ImageConfig, Platform, Reference, Result, Store, silent};

/// Its name.
const NAME: &str = "moat/hello:latest";

/// Its layer, which the build script makes.
static LAYER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello.tar.gz"));

struct BuiltIn;

impl Source for BuiltIn {
    fn open(&self, _: usize) -> Result<LayerStream<'_>> {
        Ok(Box::new(LAYER))
    }
}

/// Whether a name means the built-in image, so that no registry need be asked.
pub(crate) fn is_hello(name: &Reference) -> bool {
    name.domain() == crate::DEFAULT_DOMAIN
        && name.path() == "moat/hello"
        && name.tag() == Some(crate::DEFAULT_TAG)
        && name.digest().is_none()
}

/// The digest of the layer as an archive that is not packed.
fn diff_id() -> Result<Digest> {
    let mut hashing = Hashing::new(unpacked(LAYER)?);
    std::io::copy(&mut Read::by_ref(&mut hashing), &mut std::io::sink()).context(|| "moat/hello")?;
    let (_, diff_id, _) = hashing.finish();
    Ok(diff_id)
}

/// Whether an image holds the built-in program and nothing else, whatever its name.
pub fn is_built_in(image: &Image) -> Result<bool> {
    // Unpacking the layer for its digest is worth it only where the program could be in it.
    let may_be = image.config.config.entrypoint.as_deref().is_some_and(|words| words == ["/hello"]);
    Ok(may_be && image.config.rootfs.diff_ids == [diff_id()?])
}

/// Installs `moat/hello` in the store, where it is not there yet.
pub fn hello(store: &Store) -> Result<Image> {
    let diff_id = diff_id()?;
    let platform = Platform::host();
    let config = ImageConfig {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        config: RunConfig {
            entrypoint: Some(vec!["/hello".to_owned()]),
            working_dir: "/".to_owned(),
            ..RunConfig::default()
        },
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        history: vec![History { created_by: Some("a part of moat".to_owned()), ..History::default() }],
        ..ImageConfig::default()
    };
    let blob = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(LAYER), LAYER.len() as u64);
    let draft = Draft {
        config_bytes: config.to_bytes()?,
        config,
        manifest_bytes: None,
        blobs: vec![Some(blob)],
        names: vec![NAME.parse()?],
        digests: Vec::new(),
    };
    assemble(store, draft, &BuiltIn, 1, &silent)
}

/// The program of `moat/hello`, which prints all facts when it is called with `--facts`.
pub fn hello_program() -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(unpacked(LAYER)?);
    let what = || "moat/hello";
    let mut program = Vec::new();
    for entry in archive.entries().context(what)? {
        entry.context(what)?.read_to_end(&mut program).context(what)?;
    }
    Ok(program)
}

/// The environment variable, name and value, by which the program in `moat/hello` is told what the host sees: lines
/// `NAME=VALUE`. It belongs into the environment of workloads of that image and of no other.
pub fn hello_environment() -> (&'static str, String) {
    (moat_hello::facts::VARIABLE, moat_hello::facts::to_text(&moat_hello::facts::collect()))
}
