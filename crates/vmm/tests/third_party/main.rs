//! The devices with drivers that others have written (the crate `virtio-drivers`), in guest memory, through
//! the registers alone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]
#![allow(unsafe_code, reason = "the drivers' ground is a trait that is unsafe to implement")]

mod hal;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use hal::{Ground, Local, Registers};
use moat_linux::iov::{self, IoBuffer};
use moat_vmm::backend::{FileDisk, OsEntropy, UnixVsock, UringDisk};
use moat_vmm::device::Stream;
use moat_vmm::rate_limit::RateLimit;
use moat_vmm::virtio::block::{Block, BlockOptions, Disk};
use moat_vmm::virtio::console::{Console, PortOptions};
use moat_vmm::virtio::net::{Link, Net, NetOptions, Offloads};
use moat_vmm::virtio::rng::Rng;
use moat_vmm::virtio::vsock::{HOST, Vsock};
use rustix::fs::MemfdFlags;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType};

fn file(size: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

#[test]
fn block() {
    let file = file(4 << 20);
    let disks: [Box<dyn Disk>; 2] = [
        Box::new(FileDisk::new(file.try_clone().unwrap()).unwrap()),
        Box::new(UringDisk::new(file.try_clone().unwrap()).unwrap()),
    ];
    for disk in disks {
        let options = BlockOptions { serial: "a serial".to_owned(), ..BlockOptions::default() };
        let mut driver = VirtIOBlk::<Ground, _>::new(Registers::new(Block::new(disk, options))).unwrap();
        assert_eq!((driver.capacity(), driver.readonly()), (8192, false));
        let mut serial = [0; 20];
        assert_eq!(driver.device_id(&mut serial).unwrap(), 8);
        assert_eq!(&serial[..8], b"a serial");
        let mut random: u32 = 1;
        for round in 0..500_usize {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let data: Vec<u8> =
                (0..(1 + round % 16) * 512).map(|byte| (byte as u32 ^ random) as u8).collect();
            let place = random as usize % 8000;
            driver.write_blocks(place, &data).unwrap();
            let mut back = vec![0; data.len()];
            driver.read_blocks(place, &mut back).unwrap();
            assert!(back == data, "{round}");
        }
        driver.flush().unwrap();
        assert!(driver.read_blocks(8192, &mut [0; 512]).is_err());
    }
}

#[test]
fn rng() {
    let mut driver =
        VirtIORng::<Ground, _>::new(Registers::new(Rng::new(OsEntropy, RateLimit::none()))).unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let mut bytes = [0; 32];
        assert_eq!(driver.request_entropy(&mut bytes).unwrap(), 32);
        assert!(seen.insert(bytes));
    }
}

#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<(Vec<u8>, Vec<u8>)>>);

impl Stream for Terminal {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let input = &mut self.0.lock().unwrap().0;
        let count = to.len().min(input.len());
        if count == 0 {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        to.iter_mut().zip(input.drain(..count)).for_each(|(to, from)| *to = from);
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().1.extend(from);
        Ok(from.len())
    }

    fn size(&self) -> Option<(u16, u16)> {
        Some((132, 43))
    }
}

#[test]
fn console() {
    let terminal = Terminal::default();
    let port = (terminal.clone(), PortOptions { console: true, ..PortOptions::default() });
    let registers = Registers::new(Console::new([port]));
    let events = registers.shared();
    let mut driver = VirtIOConsole::<Ground, _>::new(registers).unwrap();
    let size = driver.size().unwrap().unwrap();
    assert_eq!((size.columns, size.rows), (132, 43));
    driver.send_bytes(b"hello from the guest").unwrap();
    assert_eq!(terminal.0.lock().unwrap().1, b"hello from the guest");
    let text: Vec<u8> = (0..10_000_u32).map(|byte| byte as u8).collect();
    terminal.0.lock().unwrap().0.extend(&text);
    events.0.lock().unwrap().ready(0);
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend(driver.recv(true).unwrap());
    }
    assert!(got == text);
}

/// A network that sends everything back.
#[derive(Default)]
struct Mirror(Vec<Vec<u8>>);

impl Link for Mirror {
    fn receive(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        let packet = self.0.remove(0);
        to[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn send(&mut self, parts: &[IoBuffer<'_>]) -> std::io::Result<()> {
        let file = file(0);
        iov::write(std::os::fd::AsFd::as_fd(&file), parts)?;
        let mut packet = Vec::new();
        std::io::Seek::rewind(&mut &file)?;
        (&file).read_to_end(&mut packet)?;
        self.0.push(packet);
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, _enabled: bool) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn net() {
    let options = NetOptions { mac: [2, 1, 2, 3, 4, 5], ..NetOptions::default() };
    let registers = Registers::new(Net::new([Mirror::default()], options));
    let events = registers.shared();
    let mut driver = VirtIONet::<Ground, _, 32>::new(registers, 2048).unwrap();
    assert_eq!(driver.mac_address(), [2, 1, 2, 3, 4, 5]);
    for round in 0..300_usize {
        let length = 60 + round * 4;
        let mut packet = driver.new_tx_buffer(length);
        packet.packet_mut().fill(round as u8);
        driver.send(packet).unwrap();
        events.0.lock().unwrap().ready(0);
        let received = driver.receive().unwrap();
        assert_eq!(received.packet(), vec![round as u8; length]);
        driver.recycle_rx_buffer(received).unwrap();
    }
}

type Sockets = VsockConnectionManager<Ground, Registers<Local<Vsock<UnixVsock>>>>;

/// Plays the event loop until the driver has an event.
fn next_event(driver: &mut Sockets, events: &Registers<Local<Vsock<UnixVsock>>>) -> VsockEventType {
    loop {
        events.0.lock().unwrap().ready(HOST);
        if let Some(event) = driver.poll().unwrap() {
            return event.event_type;
        }
        std::thread::yield_now();
    }
}

#[test]
fn vsock() {
    let folder = std::env::temp_dir().join(format!("moat-vsock-drivers-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("v.sock");
    let registers = Registers::new(Vsock::new(UnixVsock::bind(&path).unwrap(), 33));
    let events = registers.shared();
    let mut driver = VsockConnectionManager::new(VirtIOSocket::new(registers).unwrap());
    assert_eq!(driver.guest_cid(), 33);

    // From the guest: an echo of more than fits any buffer.
    let listener = UnixListener::bind(folder.join("v.sock_5000")).unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut copy).unwrap_or_default()
    });
    let host = VsockAddr { cid: 2, port: 5000 };
    driver.connect(host, 70).unwrap();
    assert_eq!(next_event(&mut driver, &events), VsockEventType::Connected);
    let mut received: Vec<u8> = Vec::new();
    for round in 0..200_u32 {
        driver.send(host, 70, &[round as u8; 500]).unwrap();
        let end = received.len() + 500;
        while received.len() < end {
            if let VsockEventType::Received { .. } = next_event(&mut driver, &events) {
                let mut bytes = [0; 1024];
                let count = driver.recv(host, 70, &mut bytes).unwrap();
                received.extend(&bytes[..count]);
                driver.update_credit(host, 70).unwrap();
            }
        }
    }
    assert!(received == (0..200_u32).flat_map(|round| [round as u8; 500]).collect::<Vec<_>>());
    driver.shutdown(host, 70).unwrap();
    assert!(matches!(next_event(&mut driver, &events), VsockEventType::Disconnected { .. }));
    assert_eq!(echo.join().unwrap(), 100_000);

    // From the host.
    driver.listen(22);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 22\n").unwrap();
    assert_eq!(next_event(&mut driver, &events), VsockEventType::ConnectionRequest);
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 1073741824\n");
    client.write_all(b"ping").unwrap();
    assert!(matches!(next_event(&mut driver, &events), VsockEventType::Received { length: 4 }));
    drop(driver);
    drop(events);
    std::fs::remove_dir_all(&folder).unwrap();
}
