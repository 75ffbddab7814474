//! Selectors and indices beyond their tables: every offset and width, read and written, with every selector.

use moat_vmm::device::BusDevice;
use moat_vmm::virtio::mmio::{WINDOW_BYTES, register};

use super::devices;
use super::driver::Guest;

#[test]
fn a_selector_beyond_the_queues_selects_nothing() {
    for device in devices::all() {
        let mut guest = Guest::new(device);
        let features = guest.offered();
        assert!(guest.negotiate(features));
        let count = guest.transport.lifecycle().queue_count() as u32;
        for select in
            [count, count + 1, 0xff, 0x100, 0xffff, 0x1_0000, 0x1_0000 + count - 1, 1 << 31, u32::MAX]
        {
            guest.write(register::QUEUE_SEL, select);
            for offset in (0x30..0xb0).step_by(4).filter(|offset| *offset != register::QUEUE_SEL) {
                if offset != register::STATUS {
                    guest.write(offset, 1);
                }
            }
            assert_eq!((guest.read(register::QUEUE_NUM_MAX), guest.read(register::QUEUE_READY)), (0, 0));
            for queue in 0..count {
                let queue = guest.transport.lifecycle().queue(queue).unwrap();
                assert!(!queue.is_ready() && queue.state().descriptors == 0);
            }
            guest.write(register::QUEUE_NOTIFY, select);
        }
    }
}

#[test]
fn no_access_panics() {
    for device in devices::all() {
        let mut guest = Guest::new(device);
        for live in [false, true] {
            if live {
                let features = guest.offered();
                guest.start(features);
            }
            let count = guest.transport.lifecycle().queue_count() as u32;
            for select in [0, 1, count, u32::MAX] {
                for offset in (0..WINDOW_BYTES).chain([u64::MAX - 8, u64::MAX]) {
                    if live && offset >= 0x180 {
                        break;
                    }
                    for width in [0, 1, 2, 3, 4, 7, 8, 9] {
                        if offset / 4 * 4 != register::STATUS {
                            guest.transport.write(offset, &select.to_le_bytes().repeat(3)[..width]);
                        }
                        let mut data = [0xaa; 9];
                        guest.transport.read(offset, &mut data[..width]);
                        assert!(data[width..].iter().all(|byte| *byte == 0xaa));
                    }
                    guest.write(register::QUEUE_SEL, select);
                    guest.write(register::DEVICE_FEATURES_SEL, select);
                    guest.write(register::DRIVER_FEATURES_SEL, select);
                }
            }
        }
    }
}
