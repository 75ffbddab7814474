//! The registers of the MMIO transport and the status machine behind them.

use moat_vmm::device::BusDevice;
use moat_vmm::virtio::lifecycle::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use moat_vmm::virtio::mmio::{CONFIG_CHANGE, USED_BUFFER, register};
use moat_vmm::virtio::{Fault, TIMER, VirtioDevice, feature};

use super::driver::{Guest, MEMORY_BYTES, available, descriptors, used};
use super::probe::{FEATURES, Probe, SIZES, Told};

const ALL: u64 = FEATURES | feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;
const NEGOTIATED: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

fn told(guest: &Guest<Probe>) -> Vec<Told> {
    std::mem::take(&mut *guest.transport.lifecycle().device().told.lock().unwrap())
}

/// Section 4.2.2: magic, version, device type; 4.2.2.1.
#[test]
fn the_device_says_what_it_is() {
    let mut guest = Guest::new(Probe::new());
    assert_eq!(guest.read(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(guest.read(register::VERSION), 2);
    assert_eq!(guest.read(register::DEVICE_ID), 4);
    assert_ne!(guest.read(register::VENDOR_ID), 0);
}

/// Section 4.2.2.2: control registers are accessed with aligned 32 bits. Anything else is none.
#[test]
fn other_widths_and_places_reach_no_control_register() {
    let mut guest = Guest::started(Probe::new(), 0);
    for offset in 0..register::CONFIG {
        for width in [0, 1, 2, 3, 5, 8, 16] {
            let mut data = vec![0xaa; width];
            guest.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{offset:#x} {width}");
            guest.transport.write(offset, &vec![0; width]);
        }
        if offset % 4 != 0 {
            assert_eq!(guest.read(offset), 0, "{offset:#x}");
            guest.write(offset, 0);
        }
    }
    assert_eq!(guest.status(), NEGOTIATED | DRIVER_OK);
}

/// Section 4.2.2: features are read by words, and words beyond the second are zero.
#[test]
fn features_are_offered_by_words() {
    let mut guest = Guest::new(Probe::new());
    assert_eq!(guest.offered(), ALL);
    for word in [2, 3, u32::MAX] {
        guest.write(register::DEVICE_FEATURES_SEL, word);
        assert_eq!(guest.read(register::DEVICE_FEATURES), 0);
    }
}

/// Section 2.2.2 and 3.1.1: FEATURES_OK stays clear for what was not offered or does not go together, and
/// 6.2 without VERSION_1. The driver may then try again after a reset.
#[test]
fn features_that_can_not_be_are_not_ok() {
    let mut guest = Guest::new(Probe::new());
    for bad in [feature::VERSION_1 | 1, feature::VERSION_1 | 1 << 63, FEATURES, 0, feature::VERSION_1 | 8] {
        assert!(!guest.negotiate(bad), "{bad:#x}");
        assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
        // Nor does DRIVER_OK follow.
        guest.set_status(NEGOTIATED | DRIVER_OK);
        assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
    }
    for good in [feature::VERSION_1, feature::VERSION_1 | 16, ALL] {
        assert!(guest.negotiate(good), "{good:#x}");
    }
    assert!(told(&guest).iter().all(|told| *told == Told::Reset));
}

/// Section 2.2 (2.2.1, 3.1.1): features are fixed once FEATURES_OK is set.
#[test]
fn features_are_fixed_by_features_ok() {
    let mut guest = Guest::new(Probe::new());
    assert!(guest.negotiate(feature::VERSION_1));
    guest.accept(u64::MAX);
    assert_eq!(guest.transport.lifecycle().features(), feature::VERSION_1);
    let status = guest.status();
    guest.set_status(status | DRIVER_OK);
    guest.accept(0);
    assert_eq!(guest.transport.lifecycle().features(), feature::VERSION_1);
}

/// Section 2.1 and 3.1.1: the steps have an order, and a step may be written together with earlier ones.
#[test]
fn steps_are_taken_in_their_order() {
    for (written, got) in [
        (DRIVER, 0),
        (FEATURES_OK, 0),
        (DRIVER_OK, 0),
        (ACKNOWLEDGE | DRIVER_OK, ACKNOWLEDGE),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER),
        (NEEDS_RESET, 0),
        (ACKNOWLEDGE | NEEDS_RESET, ACKNOWLEDGE),
        (FAILED, FAILED),
    ] {
        let mut guest = Guest::new(Probe::new());
        guest.set_status(written);
        assert_eq!(guest.status(), got, "{written:#x}");
    }
}

/// Section 2.1.1: the driver clears no bit; what tries is ignored.
#[test]
fn no_bit_is_cleared_but_by_reset() {
    let mut guest = Guest::started(Probe::new(), 0);
    let full = NEGOTIATED | DRIVER_OK;
    for value in 1..=u8::MAX {
        if value & full != full {
            guest.set_status(value);
            assert_eq!(guest.status(), full, "{value:#x}");
        }
    }
    for value in [0x100, 0xffff_ff00, 0x10f] {
        guest.write(register::STATUS, value);
        assert_eq!(guest.status(), full);
    }
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

/// Section 2.1: after FAILED nothing is served until a reset.
#[test]
fn a_driver_that_has_given_up_is_not_served() {
    let mut guest = Guest::started(Probe::new(), 0);
    told(&guest);
    let status = guest.status();
    guest.set_status(status | FAILED);
    guest.notify(0);
    guest.transport.ready(0);
    assert_eq!(told(&guest), []);
    guest.start(feature::VERSION_1);
    assert_eq!(told(&guest), [Told::Drain, Told::Reset, Told::Activate]);
}

/// Section 2.1.2: no buffers are consumed, and nothing is notified of, before DRIVER_OK.
#[test]
fn nothing_happens_before_driver_ok() {
    let mut guest = Guest::new(Probe::new());
    assert!(guest.negotiate(feature::VERSION_1));
    guest.set_queue(0, 8);
    guest.chain(0, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    guest.notify(0);
    guest.transport.ready(0);
    guest.transport.lifecycle_mut().config_changed();
    assert_eq!((guest.take_used(0), guest.line.take()), (vec![], 0));
    assert_eq!(told(&guest), [Told::Reset]);
    let status = guest.status();
    guest.set_status(status | DRIVER_OK);
    assert_eq!(guest.take_used(0).len(), 1);
    assert_eq!(told(&guest), [Told::Activate]);
}

/// Sections 2.1.2 and 2.4.1, 4.2.2.1: a reset makes the status 0, disables all queues, clears
/// InterruptStatus and all settings.
#[test]
fn a_reset_leaves_nothing() {
    let mut guest = Guest::started(Probe::new(), FEATURES);
    guest.chain(0, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    guest.notify(0);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), USED_BUFFER);
    guest.write(register::STATUS, 0);
    assert_eq!((guest.status(), guest.read(register::INTERRUPT_STATUS)), (0, 0));
    for queue in 0..SIZES.len() as u32 {
        guest.write(register::QUEUE_SEL, queue);
        assert_eq!(guest.read(register::QUEUE_READY), 0);
        let state = *guest.transport.lifecycle().queue(queue).unwrap().state();
        assert_eq!((state.descriptors, state.next_available, state.next_used), (0, 0, 0));
    }
    assert_eq!(guest.transport.lifecycle().features(), 0);
    guest.notify(0);
    assert_eq!(told(&guest).last(), Some(&Told::Reset));
}

/// Section 4.2.2: QueueNumMax is the largest size, 0 for a queue that does not exist.
#[test]
fn queues_say_how_large_they_can_be() {
    let mut guest = Guest::new(Probe::new());
    for (queue, size) in SIZES.into_iter().enumerate() {
        guest.write(register::QUEUE_SEL, queue as u32);
        assert_eq!(guest.read(register::QUEUE_NUM_MAX), u32::from(size));
        assert!(size.is_power_of_two());
    }
    guest.write(register::QUEUE_SEL, SIZES.len() as u32);
    assert_eq!(guest.read(register::QUEUE_NUM_MAX), 0);
}

/// Section 4.2.2.2: a queue in use is not changed; one that is not ready is.
#[test]
fn a_ready_queue_keeps_its_settings() {
    let mut guest = Guest::new(Probe::new());
    assert!(guest.negotiate(feature::VERSION_1));
    guest.set_queue(1, 16);
    let before = *guest.transport.lifecycle().queue(1).unwrap().state();
    guest.write(register::QUEUE_NUM, 4);
    guest.set_address(register::QUEUE_DESC_LOW, 0x5000);
    assert_eq!(*guest.transport.lifecycle().queue(1).unwrap().state(), before);
    guest.write(register::QUEUE_READY, 0);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
    guest.write(register::QUEUE_NUM, 4);
    assert_eq!(guest.transport.lifecycle().queue(1).unwrap().state().size, 4);
}

/// Section 4.2.3.2 (2.7): a size that is no power of two or too large, and rings that are not aligned or not
/// in memory, never get into service.
#[test]
fn a_queue_that_can_not_be_needs_a_reset() {
    let size = |size: u32| (register::QUEUE_NUM, size, 0);
    let desc = |address: u64| (register::QUEUE_DESC_LOW, address as u32, (address >> 32) as u32);
    let driver = |address: u64| (register::QUEUE_DRIVER_LOW, address as u32, (address >> 32) as u32);
    let device = |address: u64| (register::QUEUE_DEVICE_LOW, address as u32, (address >> 32) as u32);
    let bad = [
        size(0),
        size(3),
        size(16),
        size(0x1_0008),
        size(u32::MAX),
        desc(descriptors(0) + 8),
        desc(MEMORY_BYTES - 16),
        desc(u64::MAX - 15),
        driver(available(0) + 1),
        driver(MEMORY_BYTES - 2),
        driver(1 << 63),
        device(used(0) + 2),
        device(MEMORY_BYTES - 4),
    ];
    for (register, low, high) in bad {
        let mut guest = Guest::new(Probe::new());
        assert!(guest.negotiate(feature::VERSION_1));
        guest.set_queue(0, 8);
        guest.write(register::QUEUE_READY, 0);
        guest.write(register, low);
        if register != register::QUEUE_NUM {
            guest.write(register + 4, high);
        }
        guest.write(register::QUEUE_READY, 1);
        guest.set_status(NEGOTIATED | DRIVER_OK);
        assert!(guest.needs_reset(), "{register:#x} {high:#x} {low:#x}");
        assert!(matches!(guest.transport.take_fault(), Some(Fault::Ring { .. } | Fault::QueueSize { .. })));
        assert!(!told(&guest).contains(&Told::Activate));
        // A reset helps.
        guest.start(feature::VERSION_1);
        assert!(!guest.needs_reset());
    }
}

/// Section 4.2.2.2: the driver stops a queue by QueueReady = 0; then nothing of it is used any more.
#[test]
fn a_stopped_queue_is_served_no_more() {
    let mut guest = Guest::started(Probe::new(), 0);
    guest.chain(0, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    guest.write(register::QUEUE_SEL, 0);
    guest.write(register::QUEUE_READY, 0);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
    told(&guest);
    guest.notify(0);
    guest.notify(1);
    guest.write(register::QUEUE_SEL, 0);
    guest.write(register::QUEUE_READY, 1);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
    guest.notify(0);
    assert_eq!(told(&guest), [Told::Notify(1)]);
    assert_eq!(guest.take_used(0), []);
}

/// Section 2.1.2: in error the device sets DEVICE_NEEDS_RESET and, after DRIVER_OK, interrupts.
#[test]
fn a_fault_is_told_and_ends_the_service() {
    let mut guest = Guest::started(Probe::new(), 0);
    guest.offer(0, 8);
    guest.notify(0);
    assert!(guest.needs_reset());
    assert_eq!(guest.line.take(), 1);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_eq!(guest.transport.take_fault(), Some(Fault::DescriptorIndex { index: 8, size: 8 }));
    told(&guest);
    guest.notify(1);
    guest.transport.ready(1);
    assert_eq!(told(&guest), []);
    // Only a reset helps.
    guest.set_status(NEGOTIATED | DRIVER_OK);
    assert!(guest.needs_reset());
    guest.start(feature::VERSION_1);
    guest.notify(1);
    assert_eq!(told(&guest), [Told::Drain, Told::Reset, Told::Activate, Told::Notify(1)]);
}

/// Section 4.2.2: InterruptACK clears the bits that are written, and no others.
#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut guest = Guest::started(Probe::new(), 0);
    guest.chain(0, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    guest.notify(0);
    guest.transport.ready(7);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), USED_BUFFER | CONFIG_CHANGE);
    guest.write(register::INTERRUPT_ACK, USED_BUFFER);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), CONFIG_CHANGE);
    guest.write(register::INTERRUPT_ACK, u32::MAX);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), 0);
}

/// Sections 2.5.2 and 4.2.2.1: ConfigGeneration changes when the configuration does.
#[test]
fn the_generation_counts_changes_of_the_configuration() {
    let mut guest = Guest::started(Probe::new(), 0);
    let before = guest.read(register::CONFIG_GENERATION);
    guest.notify(0);
    assert_eq!(guest.read(register::CONFIG_GENERATION), before);
    guest.transport.ready(7);
    assert_ne!(guest.read(register::CONFIG_GENERATION), before);
    assert_eq!(guest.line.take(), 1);
}

/// Section 4.2.2.2: the configuration space takes all widths; 2.5.1: it can be read before FEATURES_OK.
#[test]
fn the_configuration_space_takes_all_widths() {
    let mut guest = Guest::new(Probe::new());
    for width in [1, 2, 4, 8] {
        let mut data = vec![0; width];
        guest.transport.read(register::CONFIG + 5, &mut data);
        assert_eq!(data, vec![5; width]);
        guest.transport.write(register::CONFIG + 3, &data);
    }
    assert_eq!(told(&guest), [], "written before there was a driver");
    guest.set_status(ACKNOWLEDGE);
    guest.set_status(ACKNOWLEDGE | DRIVER);
    guest.transport.write(register::CONFIG + 3, &[1, 2]);
    assert_eq!(told(&guest), [Told::Config(3, vec![1, 2])]);
}

/// Section 4.2.2: a shared memory region that does not exist has length and base -1.
#[test]
fn there_is_no_shared_memory() {
    let mut guest = Guest::new(Probe::new());
    for select in [0, 1, u32::MAX] {
        guest.write(0xac, select);
        for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(guest.read(offset), u32::MAX);
        }
    }
}

/// Section 4.2.2: QueueReset exists only with VIRTIO_F_RING_RESET, which is not offered (6).
#[test]
fn a_queue_can_not_be_reset_alone() {
    let mut guest = Guest::started(Probe::new(), 0);
    assert_eq!(guest.offered() >> 40 & 1, 0);
    guest.write(register::QUEUE_SEL, 0);
    guest.write(0xc0, 1);
    assert_eq!((guest.read(0xc0), guest.read(register::QUEUE_READY)), (0, 1));
}

/// A driver that adds chains as fast as they are taken does not keep the device for itself.
#[test]
fn a_device_stops_for_others_and_goes_on() {
    let mut guest = Guest::started(Probe::new(), 0);
    guest.write_descriptor(descriptors(2), 0, super::driver::BUFFERS, 1, 0, 0);
    let mut total = 0;
    for _ in 0..20 {
        for _ in 0..256 {
            guest.offer(2, 0);
        }
        guest.transport.ready(TIMER);
        total += guest.take_used(2).len();
        if let Some(at) = guest.transport.wake_at() {
            assert!(at <= std::time::Instant::now());
        }
    }
    assert_eq!(total, 20 * 256);
    assert!(guest.transport.wake_at().is_none());
}

/// A saved device goes on where it was, and what does not fit is refused.
#[test]
fn a_saved_transport_goes_on() {
    let mut guest = Guest::started(Probe::new(), FEATURES);
    guest.chain(1, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    guest.notify(1);
    let state = guest.transport.save();
    let bytes = postcard::to_allocvec(&state).unwrap();
    let mut other = Guest::with_memory(Probe::new(), guest.memory.clone());
    other.transport.restore(&postcard::from_bytes(&bytes).unwrap()).unwrap();
    assert_eq!(other.status(), NEGOTIATED | DRIVER_OK);
    assert_eq!(other.read(register::INTERRUPT_STATUS), USED_BUFFER);
    assert_eq!(other.transport.save(), state);
    // A chain that came meanwhile is served without another notification.
    guest.chain(1, &[super::driver::readable(super::driver::BUFFERS, 1)]);
    other.transport.resume();
    assert_eq!(guest.take_used(1).len(), 2);
    let mut smaller = Guest::with_memory(Fewer(Probe::new()), guest.memory.clone());
    assert!(smaller.transport.restore(&state).is_err());
}

/// As the probe, with one queue less.
struct Fewer(Probe);

impl VirtioDevice for Fewer {
    fn device_type(&self) -> moat_vmm::virtio::DeviceType {
        self.0.device_type()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES[..2]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }
    fn activate(&mut self, io: &mut moat_vmm::virtio::Io<'_>) -> Result<(), Fault> {
        self.0.activate(io)
    }
    fn notify(&mut self, queue: u16, io: &mut moat_vmm::virtio::Io<'_>) -> Result<(), Fault> {
        self.0.notify(queue, io)
    }
    fn ready(&mut self, token: u64, io: &mut moat_vmm::virtio::Io<'_>) -> Result<(), Fault> {
        self.0.ready(token, io)
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn save(&self) -> moat_vmm::virtio::DeviceState {
        self.0.save()
    }
    fn restore(&mut self, state: &moat_vmm::virtio::DeviceState) -> Result<(), moat_vmm::virtio::StateError> {
        self.0.restore(state)
    }
}
