//! Any state behind a sum that is right, as whoever has no key to fear can make it; and changed states of devices.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, tamper};
use moat_linux::iov::IoBuffer;
use moat_vmm::device::Stream;
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::snapshot::{decode, encode};
use moat_vmm::virtio::block::{Block, BlockOptions, Disk, Done, Operation};
use moat_vmm::virtio::console::{Console, PortOptions};
use moat_vmm::virtio::net::{Link, Net, NetOptions, Offloads};
use moat_vmm::virtio::rng::{Entropy, Rng};
use moat_vmm::virtio::vsock::{Host, HostEvent, StreamId, Vsock};
use sha2::{Digest, Sha256};

/// Every back-end that does nothing.
#[derive(Default)]
struct Nothing(Vec<Done>);

impl Entropy for Nothing {
    fn fill(&mut self, to: &mut [u8]) -> io::Result<()> {
        to.fill(1);
        Ok(())
    }
}

impl Stream for Nothing {
    fn read(&mut self, _to: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }
}

impl Link for Nothing {
    fn receive(&mut self, _to: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, _parts: &[IoBuffer<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Nothing {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn submit(&mut self, tag: u64, _operation: Operation) {
        self.0.push(Done { tag, result: Ok(()) });
    }

    fn commit(&mut self) -> Result<(), moat_linux::Errno> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.0.pop()
    }

    fn wait(&mut self) -> Result<(), moat_linux::Errno> {
        Ok(())
    }
}

impl Host for Nothing {
    fn connect(&mut self, _port: u32) -> io::Result<StreamId> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn next_event(&mut self) -> Option<HostEvent> {
        None
    }

    fn taken(&mut self, _stream: StreamId, _port: u32) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _stream: StreamId, _to: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, _stream: StreamId, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }

    fn finish(&mut self, _stream: StreamId) {}

    fn close(&mut self, _stream: StreamId) {}
}

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
        0 => tamper(script, || Rng::new(Nothing::default(), RateLimit::none())),
        1 => tamper(script, || {
            Block::new(Nothing::default(), BlockOptions { queues: 2, ..Default::default() })
        }),
        2 => tamper(script, || Net::new([Nothing::default(), Nothing::default()], NetOptions::default())),
        3 => tamper(script, || {
            let port = |console| (Nothing::default(), PortOptions { name: "port".to_owned(), console });
            Console::new([port(true), port(false)])
        }),
        4 => tamper(script, || Vsock::new(Nothing::default(), 3)),
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
