//! Any text as the name of an image: it is read, or refused; what was read names one file, and both of its forms are
//! read as the same name again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_image::Reference;

fuzz_target!(|text: &str| {
    let Ok(reference) = Reference::parse(text) else { return };
    assert!(reference.tag().is_some() || reference.digest().is_some());
    for form in [reference.full(), reference.to_string()] {
        assert_eq!(Reference::parse(&form).expect("what was written can be read"), reference);
    }
    // Its parts become paths of URLs.
    for part in [reference.domain(), reference.path(), reference.tag().unwrap_or_default()] {
        assert!(
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/[]".contains(&byte)),
            "{part:?}"
        );
    }
    assert!(!reference.path().split('/').any(|name| name.is_empty() || name == ".." || name == "."));
});
