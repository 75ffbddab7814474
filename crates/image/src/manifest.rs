//! Manifests and indexes, in OCI's and in Docker's dialect: the door for a registry's and an archive's JSON.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Kind, Platform, Result};

/// The largest manifest or index that is read, as registries have it.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// The most layers of an image: overlayfs stacks no more.
pub(crate) const MAX_LAYERS: usize = 500;
/// The most entries of an index.
const MAX_MANIFESTS: usize = 2000;

/// The media types that are read and written.
pub mod media_type {
    #![allow(missing_docs, reason = "the names are the specifications' own")]
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// What a document says of some content: its type, digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type; layers are told apart by their first bytes all the same.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: what the image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text, such as an image's name in a layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }
}

/// An image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// OCI's or Docker's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A list of images, one for each platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// OCI's or Docker's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The images.
    pub manifests: Vec<Descriptor>,
}

/// What a registry answers when it is asked for a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// A list of them.
    Index(Index),
}

/// Enough of a document to see what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    config: Option<IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index, whichever it is.
    ///
    /// What it is follows from its content, never from a header that says so, and a document that could be both is
    /// refused: two readers could disagree about what they were given.
    ///
    /// Errors: it is neither, is malformed, or is larger than its limits.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fault = |what: String| Error::new(format!("manifest {what}")).with_kind(Kind::Corrupt);
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(fault(format!("is larger than {MAX_MANIFEST_BYTES} bytes")).with_kind(Kind::TooLarge));
        }
        let json = |error: serde_json::Error| fault(format!("is malformed: {error}"));
        if !is_object(bytes) {
            return Err(fault("is no object".to_owned()));
        }
        let outline: Outline = serde_json::from_slice(bytes).map_err(json)?;
        if outline.schema_version == 1 {
            return Err(fault(
                "is of Docker's first schema, which registries gave up; push the image again".into(),
            ));
        }
        if outline.schema_version != 2 {
            return Err(fault(format!("has the schema version {}, not 2", outline.schema_version)));
        }
        match (outline.config, outline.manifests) {
            (Some(_), Some(_)) => Err(fault("is an image and an index at once".to_owned())),
            (Some(_), None) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                if manifest.layers.len() > MAX_LAYERS {
                    let count = manifest.layers.len();
                    return Err(fault(format!("has {count} layers; at most {MAX_LAYERS} can be stacked"))
                        .with_kind(Kind::TooLarge));
                }
                Ok(Self::Image(manifest))
            }
            (None, Some(_)) => {
                let index: Index = serde_json::from_slice(bytes).map_err(json)?;
                if index.manifests.len() > MAX_MANIFESTS {
                    return Err(
                        fault(format!("lists more than {MAX_MANIFESTS} images")).with_kind(Kind::TooLarge)
                    );
                }
                Ok(Self::Index(index))
            }
            (None, None) => Err(fault("holds neither a configuration nor a list of images".to_owned())),
        }
    }
}

/// Whether a document is an object: a list of values in the right order would be taken for one, too.
pub(crate) fn is_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

impl Index {
    /// The image that serves `platform` best; an entry that names no platform serves when it is the only one.
    ///
    /// Errors: there is none; the sentence lists what there is.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor> {
        // Attestations and the like stand beside the images, for the platform "unknown".
        let is_image = |descriptor: &&Descriptor| {
            matches!(
                descriptor.media_type.as_str(),
                "" | media_type::OCI_MANIFEST
                    | media_type::DOCKER_MANIFEST
                    | media_type::OCI_INDEX
                    | media_type::DOCKER_LIST
            )
        };
        let mut best: Option<(u8, &Descriptor)> = None;
        for entry in self.manifests.iter().filter(is_image) {
            let score = entry.platform.as_ref().and_then(|offered| platform.score(offered));
            // The first of equals wins, as with others.
            if let Some(score) = score
                && best.is_none_or(|(so_far, _)| score > so_far)
            {
                best = Some((score, entry));
            }
        }
        if let Some((_, entry)) = best {
            return Ok(entry);
        }
        if let [only] = &self.manifests[..]
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let offered: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        Err(Error::new(format!("there is no image for {platform}, only for {}", offered.join(", ")))
            .with_kind(Kind::NotFound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_image_an_index_and_neither() {
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":1}}"#);
        let image = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
        assert!(matches!(Document::parse(image.as_bytes()).unwrap(), Document::Image(_)));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(matches!(Document::parse(index.as_bytes()).unwrap(), Document::Index(_)));
        let both = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[]}}"#);
        let first = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        let many = format!(
            r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{}]}}"#,
            vec![descriptor.clone(); 501].join(",")
        );
        let short = r#"{"schemaVersion":2,"config":{"digest":"sha256:00","size":1},"layers":[]}"#;
        for bad in ["", "{}", "[]", "{\"schemaVersion\":2}", &both, first, &many, short] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_best_platform_is_selected() {
        let entry = |architecture: &str, variant: Option<&str>, size| {
            let mut one = Descriptor::new(media_type::OCI_MANIFEST, DIGEST.parse().unwrap(), size);
            one.platform = Some(Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                variant: variant.map(str::to_owned),
            });
            one
        };
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![
                entry("arm", Some("v6"), 1),
                entry("arm", Some("v7"), 2),
                entry("amd64", None, 3),
            ],
        };
        let size = |platform: &str| index.select(&platform.parse().unwrap()).map(|found| found.size);
        assert_eq!(size("linux/arm").unwrap(), 2);
        assert_eq!(size("linux/arm/v6").unwrap(), 1);
        assert_eq!(size("linux/amd64").unwrap(), 3);
        let error = size("linux/s390x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no image for linux/s390x, only for linux/arm/v6, linux/arm/v7, linux/amd64"
        );
    }
}
