//! Queue registers that are written after the device has taken them into service.
//!
//! Precedent: CVE-2026-5747, where a queue's size and addresses, changed after activation, led a device
//! beyond what had been checked. Here every register is written at every width in every status, and the
//! queue of a live device stays as it was.

use moat_vmm::device::BusDevice;
use moat_vmm::virtio::lifecycle::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use moat_vmm::virtio::mmio::register;
use moat_vmm::virtio::queue::QueueState;
use moat_vmm::virtio::{VirtioDevice, feature};

use super::devices;
use super::driver::{BUFFERS, Guest, writable};

/// All but QueueReady and Status, by which the driver may stop a queue or the device.
fn registers() -> impl Iterator<Item = u64> {
    (0..0x110).filter(|offset| *offset != register::QUEUE_READY && *offset != register::STATUS)
}

const VALUES: [u64; 6] = [0, 1, 2, 0x8000, 0xdead_beef, u64::MAX];

fn queues(guest: &Guest<Box<dyn VirtioDevice>>) -> Vec<QueueState> {
    (0..).map_while(|queue| guest.transport.lifecycle().queue(queue).map(|queue| *queue.state())).collect()
}

fn write_everything(guest: &mut Guest<Box<dyn VirtioDevice>>) {
    let count = guest.transport.lifecycle().queue_count() as u32;
    for queue in 0..count {
        for offset in registers() {
            for width in [1, 2, 4, 8] {
                for value in VALUES {
                    guest.write(register::QUEUE_SEL, queue);
                    guest.transport.write(offset, &value.to_le_bytes()[..width]);
                }
            }
        }
        // Settings are frozen while the queue is not ready, too.
        guest.write(register::QUEUE_SEL, queue);
        for value in [1, 3, u32::MAX] {
            guest.write(register::QUEUE_READY, value);
        }
    }
}

#[test]
fn a_live_queue_does_not_change() {
    for device in devices::all() {
        let mut guest = Guest::new(device);
        let features = guest.offered();
        guest.start(features);
        let (before, features) = (queues(&guest), guest.transport.lifecycle().features());
        write_everything(&mut guest);
        // The notifications among the writes found nothing to do.
        assert_eq!(queues(&guest), before);
        assert_eq!(guest.transport.lifecycle().features(), features);
        assert!(!guest.needs_reset());
    }
}

#[test]
fn a_stopped_queue_does_not_change() {
    let mut guest = Guest::started(devices::all().remove(3), 0);
    guest.write(register::QUEUE_SEL, 0);
    guest.write(register::QUEUE_READY, 0);
    let before = queues(&guest);
    write_everything(&mut guest);
    assert_eq!(queues(&guest), before);
    guest.chain(0, &[writable(BUFFERS, 8)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), []);
}

#[test]
fn settings_are_taken_in_one_status_only() {
    let steps = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK];
    let right = steps[3];
    let wrong = [right | DRIVER_OK, right | FAILED, FAILED, right | DRIVER_OK | FAILED];
    for status in steps.into_iter().chain(wrong) {
        let mut guest = Guest::new(devices::all().remove(3));
        for step in [ACKNOWLEDGE, DRIVER] {
            if status & step != 0 {
                let now = guest.status();
                guest.set_status(now | step);
            }
        }
        guest.accept(feature::VERSION_1);
        guest.set_status(status & !FAILED);
        guest.set_status(status);
        assert_eq!(guest.status(), status);
        let before = queues(&guest);
        write_everything(&mut guest);
        assert_eq!(queues(&guest) != before, status == right, "{status:#x}");
    }
}
