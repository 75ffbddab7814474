//! The split virtqueue (section 2.7), the device's side.
//!
//! The rings lie in guest memory. What the device must remember stands here: how far it has read the
//! available ring and written the used ring. Indices run freely and wrap at 2^16; an entry's place is the
//! index modulo the size.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::chain::{self, Chain, DESCRIPTOR_BYTES};
use super::{Fault, feature};

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// The settings and positions of a queue, as saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries; a power of two.
    pub size: u16,
    /// The driver has enabled it.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the available ring, which the driver writes.
    pub available: u64,
    /// Of the used ring, which the device writes.
    pub used: u64,
    /// The next entry of the available ring to take.
    pub next_available: u16,
    /// The next entry of the used ring to write.
    pub next_used: u16,
    /// The used index at the last look at whether to interrupt.
    pub signalled: u16,
}

/// A queue.
#[derive(Clone, Debug)]
pub struct Queue {
    index: u16,
    maximum: u16,
    event_idx: bool,
    indirect: bool,
    /// Chains taken and not yet returned.
    in_flight: u16,
    /// Its settings and positions.
    pub(super) state: QueueState,
}

impl Queue {
    /// A queue after reset.
    pub fn new(index: u16, maximum: u16) -> Self {
        let state = QueueState { size: maximum, ..QueueState::default() };
        Self { index, maximum, event_idx: false, indirect: false, in_flight: 0, state }
    }

    /// The largest size that it can have.
    pub fn maximum(&self) -> u16 {
        self.maximum
    }

    /// Whether the driver uses it.
    pub fn is_ready(&self) -> bool {
        self.state.ready
    }

    /// Its settings and positions.
    pub fn state(&self) -> &QueueState {
        &self.state
    }

    /// Checks the settings and takes the queue into service.
    pub fn start(&mut self, memory: &GuestMemoryMmap, features: u64) -> Result<(), Fault> {
        let QueueState { size, ready, .. } = self.state;
        if !ready {
            return Ok(());
        }
        if !size.is_power_of_two() || size > self.maximum {
            return Err(Fault::QueueSize { queue: self.index, size, maximum: self.maximum });
        }
        let entries = u64::from(size);
        // Section 2.7: alignment and size of each part; the rings end with the event index.
        self.check(memory, "descriptor table", self.state.descriptors, 16, entries * DESCRIPTOR_BYTES)?;
        self.check(memory, "available ring", self.state.available, 2, 6 + entries * 2)?;
        self.check(memory, "used ring", self.state.used, 4, 6 + entries * 8)?;
        self.event_idx = features & feature::EVENT_IDX != 0;
        self.indirect = features & feature::INDIRECT_DESC != 0;
        Ok(())
    }

    fn check(
        &self,
        memory: &GuestMemoryMmap,
        part: &'static str,
        address: u64,
        alignment: u64,
        length: u64,
    ) -> Result<(), Fault> {
        if address.is_multiple_of(alignment) && memory.check_range(GuestAddress(address), length as usize) {
            return Ok(());
        }
        Err(Fault::Ring { queue: self.index, part, address, alignment })
    }

    fn lost(&self, part: &'static str, address: u64) -> Fault {
        Fault::Ring { queue: self.index, part, address, alignment: 2 }
    }

    fn load(&self, memory: &GuestMemoryMmap, ring: u64, offset: u64) -> Result<u16, Fault> {
        let lost = self.lost("ring", ring);
        let address = GuestAddress(ring).checked_add(offset).ok_or(lost)?;
        memory.load(address, Ordering::Acquire).map(u16::from_le).map_err(|_| lost)
    }

    fn store(&self, memory: &GuestMemoryMmap, ring: u64, offset: u64, value: u16) -> Result<(), Fault> {
        let lost = self.lost("ring", ring);
        let address = GuestAddress(ring).checked_add(offset).ok_or(lost)?;
        memory.store(value.to_le(), address, Ordering::Release).map_err(|_| lost)
    }

    /// How many chains the driver has made available and the device not taken.
    fn waiting(&self, memory: &GuestMemoryMmap) -> Result<u16, Fault> {
        let index = self.load(memory, self.state.available, 2)?;
        let moved = index.wrapping_sub(self.state.next_available);
        if moved > self.state.size {
            return Err(Fault::AvailableIndex { moved, size: self.state.size });
        }
        Ok(moved)
    }

    /// Takes the next chain. When there is none, the driver is asked to notify of the next one.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Fault> {
        if !self.state.ready {
            return Ok(None);
        }
        if self.waiting(memory)? == 0 && !self.arm(memory)? {
            return Ok(None);
        }
        let QueueState { size, available, descriptors, next_available, .. } = self.state;
        if self.in_flight == size {
            return Err(Fault::InFlight { size });
        }
        let place = u64::from(next_available % size.max(1));
        let head = self.load(memory, available, 4 + place * 2)?;
        let chain = chain::walk(memory, descriptors, size, head, self.indirect)?;
        self.state.next_available = next_available.wrapping_add(1);
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Asks for a notification, and looks again, for a chain may have come meanwhile (section 2.7.10).
    fn arm(&self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        if !self.event_idx {
            // The flag that would suppress notifications is never set.
            return Ok(false);
        }
        let event = 4 + u64::from(self.state.size) * 8;
        self.store(memory, self.state.used, event, self.state.next_available)?;
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? != 0)
    }

    /// Puts the chain that was taken last back.
    pub fn unpop(&mut self) {
        self.state.next_available = self.state.next_available.wrapping_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Returns chains to the driver, each with how many bytes of its device-writable part were written. The
    /// driver sees them when the index moves, that is at once.
    pub fn push_all(&mut self, memory: &GuestMemoryMmap, used: &[(u16, u32)]) -> Result<(), Fault> {
        let QueueState { size, used: ring, .. } = self.state;
        let lost = self.lost("used ring", ring);
        for (head, written) in used {
            self.in_flight = self.in_flight.saturating_sub(1);
            let place = u64::from(self.state.next_used % size.max(1));
            let address = GuestAddress(ring).checked_add(4 + place * 8).ok_or(lost)?;
            let entry = u64::from(*head) | u64::from(*written) << 32;
            memory.write_slice(&entry.to_le_bytes(), address).map_err(|_| lost)?;
            self.state.next_used = self.state.next_used.wrapping_add(1);
        }
        self.store(memory, ring, 2, self.state.next_used)
    }

    /// Whether the driver wants to hear of what was returned since the last call (sections 2.7.7, 2.7.10).
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let QueueState { size, available, next_used, signalled, .. } = self.state;
        if next_used == signalled {
            return Ok(false);
        }
        self.state.signalled = next_used;
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(self.load(memory, available, 0)? & NO_INTERRUPT == 0);
        }
        let event = self.load(memory, available, 4 + u64::from(size) * 2)?;
        let returned = next_used.wrapping_sub(signalled);
        Ok(next_used.wrapping_sub(event).wrapping_sub(1) < returned)
    }

    /// How many chains are taken and not returned.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }
}
