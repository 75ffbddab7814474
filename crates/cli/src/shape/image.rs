//! An image as `docker image inspect` shows it.

use moat_engine::image::Image;
use serde_json::{Value, json};

use super::{Document, list_or_null, object};
use crate::failure::Result;

/// What an image's configuration need not say; Docker shows it all the same, and templates name it.
const UNSAID: [(&str, Value); 12] = [
    ("User", Value::String(String::new())),
    ("ExposedPorts", Value::Null),
    ("Env", Value::Null),
    ("Cmd", Value::Null),
    ("Healthcheck", Value::Null),
    ("Volumes", Value::Null),
    ("WorkingDir", Value::String(String::new())),
    ("Entrypoint", Value::Null),
    ("OnBuild", Value::Null),
    ("Labels", Value::Null),
    ("StopSignal", Value::String(String::new())),
    ("Shell", Value::Null),
];

fn whole_config(mut config: Value) -> Value {
    if let Value::Object(fields) = &mut config {
        for (name, empty) in UNSAID {
            fields.entry(name).or_insert(empty);
        }
    }
    config
}

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
        "Config": whole_config(serde_json::to_value(&config.config)?),
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
