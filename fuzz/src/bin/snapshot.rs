//! Any state behind a sum that is right, as whoever has no key to fear can make it; and changed states of devices.
#![no_main]

#[path = "../../../crates/vmm/tests/attacks/idle.rs"]
mod idle;

use idle::Idle;
use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, tamper};
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::snapshot::{decode, encode};
use moat_vmm::virtio::block::{Block, BlockOptions};
use moat_vmm::virtio::console::{Console, PortOptions};
use moat_vmm::virtio::net::{Net, NetOptions};
use moat_vmm::virtio::rng::Rng;
use moat_vmm::virtio::vsock::Vsock;
use sha2::{Digest, Sha256};

/// A state's file with a right sum.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"MOATVMS\n".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    let sum = Sha256::new().chain_update(&bytes).chain_update(payload).finalize();
    bytes.extend(sum);
    bytes.extend(payload);
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let script = Script(rest);
    match kind % 8 {
        0 => tamper(script, || Rng::new(Idle::default(), RateLimit::none())),
        1 => tamper(script, || Block::new(Idle::default(), BlockOptions { queues: 2, ..Default::default() })),
        2 => tamper(script, || Net::new([Idle::default(), Idle::default()], NetOptions::default())),
        3 => tamper(script, || {
            let port = |console| (Idle::default(), PortOptions { name: "port".to_owned(), console });
            Console::new([port(true), port(false)])
        }),
        4 => tamper(script, || Vsock::new(Idle::default(), 3)),
        _ => {
            // As it is, it is refused by its sum, unless it is one that was written.
            if let Ok(state) = decode(rest, None) {
                assert!(encode(&state, None).is_ok());
            }
            let Ok(state) = decode(&sealed(rest), None) else { return };
            let _ = state.spec();
            // What was taken can be written, and is the same afterwards.
            let once = encode(&state, None).expect("a state can be written");
            let again = encode(&decode(&once, None).expect("and read"), None).expect("and written");
            assert_eq!(once, again);
        }
    }
});
