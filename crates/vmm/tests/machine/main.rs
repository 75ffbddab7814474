//! Every device of the real program on the real KVM, through its registers, by guests of some instructions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]
#![allow(unsafe_code, reason = "the drivers' ground is a trait that is unsafe to implement")]

#[path = "../third_party/hal.rs"]
mod hal;
mod hands;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use hal::{Ground, Registers, Window};
use hands::{Do, FREE, Folder, Machine};
use moat_vmm::virtio::mmio::register;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType};
use vm_memory::{Bytes, GuestAddress};

const SERIAL: u64 = 0x3f8;

/// The window of a virtio device, by its place on the bus.
struct Remote<'a> {
    machine: &'a Machine,
    base: u64,
}

impl Machine {
    fn device(&self, place: u64) -> Registers<Remote<'_>> {
        Registers(self.window(place))
    }

    fn window(&self, place: u64) -> Remote<'_> {
        Remote { machine: self, base: 0xd000_0000 + place * 0x1000 }
    }

    /// The drivers of this thread work in this machine's memory from now on.
    fn is_here(&self) {
        hal::adopt(self.memory.clone(), FREE);
    }
}

impl Window for Remote<'_> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, part) in (0..).step_by(4).zip(data.chunks_mut(4)) {
            let what = [Do::Read8, Do::Read16, Do::Read32, Do::Read32][part.len() - 1];
            let value = self.machine.run(what, self.base + offset + at, 0).to_le_bytes();
            part.copy_from_slice(&value[..part.len()]);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, part) in (0..).step_by(4).zip(data.chunks(4)) {
            let what = [Do::Write8, Do::Write16, Do::Write32, Do::Write32][part.len() - 1];
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            self.machine.run(what, self.base + offset + at, u64::from_le_bytes(value));
        }
    }
}

#[test]
fn serial() {
    let folder = Folder::new();
    let mut machine = Machine::new(&folder, &["--no-rng"]);
    machine.say(SERIAL, b"byte by byte, ");
    machine.memory.write_slice(b"and by a string", GuestAddress(FREE)).unwrap();
    machine.run(Do::OutString, SERIAL, 15);
    // Wider accesses are none: the chip's registers are bytes.
    machine.run(Do::Out16, SERIAL, 0x5858);
    machine.run(Do::Out32, SERIAL, 0x5858_5858);
    // Scratch and divisor keep what they are given; the divisor hides the data register.
    machine.say(SERIAL + 7, &[0x5a]);
    machine.say(SERIAL + 3, &[0x83]);
    machine.say(SERIAL, &[1]);
    assert_eq!(machine.run(Do::In8, SERIAL, 0) as u8, 1);
    machine.say(SERIAL + 3, &[3]);
    assert_eq!(machine.run(Do::In8, SERIAL + 7, 0) as u8, 0x5a);
    let text: Vec<u8> = (0..300_u32).map(|byte| byte as u8).collect();
    machine.type_in(&text);
    let mut heard = Vec::new();
    while heard.len() < text.len() {
        if machine.run(Do::In8, SERIAL + 5, 0) & 1 != 0 {
            heard.push(machine.run(Do::In8, SERIAL, 0) as u8);
        }
    }
    assert_eq!(heard, text);
    let (status, said, errors) = machine.leave(7);
    assert_eq!(status.code(), Some(7), "{errors}");
    assert_eq!(said, b"byte by byte, and by a string");
}

#[test]
fn the_keyboard_controller_resets() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &[]);
    // Other commands are none.
    for command in [0x20, 0xff, 0xf0] {
        machine.run(Do::Out8, 0x64, command);
    }
    machine.ask(Do::Out8, 0x64, 0xfe);
    let (status, _, errors) = machine.end();
    assert_eq!((status.code(), errors.as_str()), (Some(121), ""));
}

/// A place without a device reads as ones, and takes every write.
#[test]
fn nothing_is_where_no_device_is() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--no-rng", "--no-serial"]);
    assert_eq!(machine.run(Do::In8, SERIAL + 5, 0) as u8, 0xff);
    assert_eq!(machine.run(Do::In32, 0xcf8, 0), 0xffff_ffff);
    for address in [0xd000_0000, 0xd000_0ff8, 0xdfff_fff8, 0xc000_0000] {
        machine.run(Do::Write64, address, 1);
        assert_eq!(machine.run(Do::Read64, address, 0), u64::MAX, "{address:#x}");
    }
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

/// Section 4.2.2.2: control registers take aligned accesses of 32 bits alone, whatever a guest tries.
#[test]
fn control_registers_have_one_width() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &[]);
    let base = 0xd000_0000;
    assert_eq!(machine.run(Do::Read32, base, 0), 0x7472_6976);
    for (what, offset) in [(Do::Read8, 0), (Do::Read16, 0), (Do::Read64, 0), (Do::Read32, 2), (Do::Read8, 3)]
    {
        let mask = [(Do::Read8, 0xff), (Do::Read16, 0xffff)].into_iter().find(|(width, _)| *width == what);
        let value = machine.run(what, base + offset, 0) & mask.map_or(u64::MAX, |(_, mask)| mask);
        assert_eq!(value, 0, "{what:?} at {offset}");
    }
    for what in [Do::Write8, Do::Write16, Do::Write64] {
        machine.run(what, base + register::STATUS, 1);
        assert_eq!(machine.run(Do::Read32, base + register::STATUS, 0), 0, "{what:?}");
    }
    machine.run(Do::Write32, base + register::STATUS, 1);
    assert_eq!(machine.run(Do::Read32, base + register::STATUS, 0), 1);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

#[test]
fn block_over_both_back_ends_with_and_without_doorbells() {
    let folder = Folder::new();
    let (first, second) = (folder.disk("first.img", 1 << 20), folder.disk("second.img", 1 << 20));
    let read_only = folder.disk("third.img", 4096);
    let plain = format!("{second},plain,id=a serial,queues=2");
    let (ring, read_only) = (format!("{first},id=a serial"), format!("{read_only},ro"));
    for further in [&[][..], &["--no-doorbells"]] {
        let disks = ["--disk", &ring, "--disk", &plain, "--disk", &read_only];
        let machine = Machine::new(&folder, &[&disks, further].concat());
        machine.is_here();
        for place in [0, 1] {
            let mut driver = VirtIOBlk::<Ground, _>::new(machine.device(place)).unwrap();
            assert_eq!((driver.capacity(), driver.readonly()), (2048, false));
            let mut serial = [0; 20];
            assert_eq!(driver.device_id(&mut serial).unwrap(), 8);
            assert_eq!(&serial[..8], b"a serial");
            for round in 0..20_usize {
                let data: Vec<u8> = (0..(1 + round % 8) * 512).map(|byte| (byte * 7 + round) as u8).collect();
                driver.write_blocks(round * 97, &data).unwrap();
                let mut back = vec![0; data.len()];
                driver.read_blocks(round * 97, &mut back).unwrap();
                assert!(back == data, "{round}");
            }
            driver.flush().unwrap();
            assert!(driver.read_blocks(2048, &mut [0; 512]).is_err());
        }
        let mut driver = VirtIOBlk::<Ground, _>::new(machine.device(2)).unwrap();
        assert_eq!((driver.capacity(), driver.readonly()), (8, true));
        assert!(driver.write_blocks(0, &[1; 512]).is_err());
        drop(driver);
        assert_eq!(machine.leave(0).0.code(), Some(0));
        let mut sector = [0; 512];
        for disk in [&first, &second] {
            std::fs::File::open(disk).unwrap().read_exact_at(&mut sector, 97 * 512).unwrap();
            let expected: Vec<u8> = (0..512_usize).map(|byte| (byte * 7 + 1) as u8).collect();
            assert!(sector[..] == expected[..]);
        }
    }
}

#[test]
fn rng() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--no-serial"]);
    machine.is_here();
    let mut driver = VirtIORng::<Ground, _>::new(machine.device(0)).unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut bytes = [0; 32];
        assert_eq!(driver.request_entropy(&mut bytes).unwrap(), 32);
        assert!(seen.insert(bytes));
    }
    drop(driver);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

#[test]
fn console() {
    let folder = Folder::new();
    let mut machine = Machine::new(&folder, &["--no-serial", "--console", "--no-rng"]);
    machine.type_in(b"hello from the host");
    machine.is_here();
    let mut driver = VirtIOConsole::<Ground, _>::new(machine.device(0)).unwrap();
    driver.send_bytes(b"hello from the guest").unwrap();
    let mut heard = Vec::new();
    while heard.len() < 19 {
        heard.extend(driver.recv(true).unwrap());
    }
    assert_eq!(heard, b"hello from the host");
    drop(driver);
    let (status, said, errors) = machine.leave(0);
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    assert_eq!(said, b"hello from the guest");
}

/// A terminal that nobody reads while the guest floods it: the program still answers on its control socket, and
/// nothing is lost.
#[test]
fn a_terminal_that_nobody_reads_does_not_stop_the_program() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let folder = Folder::new();
    let api = folder.text("api");
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = std::fs::File::options()
        .read(true)
        .write(true)
        .open(ptsname(&ours, Vec::new()).unwrap().to_str().unwrap())
        .unwrap();
    let mut command = Machine::command(&folder, &["--no-serial", "--no-rng", "--console", "--api", &api]);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs);
    let machine = Machine::adopt(command.spawn().unwrap());
    machine.is_here();
    let status = || assert!(hands::program(&["status", "--api", &api]).status().unwrap().success());
    let waiting = || rustix::io::ioctl_fionread(&ours).unwrap();
    let text: Vec<u8> = (0..200_000_u32).map(|byte| b'a' + (byte % 26) as u8).collect();
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // Until the terminal takes no more.
            let (mut before, mut same) = (0, 0);
            while same < 20 {
                status();
                let now = waiting();
                same = if now == before && now > 0 { same + 1 } else { 0 };
                before = now;
            }
            let mut read = vec![0; text.len()];
            let mut done = 0;
            while done < read.len() {
                done += rustix::io::read(&ours, &mut read[done..]).unwrap();
            }
            read
        });
        let mut driver = VirtIOConsole::<Ground, _>::new(machine.device(0)).unwrap();
        driver.send_bytes(&text).unwrap();
        reader.join().unwrap()
    });
    assert!(read == text);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

/// A guest that opens as many connections as it may leaves descriptors for the control socket.
#[test]
fn the_limit_of_descriptors_is_raised() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", machine.child.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(u64::MAX));
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(soft >= hard.min(8192), "{line}");
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

/// The control socket answers whoever has said all and closed its half, and however many others say nothing.
#[test]
fn the_control_socket_answers_half_closed_connections() {
    let folder = Folder::new();
    let api = folder.text("api");
    let machine = Machine::new(&folder, &["--api", &api]);
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&api).unwrap()).collect();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&api).unwrap();
        stream.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("running"), "{answer}");
    }
    drop(silent);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}

type Sockets<'a> = VsockConnectionManager<Ground, Registers<Remote<'a>>>;

/// The next event; the program's event loop is another process.
fn next_event(driver: &mut Sockets<'_>) -> VsockEventType {
    loop {
        if let Some(event) = driver.poll().unwrap() {
            return event.event_type;
        }
        std::thread::yield_now();
    }
}

#[test]
fn vsock() {
    let folder = Folder::new();
    let path = folder.text("v.sock");
    let listener = UnixListener::bind(folder.join("v.sock_5000")).unwrap();
    let machine = Machine::new(&folder, &["--vsock", &format!("33,{path}"), "--no-rng"]);
    machine.is_here();
    let mut driver = VsockConnectionManager::new(VirtIOSocket::new(machine.device(0)).unwrap());
    assert_eq!(driver.guest_cid(), 33);
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut copy).unwrap()
    });
    let host = VsockAddr { cid: 2, port: 5000 };
    driver.connect(host, 70).unwrap();
    assert_eq!(next_event(&mut driver), VsockEventType::Connected);
    let mut received: Vec<u8> = Vec::new();
    for round in 0..8_u8 {
        driver.send(host, 70, &[round; 500]).unwrap();
        while received.len() < (usize::from(round) + 1) * 500 {
            if let VsockEventType::Received { .. } = next_event(&mut driver) {
                let mut bytes = [0; 1024];
                let count = driver.recv(host, 70, &mut bytes).unwrap();
                received.extend(&bytes[..count]);
                driver.update_credit(host, 70).unwrap();
            }
        }
    }
    assert!(received == (0..8_u8).flat_map(|round| [round; 500]).collect::<Vec<_>>());
    driver.shutdown(host, 70).unwrap();
    assert!(matches!(next_event(&mut driver), VsockEventType::Disconnected { .. }));
    assert_eq!(echo.join().unwrap(), 4000);

    driver.listen(22);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 22\n").unwrap();
    assert_eq!(next_event(&mut driver), VsockEventType::ConnectionRequest);
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 1073741824\n");
    client.write_all(b"ping").unwrap();
    assert!(matches!(next_event(&mut driver), VsockEventType::Received { length: 4 }));
    drop(driver);
    assert_eq!(machine.leave(0).0.code(), Some(0));
    assert!(!hands::exists(&folder.join("v.sock")), "the socket is removed in the end");
}

/// A network namespace of this thread's own, which its children share.
fn own_network() {
    moat_linux::process::unshare(moat_linux::process::namespace::NETWORK).unwrap();
    ip("link set lo up");
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An Ethernet frame with a question for the owner of 10.99.0.1.
fn who_has(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([10, 99, 0, 2]);
    frame.extend([0; 6]);
    frame.extend([10, 99, 0, 1]);
    frame.resize(60, 0);
    frame
}

/// The host's kernel answers a question that a guest has put on a tap.
#[test]
fn net_over_a_tap() {
    own_network();
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--net", "hands0,mac=02:00:00:00:00:07", "--no-rng"]);
    ip("link set hands0 up");
    ip("addr add 10.99.0.1/24 dev hands0");
    machine.is_here();
    let mut driver = VirtIONet::<Ground, _, 32>::new(machine.device(0), 2048).unwrap();
    let mac = driver.mac_address();
    assert_eq!(mac, [2, 0, 0, 0, 0, 7]);
    for _ in 0..5 {
        let question = who_has(mac);
        let mut packet = driver.new_tx_buffer(question.len());
        packet.packet_mut().copy_from_slice(&question);
        driver.send(packet).unwrap();
        // The host says other things, too: its routers and neighbours.
        loop {
            let Ok(received) = driver.receive() else {
                std::thread::yield_now();
                continue;
            };
            let frame = received.packet().to_vec();
            driver.recycle_rx_buffer(received).unwrap();
            if frame.get(12..14) == Some(&[8, 6][..]) && frame.get(20..22) == Some(&[0, 2][..]) {
                assert_eq!((&frame[..6], &frame[28..32]), (&mac[..], &[10, 99, 0, 1][..]));
                break;
            }
        }
    }
    drop(driver);
    assert_eq!(machine.leave(0).0.code(), Some(0));
}
