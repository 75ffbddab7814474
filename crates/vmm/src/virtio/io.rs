//! What a device sees of its driver during a call.

use super::chain::Chain;
use super::queue::Queue;
use super::{Cause, Fault, Interrupt, Memory};

/// The driver's queues, its memory and the way to interrupt it.
pub struct Io<'a> {
    pub(super) memory: &'a Memory,
    pub(super) queues: &'a mut [Queue],
    pub(super) features: u64,
    pub(super) interrupt: &'a dyn Interrupt,
    pub(super) generation: &'a mut u32,
    /// How many chains may still be taken in this call.
    pub(super) turn: u32,
    /// There is more to do than was done.
    pub(super) again: bool,
}

impl<'a> Io<'a> {
    /// The guest's memory.
    pub fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// What was negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether these features were negotiated.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Whether the driver uses this queue.
    pub fn is_ready(&self, queue: u16) -> bool {
        self.queues.get(usize::from(queue)).is_some_and(Queue::is_ready)
    }

    /// Takes the next chain of a queue; none of one that the driver does not use. After so many that a
    /// driver could keep the device for itself by adding more, there are none until the next call.
    pub fn pop(&mut self, queue: u16) -> Result<Option<Chain>, Fault> {
        let Some(queue) = self.queues.get_mut(usize::from(queue)) else { return Ok(None) };
        let Some(turn) = self.turn.checked_sub(1) else {
            self.again = true;
            return Ok(None);
        };
        let chain = queue.pop(self.memory)?;
        let bytes = chain.as_ref().map_or(0, |chain| chain.readable_bytes() + chain.writable_bytes());
        // A chain is shorter than 4 GiB.
        self.turn = turn.saturating_sub(bytes as u32 / super::TURN_BYTES);
        Ok(chain)
    }

    /// Asks to be called again, as by a timer, as soon as others have had their turn.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Puts the chain that was taken last back into its queue.
    pub fn unpop(&mut self, queue: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.unpop();
        }
    }

    /// Returns a chain, of which the device has written `written` bytes.
    pub fn complete(&mut self, queue: u16, head: u16, written: u32) -> Result<(), Fault> {
        match self.queues.get_mut(usize::from(queue)) {
            Some(queue) => queue.push_all(self.memory, &[(head, written)]),
            None => Ok(()),
        }
    }

    /// Returns several chains, of which the driver sees all or none.
    pub fn complete_all(&mut self, queue: u16, used: &[(u16, u32)]) -> Result<(), Fault> {
        match self.queues.get_mut(usize::from(queue)) {
            Some(queue) => queue.push_all(self.memory, used),
            None => Ok(()),
        }
    }

    /// Interrupts the driver if it wants to hear of what was returned to this queue.
    pub fn signal(&mut self, queue: u16) -> Result<(), Fault> {
        let Some(live) = self.queues.get_mut(usize::from(queue)) else { return Ok(()) };
        if live.wants_interrupt(self.memory)? {
            self.interrupt.signal(Cause::Queue(queue));
        }
        Ok(())
    }

    /// Tells the driver that the configuration space reads otherwise now.
    pub fn config_changed(&mut self) {
        *self.generation = self.generation.wrapping_add(1);
        self.interrupt.signal(Cause::Config);
    }
}
