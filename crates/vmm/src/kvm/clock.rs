//! The VM's clock, as it is saved.

use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};

use super::{Named, Vm};
use crate::Result;

/// What the guest's kvmclock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds since the VM was made, less the time it was paused.
    pub clock_ns: u64,
}

impl Vm {
    /// Reads the clock.
    pub fn save_clock(&self) -> Result<ClockState> {
        Ok(ClockState { clock_ns: self.fd.get_clock().named("KVM_GET_CLOCK")?.clock })
    }

    /// Sets the clock: the guest goes on as if no time had passed.
    pub fn restore_clock(&self, state: ClockState) -> Result<()> {
        let data = kvm_clock_data { clock: state.clock_ns, ..kvm_clock_data::default() };
        self.fd.set_clock(&data).named("KVM_SET_CLOCK")
    }
}
