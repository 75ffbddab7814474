//! Any bytes as config.json: it is read, or refused; what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_model::oci::Spec;

fuzz_target!(|bytes: &[u8]| {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else { return };
    behind_the_door(&spec);
});

/// What happens to a configuration once it is read.
fn behind_the_door(spec: &Spec) {
    let text = serde_json::to_vec(spec).expect("a configuration can be written");
    let again: Spec = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(&again, spec);
    if let Some(seccomp) = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref()) {
        let _ = moat_sandbox::seccomp::compile(seccomp);
    }
}
