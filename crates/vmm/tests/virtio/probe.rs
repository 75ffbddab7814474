//! A device that does next to nothing and remembers what it was told.

use std::sync::{Arc, Mutex};

use moat_vmm::rate_limit::RateLimitState;
use moat_vmm::virtio::rng::RngState;
use moat_vmm::virtio::{DeviceState, DeviceType, Fault, Io, StateError, VirtioDevice};

/// What the device was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Activate,
    Notify(u16),
    Ready(u64),
    Drain,
    Reset,
    Config(u64, Vec<u8>),
}

/// Returns each chain with 0 bytes written. One feature, bit 3, which needs another, bit 4.
pub(crate) struct Probe {
    pub(crate) told: Arc<Mutex<Vec<Told>>>,
    pub(crate) signal: bool,
}

pub(crate) const SIZES: [u16; 3] = [8, 16, 256];
pub(crate) const FEATURES: u64 = 0b11000;

impl Probe {
    pub(crate) fn new() -> Self {
        Self { told: Arc::default(), signal: true }
    }

    fn note(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }

    fn serve(&self, io: &mut Io<'_>) -> Result<(), Fault> {
        for queue in 0..SIZES.len() as u16 {
            while let Some(chain) = io.pop(queue)? {
                io.complete(queue, chain.head(), 0)?;
            }
            if self.signal {
                io.signal(queue)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn accepts(&self, features: u64) -> bool {
        features & 8 == 0 || features & 16 != 0
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.note(Told::Config(offset, data.to_vec()));
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.note(Told::Activate);
        self.serve(io)
    }

    fn notify(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        self.note(Told::Notify(queue));
        self.serve(io)
    }

    fn ready(&mut self, token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        self.note(Told::Ready(token));
        if token == 7 {
            io.config_changed();
        }
        self.serve(io)
    }

    fn drain(&mut self, _io: &mut Io<'_>) -> Result<(), Fault> {
        self.note(Told::Drain);
        Ok(())
    }

    fn reset(&mut self) {
        self.note(Told::Reset);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState { limit: RateLimitState::default() })
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}
