//! A guest that writes another image format's header to its disk, so that the monitor, when it opens the
//! disk the next time, takes it for such an image and follows the names of files in it.

use std::os::unix::fs::FileExt;

use moat_vmm::backend::{FileDisk, UringDisk};
use moat_vmm::virtio::block::{Block, BlockOptions, Disk, feature as block};

use super::devices;
use super::driver::{BUFFERS, Guest, readable, writable};

const STATUS: u64 = BUFFERS + 0x8000;
const DATA: u64 = BUFFERS + 0x1000;
const SECTORS: u64 = 64;

/// Headers that name a backing file or another size.
fn headers() -> Vec<Vec<u8>> {
    let qcow2 = [
        &b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x01\0\0\0\0\x0b\0\0\0\x10\0\0\x10\0\0\0\0\0"[..],
        &[0; 224],
        b"/etc/passwd",
    ];
    let vmdk = b"# Disk DescriptorFile\nversion=1\nRW 99999 FLAT \"/etc/passwd\" 0\n".to_vec();
    let others: [&[u8]; 4] =
        [b"KDMV\x01\0\0\0", b"conectix\0\0\0\x02", b"vhdxfile", b"<<< Oracle VM VirtualBox Disk Image >>>\n"];
    let mut all = vec![qcow2.concat(), vmdk];
    all.extend(others.map(<[u8]>::to_vec));
    for header in &mut all {
        header.resize(1024, 0);
    }
    all
}

#[test]
fn a_disk_is_its_bytes_whatever_they_look_like() {
    for header in headers() {
        let file = devices::file(SECTORS * 512);
        for life in 0..4 {
            let copy = file.try_clone().unwrap();
            let disk: Box<dyn Disk> = if life % 2 == 0 {
                Box::new(FileDisk::new(copy).unwrap())
            } else {
                Box::new(UringDisk::new(copy).unwrap())
            };
            assert_eq!(disk.size_bytes(), SECTORS * 512);
            let mut guest = Guest::started(Block::new(disk, BlockOptions::default()), block::FLUSH);
            assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS);
            let kind = u32::from(life == 0);
            guest.put(BUFFERS, &[&kind.to_le_bytes()[..], &[0; 12]].concat());
            let data = if life == 0 {
                guest.put(DATA, &header);
                readable(DATA, 1024)
            } else {
                writable(DATA, 1024)
            };
            guest.chain(0, &[readable(BUFFERS, 16), data, writable(STATUS, 1)]);
            guest.notify(0);
            guest.transport.drain();
            assert_eq!((guest.take_used(0).len(), guest.get(STATUS, 1)), (1, vec![0]));
            assert_eq!(guest.get(DATA, 1024), header);
        }
        let mut raw = vec![0; 1024];
        file.read_exact_at(&mut raw, 0).unwrap();
        assert_eq!(raw, header);
    }
}
