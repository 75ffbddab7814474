//! Names: a small resolver for each network that workloads are on.
//!
//! It listens at port 53 of the network's gateway addresses. The first workload that joins binds these sockets and
//! hands them to the resolver, so that it can be asked before it runs; some seconds after the last workload has gone
//! it ends. What it knows it reads from the endpoint files at every question. It has no socket to be controlled by, keeps
//! no capability, and answers none but the network's own workloads and the host.
//!
//! Exactly one lives for a network: it holds a lock for as long as it has the sockets. A workload that joins holds the
//! lock of the network shared, writes its file, and then tries the resolver's lock. A resolver that wants to end takes
//! the network's lock alone, so that nobody is joining, looks whether there is really no file, and gives back its
//! sockets and its lock before that of the network: whoever comes next finds all of it free.

mod zone;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moat_linux::process::{self, Clone3, Forked};
use moat_linux::{capability, net};
use moat_model::network::NetworkState;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, inotify};
use serde::{Deserialize, Serialize};

use crate::error::Context;
use crate::store::{Lock, Store};
use crate::{Error, Result};
pub use zone::Question;
use zone::{Decision, Zone};

const PORT: u16 = 53;
/// The longest packet of UDP, and of TCP.
const PACKET_BYTES: usize = 65535;
/// So many questions to the outside, and connections, at once; more are not answered.
const AT_ONCE: usize = 256;
/// How long a server of the outside has to answer; and how long a client may say nothing.
const SERVER_WAIT: Duration = Duration::from_secs(3);
const CLIENT_WAIT: Duration = Duration::from_secs(10);
/// How long it stays when nobody is on the network: who runs one workload after another finds it running.
const LINGER: Duration = Duration::from_secs(5);
/// When it looks again whether it can end, as long as somebody is joining or waits for an answer.
const AGAIN: Duration = Duration::from_millis(100);
/// A small stack is enough for a thread that passes packets on.
const STACK_BYTES: usize = 256 << 10;

/// What a resolver is told; the sockets come with it: the lock, then one of UDP and one of TCP for each gateway.
#[derive(Serialize, Deserialize)]
struct Start {
    data: PathBuf,
    run: PathBuf,
    network: String,
}

/// Sees to it that a network has its resolver. The caller has written an endpoint file before.
pub(crate) fn ensure(store: &Store, command: &[OsString], network: &NetworkState) -> Result<()> {
    let Some(lock) = try_lock(store, &network.id)? else { return Ok(()) };
    start(store, command, network, lock).context(|| format!("resolver of network {}", network.name))
}

/// Waits until the resolver of a network that is gone has ended: its sockets are in the way of whoever takes the
/// same addresses next. `lock` is its lock.
pub(crate) fn wait_for_end(lock: Option<File>) -> Result<()> {
    let Some(lock) = lock else { return Ok(()) };
    let locked = rustix::fs::flock(&lock, FlockOperation::LockExclusive);
    locked.map_err(std::io::Error::from).context(|| "wait for the end of a resolver")
}

/// The file that a network's resolver locks; `None` where there never was one.
pub(crate) fn lock_file(store: &Store, network: &str) -> Result<Option<File>> {
    let path = store.network_run(network).join("resolver.lock");
    match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).context(|| path.display().to_string()),
    }
}

/// Whether a network has its resolver.
pub(crate) fn is_alive(store: &Store, network: &str) -> Result<bool> {
    Ok(try_lock(store, network)?.is_none())
}

/// The lock of a network's resolver; `None` where a resolver lives.
fn try_lock(store: &Store, network: &str) -> Result<Option<File>> {
    let path = store.network_run(network).join("resolver.lock");
    let what = || path.display().to_string();
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).context(what)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(std::io::Error::from(errno)).context(what),
    }
}

fn start(store: &Store, command: &[OsString], network: &NetworkState, lock: File) -> Result<()> {
    let mut fds: Vec<OwnedFd> = vec![lock.into()];
    for subnet in &network.subnets {
        let address = SocketAddr::new(subnet.gateway, PORT);
        fds.push(UdpSocket::bind(address).map_err(|error| taken(address, error))?.into());
        fds.push(TcpListener::bind(address).map_err(|error| taken(address, error))?.into());
    }
    let [program, arguments @ ..] = command else { return Err(Error::host("it has no program")) };
    let (ours, theirs) = net::packet_pair()?;
    let told = store.network_run(&network.id).join("resolver.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&told);
    let log = log.context(|| told.display().to_string())?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .context(|| program.display().to_string())?;
    let start = Start { data: store.data.clone(), run: store.run.clone(), network: network.id.clone() };
    let text = serde_json::to_vec(&start).map_err(|error| Error::host(error.to_string()))?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let sent = net::send(ours.as_fd(), &text, &borrowed);
    let ended = child.wait()?;
    sent?;
    if !ended.success() {
        return Err(Error::host(format!("it ended at once ({ended}); {} says why", told.display())));
    }
    Ok(())
}

fn taken(address: SocketAddr, error: std::io::Error) -> Error {
    let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
    let error = Error::from(error);
    if in_use {
        let hint = "a name server of the host listens at all addresses; let it listen at its own alone";
        return Error::conflict(format!("port {address} of the host is in use")).hint(hint);
    }
    Error::host(format!("bind {address}: {error}"))
}

/// The resolver itself: what the hidden command that was given to `Networks::with_resolver` calls. Standard input is
/// the socket by which it is told what it serves. It goes on in a child, so that nobody has to wait for it.
///
/// Must be called by a process with a single thread.
pub fn serve() -> Result<()> {
    process::close_from(3)?;
    let stdin = std::io::stdin();
    let mut text = vec![0; 64 << 10];
    let (count, mut fds) = net::receive(stdin.as_fd(), &mut text)?;
    let start: Start = serde_json::from_slice(text.get(..count).unwrap_or_default())
        .map_err(|error| Error::invalid(format!("what the resolver was told: {error}")))?;
    if fds.len() < 3 {
        return Err(Error::invalid("the resolver was handed no sockets"));
    }
    if let Forked::Parent(..) = process::fork(Clone3::default())? {
        return Ok(());
    }
    process::new_session()?;
    let null = moat_linux::fs::open(std::path::Path::new("/dev/null"), rustix::fs::OFlags::RDWR)?;
    process::duplicate_to(null.as_fd(), 0)?;
    process::set_name(c"moat-resolver")?;
    give_up_rights()?;
    let lock = File::from(fds.remove(0));
    let store = Store { data: start.data, run: start.run };
    Server { zone: Zone::new(store.clone(), start.network.clone()), store, network: start.network }
        .run(lock, fds)
}

/// It reads files of its own user, and sends; for neither it needs to be anybody special.
fn give_up_rights() -> Result<()> {
    let none = capability::Set(0);
    capability::clear_ambient()?;
    capability::set(none, none, none)?;
    process::set_no_new_privileges()?;
    process::set_dumpable(false)?;
    Ok(())
}

struct Server {
    zone: Zone,
    store: Store,
    network: String,
}

/// What threads share.
type Shared = Arc<(Mutex<Zone>, AtomicUsize)>;

impl Server {
    fn run(self, lock: File, fds: Vec<OwnedFd>) -> Result<()> {
        let mut udp = Vec::new();
        let mut tcp = Vec::new();
        for (index, fd) in fds.into_iter().enumerate() {
            if index % 2 == 0 {
                udp.push(Arc::new(UdpSocket::from(fd)));
            } else {
                tcp.push(TcpListener::from(fd));
            }
        }
        let watch = self.watch()?;
        let shared: Shared = Arc::new((Mutex::new(self.zone), AtomicUsize::new(0)));
        let leaving = Leaving { store: &self.store, network: &self.network, shared: &shared };
        let mut alone: Option<Instant> = None;
        loop {
            let timeout = if shared.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()? {
                let since = alone.get_or_insert_with(Instant::now).elapsed();
                match leaving.may_end(since)? {
                    Stay::Ends(_nobody_joins) => {
                        drop((udp, tcp));
                        drop(lock);
                        return Ok(());
                    }
                    Stay::For(time) => Some(time),
                }
            } else {
                alone = None;
                None
            };
            wait(&watch, &udp, &tcp, timeout)?;
            let mut drained = [0_u8; 4096];
            while rustix::io::read(&watch, &mut drained).is_ok_and(|count| count > 0) {
                // Somebody was there until now.
                alone = None;
            }
            for socket in &udp {
                receive(&shared, socket);
            }
            for listener in &tcp {
                accept(&shared, listener);
            }
        }
    }

    /// Is ready to be read when somebody has left the network, or the network is gone.
    fn watch(&self) -> Result<OwnedFd> {
        let folder = self.store.endpoints(&self.network);
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        let changes = inotify::WatchFlags::DELETE | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, &folder, changes)
            .map_err(std::io::Error::from)
            .context(|| folder.display().to_string())?;
        Ok(watch)
    }
}

/// What a resolver without workloads looks at.
struct Leaving<'a> {
    store: &'a Store,
    network: &'a str,
    shared: &'a Shared,
}

/// Whether it goes on.
enum Stay {
    /// So long, if nothing happens.
    For(Duration),
    /// Not any more; as long as the value is held nobody joins the network.
    Ends(Option<Lock>),
}

impl Leaving<'_> {
    /// Whether it ends, having been alone for some time.
    fn may_end(&self, since: Duration) -> Result<Stay> {
        if !self.store.network_run(self.network).exists() {
            return Ok(Stay::Ends(None));
        }
        if let Some(left) = LINGER.checked_sub(since).filter(|left| !left.is_zero()) {
            return Ok(Stay::For(left));
        }
        // Who waits for an answer of the outside has a hold of a socket.
        if self.shared.1.load(Ordering::Relaxed) > 0 {
            return Ok(Stay::For(AGAIN));
        }
        let Some(nobody_joins) = self.store.try_lock_network(self.network)? else {
            return Ok(Stay::For(AGAIN));
        };
        let empty = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()?;
        Ok(if empty { Stay::Ends(Some(nobody_joins)) } else { Stay::For(Duration::ZERO) })
    }
}

fn wait(
    watch: &OwnedFd,
    udp: &[Arc<UdpSocket>],
    tcp: &[TcpListener],
    timeout: Option<Duration>,
) -> Result<()> {
    let mut polled = vec![PollFd::new(watch, PollFlags::IN)];
    polled.extend(udp.iter().map(|socket| PollFd::new(socket.as_ref(), PollFlags::IN)));
    polled.extend(tcp.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
    let timeout = timeout
        .map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(std::io::Error::from(errno).into()),
    }
}

/// Answers all packets that are there.
fn receive(shared: &Shared, socket: &Arc<UdpSocket>) {
    let mut buffer = vec![0; PACKET_BYTES];
    if socket.set_nonblocking(true).is_err() {
        return;
    }
    while let Ok((count, source)) = socket.recv_from(&mut buffer) {
        let packet = buffer.get(..count).unwrap_or_default();
        match decide(shared, packet, source.ip()) {
            Decision::Answer(answer) => {
                // Who is gone needs no answer.
                let _ = socket.send_to(&answer, source);
            }
            Decision::Ask(servers) => {
                let (socket, packet) = (Arc::clone(socket), packet.to_vec());
                aside(shared, move |_| {
                    let answer = servers.iter().find_map(|server| ask_udp(*server, &packet));
                    let answer = answer.or_else(|| failure(&packet));
                    let _ = answer.map(|answer| socket.send_to(&answer, source));
                });
            }
            Decision::Ignore => {}
        }
    }
}

fn decide(shared: &Shared, packet: &[u8], source: IpAddr) -> Decision {
    let question = match Question::parse(packet) {
        Ok(question) => question,
        Err(answer) => return answer.map_or(Decision::Ignore, Decision::Answer),
    };
    let decided = shared.0.lock().unwrap_or_else(PoisonError::into_inner).decide(&question, source);
    // The state can not be read: that is no answer to pass on.
    decided.unwrap_or_else(|_| failure(packet).map_or(Decision::Ignore, Decision::Answer))
}

/// "Try again", for what the outside did not answer.
fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    Question::parse(packet).ok()?.answer(hickory_proto::op::ResponseCode::ServFail, Vec::new())
}

/// Does something that waits, in a thread; not at all where too many wait already.
fn aside(shared: &Shared, work: impl FnOnce(&Shared) + Send + 'static) {
    if shared.1.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
        shared.1.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let own = Arc::clone(shared);
    let started = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        work(&own);
        own.1.fetch_sub(1, Ordering::Relaxed);
    });
    if started.is_err() {
        shared.1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks a server by UDP, under a number that the client did not choose. An answer that was cut off goes to the client
/// as such, which then asks by TCP.
fn ask_udp(server: IpAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(server, PORT)).ok()?;
    socket.set_read_timeout(Some(SERVER_WAIT)).ok()?;
    let random = crate::networks::random().ok()?;
    let number = random.get(..2)?;
    let mut asked = packet.to_vec();
    asked.get_mut(..2)?.copy_from_slice(number);
    socket.send(&asked).ok()?;
    let mut answer = vec![0; PACKET_BYTES];
    loop {
        let count = socket.recv(&mut answer).ok()?;
        if count >= 12 && answer.get(..2) == Some(number) {
            answer.truncate(count);
            answer.get_mut(..2)?.copy_from_slice(packet.get(..2)?);
            return Some(answer);
        }
    }
}

fn accept(shared: &Shared, listener: &TcpListener) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while let Ok((stream, source)) = listener.accept() {
        aside(shared, move |shared| {
            // The client went, or said what is no question: the connection ends either way.
            let _ = converse(shared, stream, source.ip());
        });
    }
}

/// Answers the questions of one connection, one after another.
fn converse(shared: &Shared, mut stream: TcpStream, source: IpAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT_WAIT))?;
    stream.set_write_timeout(Some(CLIENT_WAIT))?;
    loop {
        let packet = receive_framed(&mut stream)?;
        let answer = match decide(shared, &packet, source) {
            Decision::Answer(answer) => Some(answer),
            Decision::Ask(servers) => {
                let found = servers.iter().find_map(|server| ask_tcp(*server, &packet).ok());
                found.or_else(|| failure(&packet))
            }
            Decision::Ignore => None,
        };
        match answer {
            Some(answer) => send_framed(&mut stream, &answer)?,
            None => return Ok(()),
        }
    }
}

fn ask_tcp(server: IpAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, PORT), SERVER_WAIT)?;
    stream.set_read_timeout(Some(SERVER_WAIT))?;
    stream.set_write_timeout(Some(SERVER_WAIT))?;
    send_framed(&mut stream, packet)?;
    receive_framed(&mut stream)
}

fn receive_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet)?;
    Ok(packet)
}

fn send_framed(stream: &mut TcpStream, packet: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(packet);
    stream.write_all(&framed)
}
