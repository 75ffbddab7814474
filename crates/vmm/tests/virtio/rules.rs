//! Rules that hold for every device, held against one of each; and the list of all rules of the text that a device
//! can break, with the tests that hold them.

use moat_vmm::virtio::lifecycle::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use moat_vmm::virtio::mmio::register;
use moat_vmm::virtio::{DeviceType, VirtioDevice, feature};

use super::devices;
use super::driver::{BUFFERS, Guest, readable, writable};

/// What the text asks of a device: the section, the rule, a test. What concerns features that are not offered
/// (packed rings, in-order use, notification data, the reset of one queue, shared memory, legacy interfaces) is
/// not here: it is no rule for these devices.
const RULES: &[(&str, &str, &str)] = &[
    (
        "2.1.2",
        "consumes no buffers and sends no notification before DRIVER_OK",
        "no_device_serves_before_driver_ok",
    ),
    ("2.1.2", "sets DEVICE_NEEDS_RESET in error, and tells of it", "a_fault_is_told_and_ends_the_service"),
    ("2.2.2", "offers no feature without those that it needs", "each_device_takes_all_that_it_offers"),
    ("2.2.2", "takes a subset, or leaves FEATURES_OK clear", "features_that_can_not_be_are_not_ok"),
    ("2.2.2", "takes again after a reset what it has taken before", "each_device_takes_all_that_it_offers"),
    ("2.4.1", "has status 0 after a reset", "a_reset_leaves_nothing"),
    (
        "2.5.2",
        "lets its configuration be read before FEATURES_OK",
        "the_configuration_is_read_before_features_ok",
    ),
    (
        "2.5.2",
        "changes the generation with the configuration",
        "the_generation_counts_changes_of_the_configuration",
    ),
    ("2.7.4.2", "makes no assumption on how a request is spread", "the_framing_of_a_request_means_nothing"),
    ("2.7.5.1", "writes to no device-readable buffer", "a_readable_buffer_is_not_written"),
    ("2.7.5.3.2", "ignores the write-only flag of an indirect table", "an_indirect_table_is_followed"),
    ("2.7.5.3.2", "takes direct descriptors before an indirect one", "an_indirect_table_is_followed"),
    ("2.7.7.2", "interrupts by the flag, or by used_event", "an_index_says_when_to_interrupt"),
    ("2.7.8.2", "writes no less than the used length says", "the_used_length_is_what_was_written"),
    ("2.7.10.1", "asks for notifications by avail_event", "the_device_asks_for_the_next_notification"),
    ("4.2.2.1", "says what it is", "the_device_says_what_it_is"),
    ("4.2.2.1", "clears InterruptStatus and QueueReady in a reset", "a_reset_leaves_nothing"),
    ("4.2.2.1", "touches no queue whose QueueReady is 0", "a_stopped_queue_is_served_no_more"),
    ("4.2.2.1", "tells each event by its bit", "interrupts_are_acknowledged_bit_by_bit"),
    ("5.1.4.1", "tells how many pairs of queues there are", "the_configuration_has_address_and_mtu"),
    ("5.1.6.4.1", "says over how many buffers a packet is spread", "a_large_packet_is_spread"),
    ("5.1.6.4.1", "gives a packet one buffer without merging", "packets_are_received"),
    (
        "5.1.6.4.2",
        "hands on no packet with an offload that was not taken",
        "offloads_are_those_that_were_negotiated",
    ),
    ("5.1.6.5", "refuses commands that it does not know", "queue_pairs_are_used_when_asked"),
    (
        "5.1.6.5.5.1",
        "uses the pairs that the driver asked for, and no others",
        "queue_pairs_are_used_when_asked",
    ),
    ("5.2.6.2", "fails a write to a read-only device", "a_read_only_disk_is_not_written"),
    ("5.2.6.2", "fails what reaches beyond the end", "what_is_not_there_is_an_error"),
    ("5.2.6.2", "makes durable by a flush, or at once without it", "a_flush_is_known_when_negotiated"),
    ("5.2.6.2", "refuses unknown flags of discard and write-zeroes", "ranges_are_discarded_and_zeroed"),
    ("5.3.6.2", "adds ports when the driver is ready", "ports_are_told_of"),
    ("5.4.6.2", "puts at least one random byte into a buffer", "requests_get_random_bytes"),
    ("5.10.6.1", "keeps serving when answers have no room", "answers_that_are_not_taken_are_bounded"),
    ("5.10.6.3.2", "sends no more than the peer has room for", "credit_bounds_what_the_guest_is_sent"),
    ("5.10.6.4.2", "resets unknown types", "what_makes_no_sense_is_reset"),
    ("5.10.6.5.1", "tells by reset what it refuses", "a_refused_connection_is_reset"),
    ("6.2", "takes no driver without VERSION_1", "features_that_can_not_be_are_not_ok"),
    ("6.3", "offers VERSION_1, and no reserved bit", "no_reserved_feature_is_offered"),
];

const SOURCES: [&str; 8] = [
    include_str!("block.rs"),
    include_str!("console.rs"),
    include_str!("net.rs"),
    include_str!("registers.rs"),
    include_str!("rings.rs"),
    include_str!("rng.rs"),
    include_str!("rules.rs"),
    include_str!("vsock.rs"),
];

#[test]
fn each_rule_has_its_test() {
    for (section, rule, test) in RULES {
        let found = SOURCES.iter().any(|source| source.contains(&format!("fn {test}()")));
        assert!(found, "section {section}, a device {rule}: there is no test {test}");
    }
}

fn each(what: impl Fn(DeviceType, Guest<Box<dyn VirtioDevice>>)) {
    for device in devices::all() {
        what(device.device_type(), Guest::new(device));
    }
}

/// Section 2.2.2: all that is offered goes together, and goes together again after a reset.
#[test]
fn each_device_takes_all_that_it_offers() {
    each(|kind, mut guest| {
        let offered = guest.offered();
        for _ in 0..3 {
            guest.start(offered);
            assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, "{kind:?}");
            assert_eq!(guest.offered(), offered, "{kind:?}");
            guest.start(feature::VERSION_1);
        }
    });
}

/// Section 6.3 (6): bits 0 to 23 and 50 to 127 belong to the device type, the rest to the text; what is not
/// described there is not offered.
#[test]
fn no_reserved_feature_is_offered() {
    each(|kind, mut guest| {
        let common = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;
        let own = match kind {
            DeviceType::Net => 0x0042_bbab,
            DeviceType::Block => 0x7224,
            DeviceType::Console => 0x7,
            DeviceType::Rng | DeviceType::Vsock => 0,
        };
        let offered = guest.offered();
        assert_eq!(offered & !(common | own), 0, "{kind:?} offers {offered:#x}");
        assert_eq!(offered & feature::VERSION_1, feature::VERSION_1, "{kind:?}");
    });
}

/// Section 2.1.2: what stands in the queues before DRIVER_OK stays there, whatever is notified.
#[test]
fn no_device_serves_before_driver_ok() {
    each(|kind, mut guest| {
        let (offered, queues) = (guest.offered(), guest.transport.lifecycle().queue_count() as u16);
        assert!(guest.negotiate(offered));
        for queue in 0..queues {
            guest.write(register::QUEUE_SEL, queue.into());
            let size = guest.read(register::QUEUE_NUM_MAX) as u16;
            guest.set_queue(queue, size);
            guest.chain(queue, &[readable(BUFFERS, 64), writable(BUFFERS + 4096, 64)]);
            guest.notify(queue);
        }
        guest.transport.ready(0);
        for queue in 0..queues {
            assert_eq!(guest.take_used(queue), [], "{kind:?}, queue {queue}");
        }
        assert_eq!((guest.line.take(), guest.read(register::INTERRUPT_STATUS)), (0, 0), "{kind:?}");
        assert_eq!(guest.transport.wake_at(), None, "{kind:?}");
    });
}

/// Section 2.5.2 (2.5.1): in any status the configuration reads as it does afterwards.
#[test]
fn the_configuration_is_read_before_features_ok() {
    each(|kind, mut guest| {
        let before: [u8; 64] = guest.config(0);
        let offered = guest.offered();
        guest.start(offered);
        assert_eq!(guest.config::<64>(0), before, "{kind:?}");
    });
}

/// Section 2.7.8.2: a device returns each chain once, with no more bytes than it has room for.
#[test]
fn each_chain_is_returned_once() {
    each(|kind, mut guest| {
        let (offered, queues) = (guest.offered(), guest.transport.lifecycle().queue_count() as u16);
        for queue in 0..queues {
            guest.start(offered);
            guest.put(BUFFERS, &[0; 64]);
            let head = guest.chain(queue, &[readable(BUFFERS, 64), writable(BUFFERS + 4096, 100)]);
            guest.notify(queue);
            guest.transport.drain();
            guest.notify(queue);
            let used = guest.take_used(queue);
            assert!(used.len() <= 1, "{kind:?}, queue {queue}: {used:?}");
            assert!(used.iter().all(|(id, length)| *id == head && *length <= 100), "{kind:?}: {used:?}");
        }
    });
}
