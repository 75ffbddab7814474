//! The block device, section 5.2, over both back-ends.

use std::fs::File;
use std::os::unix::fs::FileExt;

use moat_vmm::backend::{FileDisk, UringDisk};
use moat_vmm::rate_limit::{RateLimit, RateLimitSpec};
use moat_vmm::virtio::block::{Block, BlockOptions, DONE, Disk, feature};
use moat_vmm::virtio::mmio::register;
use moat_vmm::virtio::{DeviceState, Fault, TIMER, VirtioDevice};
use rustix::fs::MemfdFlags;

use super::driver::{BUFFERS, Guest, readable, writable};

const SECTORS: u64 = 2048;
const SIZE: u64 = SECTORS * 512;
const STATUS: u64 = BUFFERS + 0x10_0000;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn file(size: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// The same file behind each back-end.
fn disks(file: &File) -> Vec<Box<dyn Disk>> {
    let copy = || file.try_clone().unwrap();
    vec![Box::new(FileDisk::new(copy()).unwrap()), Box::new(UringDisk::new(copy()).unwrap())]
}

type Card = Guest<Block<Box<dyn Disk>>>;

fn all() -> u64 {
    feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES
}

fn guests(file: &File, options: &BlockOptions, features: u64) -> Vec<Card> {
    let guest = |disk| Guest::started(Block::new(disk, options.clone()), features);
    disks(file).into_iter().map(guest).collect()
}

fn header(guest: &Card, kind: u32, sector: u64) {
    guest.put(BUFFERS, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    guest.put(STATUS, &[0xff]);
}

/// Makes a request and waits for its end; returns status and used length.
fn request(guest: &mut Card, kind: u32, sector: u64, data: &[(u64, usize)], from_device: bool) -> (u8, u32) {
    header(guest, kind, sector);
    let mut parts = vec![readable(BUFFERS, 16)];
    let part = if from_device { writable } else { readable };
    parts.extend(data.iter().map(|(address, length)| part(*address, *length)));
    parts.push(writable(STATUS, 1));
    let head = guest.chain(0, &parts);
    guest.notify(0);
    guest.transport.drain();
    let used = guest.take_used(0);
    assert_eq!(used.len(), 1, "{:?}", guest.transport.take_fault());
    assert_eq!(used[0].0, head);
    (guest.get(STATUS, 1)[0], used[0].1)
}

/// Section 5.2.6: reads and writes move whole sectors between disk and buffers, in pieces as the chain has.
#[test]
fn sectors_are_read_and_written() {
    let file = file(SIZE);
    for mut guest in guests(&file, &BlockOptions::default(), all()) {
        let data: Vec<u8> = (0..3 * 512_u32).map(|byte| (byte % 251) as u8).collect();
        guest.put(DATA, &data);
        assert_eq!(request(&mut guest, OUT, 7, &[(DATA, 1000), (DATA + 1000, 536)], false), (OK, 1));
        let mut back = vec![0; data.len()];
        file.read_exact_at(&mut back, 7 * 512).unwrap();
        assert!(back == data);
        guest.put(DATA, &[0; 2000]);
        assert_eq!(request(&mut guest, IN, 7, &[(DATA, 1), (DATA + 100, 1535)], true), (OK, 1537));
        assert_eq!(
            (guest.get(DATA, 1), guest.get(DATA + 100, 1535)),
            (data[..1].to_vec(), data[1..].to_vec())
        );
        file.write_all_at(&[0; 8192], 0).unwrap();
        // The last sector is there, and a request for none is done.
        assert_eq!(request(&mut guest, IN, SECTORS - 1, &[(DATA, 512)], true), (OK, 513));
        assert_eq!(request(&mut guest, IN, SECTORS, &[], true), (OK, 1));
    }
}

/// Section 5.2.6.2: what reaches beyond the end, or is not whole sectors, fails; nothing is written.
#[test]
fn what_is_not_there_is_an_error() {
    let file = file(SIZE + 511);
    for mut guest in guests(&file, &BlockOptions::default(), all()) {
        assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS, "a last part of a sector is not seen");
        guest.put(DATA, &[9; 1024]);
        for (sector, length) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
            (0, 511),
        ] {
            assert_eq!(request(&mut guest, OUT, sector, &[(DATA, length)], false).0, IO_ERROR);
            assert_eq!(request(&mut guest, IN, sector, &[(DATA, length)], true), (IO_ERROR, 0));
        }
        let mut all = vec![1; SIZE as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all.iter().all(|byte| *byte == 0) && file.metadata().unwrap().len() == SIZE + 511);
    }
}

/// Section 5.2.6.2: a read-only device writes nothing, and 5.2.3: says so.
#[test]
fn a_read_only_disk_is_not_written() {
    let file = file(SIZE);
    let options = BlockOptions { read_only: true, ..BlockOptions::default() };
    for mut guest in guests(&file, &options, feature::RO | feature::FLUSH) {
        guest.put(DATA, &[9; 512]);
        assert_eq!(guest.offered() & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
        assert_eq!(request(&mut guest, OUT, 0, &[(DATA, 512)], false), (IO_ERROR, 1));
        assert_eq!(request(&mut guest, DISCARD, 0, &[(DATA, 16)], false).0, UNSUPPORTED);
        assert_eq!(request(&mut guest, IN, 0, &[(DATA, 512)], true), (OK, 513));
        assert_eq!(guest.get(DATA, 512), [0; 512]);
    }
}

/// Section 5.2.6: flush; without the feature it is unknown, and every write is durable by itself.
#[test]
fn a_flush_is_known_when_negotiated() {
    let file = file(SIZE);
    for mut guest in guests(&file, &BlockOptions::default(), feature::FLUSH) {
        assert_eq!(request(&mut guest, FLUSH, 0, &[], false), (OK, 1));
    }
    for mut guest in guests(&file, &BlockOptions::default(), 0) {
        assert_eq!(request(&mut guest, FLUSH, 0, &[], false), (UNSUPPORTED, 1));
        guest.put(DATA, &[3; 512]);
        assert_eq!(request(&mut guest, OUT, 1, &[(DATA, 512)], false), (OK, 1));
        assert_eq!(request(&mut guest, IN, 1, &[(DATA, 512)], true), (OK, 513));
        assert_eq!(guest.get(DATA, 512), [3; 512]);
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Section 5.2.6: discard and write-zeroes; 5.2.6.2: unknown flags are unsupported.
#[test]
fn ranges_are_discarded_and_zeroed() {
    let file = file(SIZE);
    for mut guest in guests(&file, &BlockOptions::default(), all()) {
        let mut disk = vec![0; SIZE as usize];
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
            file.write_all_at(&vec![1; SIZE as usize], 0).unwrap();
            guest.put(DATA, &range(16, 1000, flags));
            assert_eq!(request(&mut guest, kind, 0, &[(DATA, 16)], false), (OK, 1));
            file.read_exact_at(&mut disk, 0).unwrap();
            assert!(disk[..16 * 512].iter().all(|byte| *byte == 1));
            assert!(disk[16 * 512..1016 * 512].iter().all(|byte| *byte == 0), "{kind} {flags}");
            assert!(disk[1016 * 512..].iter().all(|byte| *byte == 1));
        }
        let before = disk;
        for (kind, sector, sectors, flags, status) in [
            (DISCARD, 0, 1, 1, UNSUPPORTED),
            (DISCARD, 0, 1, 1 << 31, UNSUPPORTED),
            (WRITE_ZEROES, 0, 1, 2, UNSUPPORTED),
            (WRITE_ZEROES, SECTORS, 1, 0, IO_ERROR),
            (WRITE_ZEROES, u64::MAX, u32::MAX, 0, IO_ERROR),
            (DISCARD, SECTORS - 1, 2, 0, IO_ERROR),
            (DISCARD, 0, u32::MAX, 0, IO_ERROR),
            (DISCARD, 5, 0, 0, OK),
            (WRITE_ZEROES, 5, 0, 0, OK),
        ] {
            guest.put(DATA, &range(sector, sectors, flags));
            assert_eq!(request(&mut guest, kind, 0, &[(DATA, 16)], false).0, status, "{kind} {sector}");
        }
        // Section 5.2.5: max_discard_seg and max_write_zeroes_seg are 1.
        assert_eq!((guest.config(40), guest.config(52)), (1_u32.to_le_bytes(), 1_u32.to_le_bytes()));
        guest.put(DATA, &[range(0, 1, 0), range(2, 1, 0)].concat());
        assert_eq!(request(&mut guest, DISCARD, 0, &[(DATA, 32)], false).0, IO_ERROR);
        let mut after = vec![0; SIZE as usize];
        file.read_exact_at(&mut after, 0).unwrap();
        assert!(before == after);
    }
    // Not negotiated, not known.
    for mut guest in guests(&file, &BlockOptions::default(), 0) {
        guest.put(DATA, &range(0, 1, 0));
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(request(&mut guest, kind, 0, &[(DATA, 16)], false).0, UNSUPPORTED);
        }
    }
}

/// Section 5.2.6: the serial number has 20 bytes, padded by zeroes; unknown requests are unsupported.
#[test]
fn the_serial_number_is_told() {
    for (serial, expected) in
        [("disk-7", &b"disk-7"[..]), ("", b""), ("0123456789abcdefghijXYZ", b"0123456789abcdefghij")]
    {
        let options = BlockOptions { serial: serial.to_owned(), ..BlockOptions::default() };
        let file = file(SIZE);
        for mut guest in guests(&file, &options, 0) {
            guest.put(DATA, &[0xee; 32]);
            assert_eq!(request(&mut guest, GET_ID, 0, &[(DATA, 20)], true), (OK, 21));
            let mut padded = expected.to_vec();
            padded.resize(20, 0);
            padded.resize(32, 0xee);
            assert_eq!(guest.get(DATA, 32), padded);
            assert_eq!(request(&mut guest, GET_ID, 0, &[(DATA, 4)], true).0, IO_ERROR);
            for kind in [2, 3, 5, 10, 12, 14, 1 << 31, u32::MAX] {
                assert_eq!(request(&mut guest, kind, 0, &[(DATA, 512)], true).0, UNSUPPORTED);
            }
        }
    }
}

/// Section 5.2.6.4 (2.7.4): a chain without header or status can not be answered: the device needs a reset.
#[test]
fn a_request_without_header_or_status_is_a_fault() {
    let file = file(SIZE);
    let bad = [
        (vec![readable(BUFFERS, 15), writable(STATUS, 1)], Fault::Short("the header of a block request")),
        (vec![writable(STATUS, 1)], Fault::Short("the header of a block request")),
        (vec![readable(BUFFERS, 16)], Fault::Short("the status of a block request")),
        (vec![readable(BUFFERS, 16), readable(DATA, 512)], Fault::Short("the status of a block request")),
    ];
    for (parts, fault) in bad {
        for mut guest in guests(&file, &BlockOptions::default(), all()) {
            guest.chain(0, &parts);
            guest.notify(0);
            assert!(guest.needs_reset());
            assert_eq!(guest.transport.take_fault(), Some(fault));
        }
    }
}

/// Section 2.7.4.1: how a request is spread over descriptors means nothing.
#[test]
fn the_framing_of_a_request_means_nothing() {
    let file = file(SIZE);
    file.write_all_at(&[7; 512], 512).unwrap();
    for mut guest in guests(&file, &BlockOptions::default(), all()) {
        header(&guest, IN, 1);
        let parts =
            [readable(BUFFERS, 3), readable(BUFFERS + 3, 13), writable(DATA, 500), writable(DATA + 500, 13)];
        guest.chain(0, &parts);
        guest.notify(0);
        guest.transport.drain();
        assert_eq!(guest.take_used(0)[0].1, 513);
        assert_eq!((guest.get(DATA, 512), guest.get(DATA + 512, 1)), (vec![7; 512], vec![OK]));
    }
}

/// Section 5.2.5 and 5.2.3: several queues.
#[test]
fn every_queue_serves() {
    let file = file(SIZE);
    let options = BlockOptions { queues: 4, ..BlockOptions::default() };
    for mut guest in guests(&file, &options, feature::MQ) {
        assert_eq!(u16::from_le_bytes(guest.config(34)), 4);
        for queue in 0..4 {
            header(&guest, IN, 0);
            guest.chain(queue, &[readable(BUFFERS, 16), writable(DATA, 512), writable(STATUS, 1)]);
            guest.notify(queue);
            guest.transport.drain();
            assert_eq!(guest.take_used(queue).len(), 1);
        }
    }
}

/// Section 5.2.5: seg_max leaves room for header and status; what is beyond the space reads as zero.
#[test]
fn the_configuration_is_as_long_as_it_is() {
    let file = file(SIZE);
    for mut guest in guests(&file, &BlockOptions::default(), 0) {
        guest.write(register::QUEUE_SEL, 0);
        let size = guest.read(register::QUEUE_NUM_MAX);
        assert_eq!(u32::from_le_bytes(guest.config(12)), size - 2);
        assert_eq!(guest.config(60), [0; 64]);
        assert_eq!(guest.config(u64::MAX - register::CONFIG), [0; 8]);
        // And it is read-only.
        moat_vmm::device::BusDevice::write(&mut guest.transport, register::CONFIG, &[0xff; 8]);
        assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS);
    }
}

/// The event of io_uring tells of the end without a further notification.
#[test]
fn operations_end_while_the_driver_does_something_else() {
    let disk = UringDisk::new(file(SIZE)).unwrap();
    let event = disk.event_fd().try_clone().unwrap();
    let mut guest = Guest::started(Block::new(disk, BlockOptions::default()), all());
    guest.put(BUFFERS, &[0; 16]);
    for number in 0..64 {
        let data = DATA + number * 4096;
        guest.chain(0, &[readable(BUFFERS, 16), writable(data, 4096), writable(STATUS + number, 1)]);
    }
    guest.notify(0);
    let mut used = guest.take_used(0).len();
    while used < 64 {
        let mut poll = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        rustix::io::read(&event, &mut [0; 8]).unwrap();
        guest.transport.ready(DONE);
        used += guest.take_used(0).len();
    }
    assert_eq!(used, 64);
    assert_ne!(guest.read(register::INTERRUPT_STATUS), 0);
}

/// A limit makes requests wait in the queue; the timer takes them on.
#[test]
fn a_limit_makes_requests_wait() {
    let limit = RateLimit::new(RateLimitSpec { bytes_per_s: 0, operations_per_s: 100, burst_ms: 10 });
    let options = BlockOptions { limit, ..BlockOptions::default() };
    let disk = FileDisk::new(file(SIZE)).unwrap();
    let mut guest = Guest::started(Block::new(disk, options), all());
    guest.put(BUFFERS, &[0; 16]);
    for _ in 0..5 {
        guest.chain(0, &[readable(BUFFERS, 16), writable(DATA, 512), writable(STATUS, 1)]);
    }
    let start = std::time::Instant::now();
    guest.notify(0);
    let mut used = guest.take_used(0).len();
    assert_eq!(used, 1);
    while let Some(at) = guest.transport.wake_at() {
        std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
        guest.transport.ready(TIMER);
        used += guest.take_used(0).len();
    }
    assert_eq!(used, 5);
    assert!(start.elapsed().as_millis() >= 39);
}

/// A saved disk goes on with one of the same size only.
#[test]
fn a_state_fits_its_disk() {
    let mut block = Block::new(FileDisk::new(file(SIZE)).unwrap(), BlockOptions::default());
    let DeviceState::Block(state) = block.save() else { panic!("another type") };
    assert_eq!(block.restore(&DeviceState::Block(state.clone())), Ok(()));
    let mut other = Block::new(FileDisk::new(file(SIZE / 2)).unwrap(), BlockOptions::default());
    assert!(other.restore(&DeviceState::Block(state)).is_err());
}
