//! Any bytes as what a registry sends: a manifest or an index, and an image's configuration. What is read can be
//! written and read again, and holds what its readers count on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_image::{Document, ImageConfig, Platform};

fuzz_target!(|bytes: &[u8]| {
    match Document::parse(bytes) {
        Ok(Document::Image(manifest)) => {
            assert!(manifest.layers.len() <= 500);
            let text = serde_json::to_vec(&manifest).expect("a manifest can be written");
            assert_eq!(
                Document::parse(&text).expect("what was written can be read"),
                Document::Image(manifest)
            );
        }
        Ok(Document::Index(index)) => {
            for platform in ["linux/amd64", "linux/arm/v7", "linux/arm64"] {
                let platform: Platform = platform.parse().expect("a platform");
                if let Ok(entry) = index.select(&platform) {
                    let offered = entry.platform.as_ref();
                    assert!(offered.is_none_or(|offered| offered.architecture == platform.architecture));
                }
            }
            let text = serde_json::to_vec(&index).expect("an index can be written");
            assert_eq!(Document::parse(&text).expect("what was written can be read"), Document::Index(index));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(config) = ImageConfig::parse(bytes) {
        assert!(config.rootfs.diff_ids.len() <= 500);
        let run = &config.config;
        let lists = [&run.entrypoint, &run.cmd, &run.shell].into_iter().flatten().flatten();
        assert!(lists.chain(&run.env).chain([&run.user, &run.working_dir]).all(|text| !text.contains('\0')));
        let text = serde_json::to_vec(&config).expect("a configuration can be written");
        assert_eq!(ImageConfig::parse(&text).expect("what was written can be read"), config);
    }
});
