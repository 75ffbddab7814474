//! The bus: which device answers at which port and which address. Once built it does not change.

use std::sync::{Arc, Mutex};

use crate::device::BusDevice;
use crate::kvm::{Access, Space, VmEntry};
use crate::lock::lock;

/// A device on the bus.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// A range of ports or addresses with a device behind it.
struct Window {
    start: u64,
    size: u64,
    /// Its place in the list of names.
    name: u16,
    device: SharedDevice,
}

/// Where an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The device's place in [`Bus::names`]; `None` when no device is there.
    pub device: Option<u16>,
    /// The register: relative to the device's window, or the address itself.
    pub register: u64,
}

/// All devices by their place.
#[derive(Default)]
pub struct Bus {
    ports: Vec<Window>,
    memory: Vec<Window>,
    names: Vec<String>,
}

impl Bus {
    /// Puts a device on the bus, which was built with ranges that do not overlap.
    pub fn add(&mut self, space: Space, start: u64, size: u64, name: &str, device: SharedDevice) {
        let place = match self.names.iter().position(|known| known == name) {
            Some(place) => place,
            None => {
                self.names.push(name.to_owned());
                self.names.len() - 1
            }
        };
        let window = Window { start, size, name: place as u16, device };
        let windows = match space {
            Space::Port => &mut self.ports,
            Space::Memory => &mut self.memory,
        };
        let at = windows.partition_point(|other| other.start < start);
        windows.insert(at, window);
    }

    /// The names of the devices.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Performs an access. Where no device is, a read gives ones and a write goes nowhere, as on hardware.
    pub fn access(&self, space: Space, address: u64, size: u8, access: Access) -> (VmEntry, Target) {
        let windows = match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        };
        let after = windows.partition_point(|window| window.start <= address);
        let window = after.checked_sub(1).and_then(|place| windows.get(place));
        let found = window.filter(|window| address - window.start < window.size);
        let size = usize::from(size.min(8));
        let Some(window) = found else {
            let target = Target { device: None, register: address };
            return (answer(access, u64::MAX), target);
        };
        let offset = address - window.start;
        let target = Target { device: Some(window.name), register: offset };
        let mut device = lock(&window.device);
        match access {
            Access::Read => {
                let mut bytes = [0; 8];
                if let Some(data) = bytes.get_mut(..size) {
                    device.read(offset, data);
                }
                (VmEntry::Value(u64::from_le_bytes(bytes)), target)
            }
            Access::Write(value) => {
                if let Some(data) = value.to_le_bytes().get(..size) {
                    device.write(offset, data);
                }
                (VmEntry::Resume, target)
            }
        }
    }
}

fn answer(access: Access, value: u64) -> VmEntry {
    match access {
        Access::Read => VmEntry::Value(value),
        Access::Write(_) => VmEntry::Resume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as its offset, remembers the last write.
    struct Echo(Option<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = Some((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_whose_window_it_starts_in() {
        let mut bus = Bus::default();
        let echo = Arc::new(Mutex::new(Echo(None)));
        bus.add(Space::Port, 0x10, 4, "echo", echo.clone());
        bus.add(Space::Port, 0x8, 2, "other", Arc::new(Mutex::new(Echo(None))));
        let (entry, target) = bus.access(Space::Port, 0x13, 1, Access::Read);
        assert_eq!((entry, target), (VmEntry::Value(3), Target { device: Some(0), register: 3 }));
        let (entry, _) = bus.access(Space::Port, 0x10, 2, Access::Write(0xabcd));
        assert_eq!(entry, VmEntry::Resume);
        assert_eq!(lock(&echo).0, Some((0, vec![0xcd, 0xab])));
        for free in [0x7, 0xa, 0xf, 0x14] {
            let (entry, target) = bus.access(Space::Port, free, 1, Access::Read);
            assert_eq!((entry, target.device), (VmEntry::Value(u64::MAX), None), "{free:#x}");
        }
        let (entry, _) = bus.access(Space::Memory, 0x10, 4, Access::Read);
        assert_eq!(entry, VmEntry::Value(u64::MAX));
    }
}
