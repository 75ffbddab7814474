//! An image as `docker image inspect` shows it.

use moat_engine::image::Image;
use serde_json::{Value, json};

use super::{Document, list_or_null, object};
use crate::failure::Result;

/// The document of an image.
pub(crate) fn image(image: &Image) -> Result<Document> {
    let config = &image.config;
    let texts = |references: &[moat_engine::image::Reference]| -> Vec<String> {
        references.iter().map(ToString::to_string).collect()
    };
    Ok(object! {
        "Id": image.id.to_string(),
        "RepoTags": texts(&image.names),
        "RepoDigests": texts(&image.digests),
        "Parent": "",
        "Comment": config.comment.clone().unwrap_or_default(),
        "Created": image.created.clone().unwrap_or_default(),
        "Author": config.author.clone().unwrap_or_default(),
        "Config": serde_json::to_value(&config.config)?,
        "Architecture": config.architecture.as_str(),
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os.as_str(),
        "Size": image.size_bytes,
        "RootFS": json!({
            "Type": "layers",
            "Layers": list_or_null(config.rootfs.diff_ids.iter().map(ToString::to_string)),
        }),
        "Metadata": json!({"LastTagTime": Value::from(image.stored.as_str())}),
    })
}
