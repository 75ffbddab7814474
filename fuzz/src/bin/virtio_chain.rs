//! Any descriptors: what the walker lets through is in memory, in order, and as long as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_vmm::rate_limit::RateLimitState;
use moat_vmm::virtio::rng::RngState;
use moat_vmm::virtio::{DeviceState, DeviceType, Fault, Io, StateError, VirtioDevice};

fuzz_target!(|bytes: &[u8]| play(Script(bytes), || Copier, |_| ()));

/// Copies what is readable to what is writable, by every way that a chain has.
struct Copier;

impl Copier {
    fn serve(io: &mut Io<'_>) -> Result<(), Fault> {
        for queue in 0..2 {
            while let Some(chain) = io.pop(queue)? {
                let (readable, writable) = (chain.readable_bytes(), chain.writable_bytes());
                let mut all = vec![0; readable];
                assert_eq!(chain.reader(io.memory()).read(&mut all)?, readable);
                let parts = chain.reader(io.memory()).io()?;
                assert_eq!(parts.iter().map(moat_linux::iov::IoBuffer::len).sum::<usize>(), readable);
                let mut reader = chain.reader(io.memory());
                let half = reader.take(readable / 2).expect("half is there");
                let rest = reader.take(readable - readable / 2).expect("and the rest");
                assert!(reader.take(1).is_none() && reader.remaining() == 0);
                let mut again = vec![0; readable];
                half.copy_to(&mut again)?;
                rest.copy_to(&mut again[half.len()..])?;
                assert_eq!(again, all);
                assert_eq!(half.skip(3).len(), half.len().saturating_sub(3));
                let mut writer = chain.writer(io.memory());
                assert_eq!(writer.remaining(), writable);
                assert_eq!(writer.write(&all)?, readable.min(writable));
                let written = writer.written();
                assert_eq!(written as usize + writer.remaining(), writable);
                io.complete(queue, chain.head(), written)?;
            }
            io.signal(queue)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Copier {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 8]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        Self::serve(io)
    }

    fn notify(&mut self, _queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        Self::serve(io)
    }

    fn ready(&mut self, _token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        Self::serve(io)
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState { limit: RateLimitState::default() })
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}
