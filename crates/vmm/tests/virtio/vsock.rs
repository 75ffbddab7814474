//! Sockets, section 5.10, over real unix sockets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use moat_vmm::backend::UnixVsock;
use moat_vmm::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, STREAM, op};
use moat_vmm::virtio::vsock::{HOST, MOST_CONNECTIONS, Vsock};
use moat_vmm::virtio::{Fault, VirtioDevice};

use super::driver::{BUFFERS, Guest, readable, writable};

const CID: u64 = 42;
const PACKET: u64 = BUFFERS;
const RECEIVED: u64 = BUFFERS + 0x10_0000;
const PLACE_BYTES: u64 = 0x2000;

/// A folder that goes when the test does.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moat-vsock-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("v.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Machine {
    guest: Guest<Vsock<UnixVsock>>,
    folder: Folder,
    /// How much of its buffer each packet announces.
    buf_alloc: u32,
    fwd_cnt: u32,
    next_buffer: u64,
    _name: String,
}

impl Machine {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let host = UnixVsock::bind(&folder.socket()).unwrap();
        let guest = Guest::started(Vsock::new(host, CID), 0);
        let mut this =
            Self { guest, folder, buf_alloc: 1 << 16, fwd_cnt: 0, next_buffer: 0, _name: name.to_owned() };
        this.give(64);
        this
    }

    /// Gives the device buffers for packets.
    fn give(&mut self, count: u64) {
        for _ in 0..count {
            let place = RECEIVED + self.next_buffer % 256 * PLACE_BYTES;
            self.guest.chain(0, &[writable(place, PLACE_BYTES as usize)]);
            self.next_buffer += 1;
        }
        self.guest.notify(0);
    }

    /// What the device has sent.
    fn hear(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.guest.transport.ready(HOST);
        let used = self.guest.take_used(0);
        let mut heard = Vec::new();
        for (head, length) in &used {
            let place = RECEIVED + u64::from(*head) * PLACE_BYTES;
            let bytes = self.guest.get(place, *length as usize);
            let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
            assert_eq!(bytes.len(), HEADER_BYTES + header.len as usize);
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
            heard.push((header, bytes[HEADER_BYTES..].to_vec()));
        }
        self.give(used.len() as u64);
        heard
    }

    /// As [`Self::hear`], for exactly one packet.
    fn hear_one(&mut self) -> (Header, Vec<u8>) {
        let mut heard = self.hear();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.remove(0)
    }

    fn say(&mut self, ports: (u32, u32), op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            len: data.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.say_raw(header, data);
    }

    fn say_raw(&mut self, header: Header, data: &[u8]) {
        self.guest.put(PACKET, &header.to_bytes());
        self.guest.put(PACKET + 64, data);
        let mut parts = vec![readable(PACKET, HEADER_BYTES)];
        if !data.is_empty() {
            parts.push(readable(PACKET + 64, data.len()));
        }
        self.guest.ask(1, &parts);
    }

    /// A connection that the guest has begun, with the host's end of it.
    fn connect_out(&mut self, port: u32) -> UnixStream {
        let listener = UnixListener::bind(self.folder.0.join(format!("v.sock_{port}"))).unwrap();
        self.say((1000, port), op::REQUEST, 0, &[]);
        let (header, _) = self.hear_one();
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RESPONSE, port, 1000));
        assert!(header.buf_alloc > 0);
        listener.accept().unwrap().0
    }

    /// A connection that the host has begun: the host's end, and its port.
    fn connect_in(&mut self, port: u32) -> (UnixStream, u32) {
        let mut stream = UnixStream::connect(self.folder.socket()).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let (header, _) = self.hear_one();
        assert_eq!((header.op, header.dst_port), (op::REQUEST, port));
        self.say((port, header.src_port), op::RESPONSE, 0, &[]);
        let mut line = vec![0; format!("OK {}\n", header.src_port).len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", header.src_port).into_bytes());
        (stream, header.src_port)
    }
}

/// Section 5.10.4: the guest's CID; 5.10.6.
#[test]
fn the_guest_has_its_address() {
    let mut machine = Machine::new("cid");
    assert_eq!(u64::from_le_bytes(machine.guest.config(0)), CID);
}

/// Section 5.10.6.5: the guest connects, both sides send, the guest closes.
#[test]
fn the_guest_connects_to_the_host() {
    let mut machine = Machine::new("guest-first");
    let mut host = machine.connect_out(77);
    machine.say((1000, 77), op::RW, 0, b"from the guest");
    let mut got = [0; 14];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, data) = machine.hear_one();
    assert_eq!((header.op, &data[..], header.fwd_cnt), (op::RW, &b"from the host"[..], 14));
    machine.say((1000, 77), op::SHUTDOWN, 3, &[]);
    assert_eq!(machine.hear_one().0.op, op::RST);
    assert_eq!(host.read(&mut got).unwrap(), 0);
    assert_eq!(machine.guest.transport.lifecycle().device().connections(), 0);
}

/// Section 5.10.6.5: the host connects, in the form that Firecracker has; the host closes.
#[test]
fn the_host_connects_to_the_guest() {
    let mut machine = Machine::new("host-first");
    let (mut host, port) = machine.connect_in(52);
    host.write_all(b"ping").unwrap();
    assert_eq!(machine.hear_one().1, b"ping");
    machine.say((52, port), op::RW, 0, b"pong");
    let mut got = [0; 4];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
    drop(host);
    let (header, _) = machine.hear_one();
    assert_eq!((header.op, header.flags & 2), (op::SHUTDOWN, 2));
    machine.say((52, port), op::RST, 0, &[]);
    assert_eq!(machine.guest.transport.lifecycle().device().connections(), 0);
}

/// Section 5.10.6.5: a refused connection is reset, whoever asked for it.
#[test]
fn a_refused_connection_is_reset() {
    let mut machine = Machine::new("refused");
    machine.say((5, 99), op::REQUEST, 0, &[]);
    let (header, _) = machine.hear_one();
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, 99, 5));
    let mut stream = UnixStream::connect(machine.folder.socket()).unwrap();
    stream.write_all(b"CONNECT 12\n").unwrap();
    let (header, _) = machine.hear_one();
    machine.say((12, header.src_port), op::RST, 0, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

/// Section 5.10.6.5 (5.10.6.6): each half is shut for itself.
#[test]
fn halves_are_shut_one_by_one() {
    let mut machine = Machine::new("halves");
    let mut host = machine.connect_out(7);
    machine.say((1000, 7), op::RW, 0, b"last");
    machine.say((1000, 7), op::SHUTDOWN, 2, &[]);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    host.write_all(b"still").unwrap();
    assert_eq!(machine.hear_one().1, b"still");
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = machine.hear_one();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, 2));
    // The guest may say nothing more, having said that it would not.
    machine.say((1000, 7), op::RW, 0, b"liar");
    assert_eq!(machine.hear_one().0.op, op::RST);
}

/// Section 5.10.6.3.1: never more is sent than the guest has room for; it is asked for room, and the rest
/// follows when there is some.
#[test]
fn credit_bounds_what_the_guest_is_sent() {
    let mut machine = Machine::new("credit");
    machine.buf_alloc = 1000;
    let mut host = machine.connect_out(7);
    host.write_all(&[7; 2500]).unwrap();
    let mut got = 0;
    for round in 1..=3 {
        let heard = machine.hear();
        got += heard.iter().map(|(_, data)| data.len()).sum::<usize>();
        assert_eq!(got, (round * 1000).min(2500));
        let asked = heard.iter().filter(|(header, _)| header.op == op::CREDIT_REQUEST).count();
        assert_eq!(asked, usize::from(round < 3), "{heard:?}");
        assert!(machine.hear().is_empty());
        machine.fwd_cnt = got as u32;
        machine.say((1000, 7), op::CREDIT_UPDATE, 0, &[]);
    }
}

/// Section 5.10.6.3.1: the guest that sends more than it was given room for is reset.
#[test]
fn credit_bounds_what_the_guest_sends() {
    let mut machine = Machine::new("overrun");
    let _host = machine.connect_out(7);
    machine.say((1000, 7), op::CREDIT_REQUEST, 0, &[]);
    let (header, _) = machine.hear_one();
    assert_eq!(header.op, op::CREDIT_UPDATE);
    let room = header.buf_alloc as usize;
    // The host takes nothing: its socket fills, then the device's buffer.
    let mut sent = 0;
    loop {
        machine.say((1000, 7), op::RW, 0, &[1; 0x1_0000]);
        sent += 0x1_0000;
        if machine.hear().iter().any(|(header, _)| header.op == op::RST) {
            break;
        }
    }
    assert!(sent > room && sent < room + (4 << 20), "{sent}");
}

/// Section 5.10.6.4.1 (5.10.6.4.2): what belongs to no connection, and types that are not known, are reset;
/// packets with foreign addresses are dropped.
#[test]
fn what_makes_no_sense_is_reset() {
    let mut machine = Machine::new("senseless");
    for what in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX] {
        machine.say((5, 6), what, 0, &[]);
        let (header, _) = machine.hear_one();
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, 6, 5), "{what}");
    }
    machine.say((5, 6), op::RST, 0, &[]);
    let good = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 5,
        dst_port: 6,
        kind: STREAM,
        op: op::REQUEST,
        ..Header::default()
    };
    machine.say_raw(Header { src_cid: CID + 1, ..good }, &[]);
    machine.say_raw(Header { dst_cid: 3, ..good }, &[]);
    machine.say_raw(Header { dst_cid: u64::MAX, ..good }, &[]);
    assert!(machine.hear().is_empty());
    machine.say_raw(Header { kind: 2, ..good }, &[]);
    assert_eq!(machine.hear_one().0.op, op::RST);
    // An answer that was not asked for ends a connection.
    let _host = machine.connect_out(7);
    machine.say((1000, 7), op::RESPONSE, 0, &[]);
    assert_eq!(machine.hear_one().0.op, op::RST);
    assert_eq!(machine.guest.transport.lifecycle().device().connections(), 0);
}

/// A packet that promises more data than it has, or has no header, is a fault.
#[test]
fn a_packet_that_is_too_short_is_a_fault() {
    let mut machine = Machine::new("short");
    let header =
        Header { src_cid: CID, dst_cid: HOST_CID, len: 10, kind: STREAM, op: op::RW, ..Header::default() };
    machine.guest.put(PACKET, &header.to_bytes());
    machine.guest.chain(1, &[readable(PACKET, HEADER_BYTES + 9)]);
    machine.guest.notify(1);
    assert_eq!(machine.guest.transport.take_fault(), Some(Fault::Short("the data of a packet")));
    let mut machine = Machine::new("shorter");
    machine.guest.chain(1, &[readable(PACKET, HEADER_BYTES - 1)]);
    machine.guest.notify(1);
    assert_eq!(machine.guest.transport.take_fault(), Some(Fault::Short("the header of a packet")));
}

/// Clients that say something else are not let in, and hold nothing up.
#[test]
fn only_a_proper_client_gets_through() {
    let mut machine = Machine::new("clients");
    let mut silent = UnixStream::connect(machine.folder.socket()).unwrap();
    for line in ["HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967296\n", "connect 1\n"]
    {
        let mut bad = UnixStream::connect(machine.folder.socket()).unwrap();
        bad.write_all(line.as_bytes()).unwrap();
        assert!(machine.hear().is_empty(), "{line}");
        // Closed with its line unread, which a reader may see as a reset.
        assert!(matches!(bad.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    let mut long = UnixStream::connect(machine.folder.socket()).unwrap();
    long.write_all(&[b'C'; 100]).unwrap();
    assert!(machine.hear().is_empty());
    // A line may come in pieces, and what follows it is data.
    silent.write_all(b"CONN").unwrap();
    assert!(machine.hear().is_empty());
    silent.write_all(b"ECT 9\nrest").unwrap();
    let (header, _) = machine.hear_one();
    assert_eq!((header.op, header.dst_port), (op::REQUEST, 9));
    machine.say((9, header.src_port), op::RESPONSE, 0, &[]);
    assert_eq!(machine.hear_one().1, b"rest");
}

/// Section 5.10.6.1: a driver that takes no answers gets no memory for them, and loses none.
#[test]
fn answers_that_are_not_taken_are_bounded() {
    let folder = Folder::new("answers");
    let host = UnixVsock::bind(&folder.socket()).unwrap();
    let mut guest = Guest::started(Vsock::new(host, CID), 0);
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1,
        kind: STREAM,
        op: op::RW,
        ..Header::default()
    };
    guest.put(PACKET, &header.to_bytes());
    let mut taken = 0;
    for _ in 0..400 {
        guest.chain(1, &[readable(PACKET, HEADER_BYTES)]);
        guest.notify(1);
        taken += guest.take_used(1).len();
        if taken < 256 {
            continue;
        }
        break;
    }
    guest.chain(1, &[readable(PACKET, HEADER_BYTES)]);
    guest.notify(1);
    assert_eq!((taken, guest.take_used(1).len()), (256, 0));
    // With buffers the rest goes on by itself.
    for number in 0..256 {
        guest.chain(0, &[writable(RECEIVED + number * 64, 64)]);
    }
    guest.notify(0);
    assert_eq!((guest.take_used(0).len(), guest.take_used(1).len()), (256, 1));
}

/// The same ports over and over, and more connections than there may be.
#[test]
fn connections_are_bounded() {
    let mut machine = Machine::new("bounded");
    let listener = UnixListener::bind(machine.folder.0.join("v.sock_7")).unwrap();
    let accept =
        std::thread::spawn(move || listener.incoming().take(10 + MOST_CONNECTIONS).collect::<Vec<_>>());
    for _ in 0..10 {
        machine.say((1, 7), op::REQUEST, 0, &[]);
        machine.say((1, 7), op::RST, 0, &[]);
    }
    for port in 0..MOST_CONNECTIONS as u32 {
        // The listener's backlog may be full for a moment; the answer says so.
        loop {
            machine.say((port, 7), op::REQUEST, 0, &[]);
            if machine.hear().iter().any(|(header, _)| header.op == op::RESPONSE) {
                break;
            }
            std::thread::yield_now();
        }
    }
    assert_eq!(machine.guest.transport.lifecycle().device().connections(), MOST_CONNECTIONS);
    machine.say((60_000, 7), op::REQUEST, 0, &[]);
    assert_eq!(machine.hear_one().0.op, op::RST);
    machine.guest.set_status(0);
    assert_eq!(machine.guest.transport.lifecycle().device().connections(), 0);
    drop(accept);
}

/// Section 5.10.6.7: after a snapshot connections are gone, and the driver is told by an event.
#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut machine = Machine::new("restore");
    let _host = machine.connect_out(7);
    machine.guest.chain(2, &[writable(PACKET, 4)]);
    machine.guest.notify(2);
    assert_eq!(machine.guest.take_used(2), []);
    let state = machine.guest.transport.save();
    let folder = Folder::new("restored");
    let host = UnixVsock::bind(&folder.socket()).unwrap();
    let mut other = Guest::with_memory(Vsock::new(host, 50), machine.guest.memory.clone());
    other.transport.restore(&state).unwrap();
    assert_eq!(u64::from_le_bytes(other.config(0)), CID);
    machine.guest.put(PACKET, &[9; 4]);
    other.transport.resume();
    assert_eq!(machine.guest.take_used(2), [(0, 4)]);
    assert_eq!(machine.guest.get(PACKET, 4), [0; 4]);
}

/// Nothing is replaced that stands where the socket is to be.
#[test]
fn a_socket_that_is_there_is_left_alone() {
    let folder = Folder::new("there");
    std::fs::write(folder.socket(), "mine").unwrap();
    let error = UnixVsock::bind(&folder.socket()).unwrap_err();
    assert!(error.to_string().contains("something is there already"), "{error}");
    assert_eq!(std::fs::read(folder.socket()).unwrap(), b"mine");
    let vsock = Vsock::new(UnixVsock::bind(&folder.0.join("other")).unwrap(), CID);
    assert!(folder.0.join("other").exists());
    let _ = vsock.save();
    drop(vsock);
    assert!(!folder.0.join("other").exists());
}
