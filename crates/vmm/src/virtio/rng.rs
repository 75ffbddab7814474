//! The entropy source (section 5.4): random bytes for whoever asks.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{DeviceState, DeviceType, Fault, Io, StateError, VirtioDevice};
use crate::rate_limit::{RateLimit, RateLimitState};

const QUEUE: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request gets; a driver that wants more asks again.
const MOST_BYTES: usize = 4096;

/// Where random bytes come from.
pub trait Entropy: Send {
    /// Fills `to`, whatever it costs.
    fn fill(&mut self, to: &mut [u8]) -> std::io::Result<()>;
}

/// What survives a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// The budget.
    pub limit: RateLimitState,
}

/// The device.
pub struct Rng<E> {
    source: E,
    limit: RateLimit,
}

impl<E: Entropy> Rng<E> {
    /// A device over `source` that gives no more than `limit` allows.
    pub fn new(source: E, limit: RateLimit) -> Self {
        Self { source, limit }
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut bytes = [0; MOST_BYTES];
        let now = Instant::now();
        while let Some(chain) = io.pop(QUEUE)? {
            let length = chain.writable_bytes().min(MOST_BYTES);
            if !self.limit.take(now, length as u64) {
                io.unpop(QUEUE);
                break;
            }
            // Section 5.4.6.1: at least one byte, or a driver would wait for ever; an unreadable source is
            // one that the driver must not take for random.
            if self.source.fill(&mut bytes[..length]).is_err() {
                return Err(Fault::Protocol("the host has no random bytes"));
            }
            let mut writer = chain.writer(io.memory());
            writer.write(&bytes[..length])?;
            let written = writer.written();
            io.complete(QUEUE, chain.head(), written)?;
        }
        io.signal(QUEUE)
    }
}

impl<E: Entropy> VirtioDevice for Rng<E> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve(io)
    }

    fn notify(&mut self, _queue: u16, io: &mut Io<'_>) -> Result<(), Fault> {
        self.serve(io)
    }

    fn ready(&mut self, _token: u64, io: &mut Io<'_>) -> Result<(), Fault> {
        self.limit.wake_no_more();
        self.serve(io)
    }

    fn wake_at(&self) -> Option<Instant> {
        self.limit.wake_at()
    }

    fn reset(&mut self) {
        self.limit.wake_no_more();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState { limit: self.limit.save() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Rng(state) = state else { return Err(StateError::Type(self.device_type())) };
        self.limit.restore(&state.limit);
        Ok(())
    }
}
