//! Devices: from a specification to windows on the bus, doorbells, interrupt lines and watched descriptors.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use moat_model::vmm::{DiskSpec, LimitSpec, MachineSpec, NetSpec, PortSpec, VsockSpec};
use vmm_sys_util::eventfd::EventFd;

use super::files;
use super::stdio::Stdio;
use crate::backend::{FdStream, FileDisk, OsEntropy, Tap, UnixVsock, UringDisk};
use crate::boot::layout;
use crate::bus::Bus;
use crate::device::i8042::I8042;
use crate::device::power::Power;
use crate::device::serial::Serial;
use crate::device::{BusDevice, InterruptLine, Stream};
use crate::kvm::{Doorbell, Space, Vm};
use crate::lock::lock;
use crate::memory::Memory;
use crate::processor::{End, Ending};
use crate::rate_limit::{RateLimit, RateLimitSpec};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, BlockOptions, MOST_QUEUES};
use crate::virtio::console::{Console, MOST_PORTS, NAME_BYTES, PortOptions};
use crate::virtio::mmio::{Transport, register};
use crate::virtio::net::{MOST_PAIRS, Net, NetOptions};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, FIRST_GUEST_CID, Vsock};
use crate::{Context, Error, Result};

/// A virtio device's registers, whatever the device is.
pub(super) type VirtioTransport = Transport<Box<dyn VirtioDevice>>;

/// A descriptor whose readiness a device waits for.
pub(crate) struct Watch {
    pub(crate) fd: OwnedFd,
    pub(crate) token: u64,
}

/// A virtio device in its place.
pub(crate) struct Virtio {
    pub(crate) name: String,
    pub(crate) transport: Arc<Mutex<VirtioTransport>>,
    pub(crate) line: Arc<dyn InterruptLine>,
    /// One for each queue; none when notifications are to be exits.
    pub(crate) doorbells: Vec<EventFd>,
    pub(crate) watches: Vec<Watch>,
    /// Readable when a processor's access may have changed the time at which the device wants to be woken.
    pub(crate) touched: EventFd,
}

/// A device before it has a place.
struct Part {
    name: String,
    device: Box<dyn VirtioDevice>,
    watches: Vec<Watch>,
}

/// The serial port over the monitor's standard input and output.
pub(crate) type SerialPort = Serial<Line, Stdio>;

/// What is on the bus and beside it.
pub(super) struct Devices {
    pub(super) bus: Bus,
    pub(super) virtio: Vec<Virtio>,
    pub(super) serial: Option<Arc<Mutex<SerialPort>>>,
    /// Descriptors of the serial port's two ends.
    pub(super) console_ends: Vec<OwnedFd>,
    /// The line of the event device that tells of a new generation id.
    pub(super) generation: EventFd,
}

/// A wire to an input of the guest's interrupt controller.
#[derive(Debug)]
pub(crate) struct Line(EventFd);

impl InterruptLine for Line {
    fn trigger(&self) {
        // The counter can not overflow: the kernel takes it at every change.
        let _ = self.0.write(1);
    }
}

/// The wire that resets the machine.
struct ResetLine(Arc<Ending>);

impl InterruptLine for ResetLine {
    fn trigger(&self) {
        self.0.tell(End::Reset);
    }
}

/// A device's registers on the bus. What a processor does there can change when the device wants to be
/// woken, so the event loop is told.
struct Registers {
    transport: Arc<Mutex<VirtioTransport>>,
    touched: EventFd,
}

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.transport).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut transport = lock(&self.transport);
        let faults = transport.lifecycle().faults();
        transport.write(offset, data);
        // A fault is to be told.
        if transport.wake_at().is_some() || transport.lifecycle().faults() != faults {
            // As for a line.
            let _ = self.touched.write(1);
        }
    }
}

pub(super) fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context(|| "event descriptor")
}

fn line(vm: &Vm, number: u32) -> Result<Line> {
    let event = event()?;
    vm.add_interrupt(&event, number)?;
    Ok(Line(event))
}

/// Makes all devices of a machine.
pub(super) fn build(spec: &MachineSpec, vm: &Vm, memory: &Memory, ending: &Arc<Ending>) -> Result<Devices> {
    let mut bus = Bus::default();
    let power = Arc::new(Mutex::new(Power::new(Arc::clone(ending))));
    bus.add(Space::Port, layout::POWER_PORT.into(), layout::POWER_PORTS.into(), "power", power);
    let keyboard = Arc::new(Mutex::new(I8042::new(ResetLine(Arc::clone(ending)))));
    bus.add(Space::Port, layout::KEYBOARD_PORT.into(), layout::KEYBOARD_PORTS.into(), "i8042", keyboard);
    let (mut serial, mut console_ends) = (None, Vec::new());
    if spec.serial {
        let stdio = Stdio::new()?;
        console_ends = stdio.clone_ends()?;
        let port = Arc::new(Mutex::new(Serial::new(line(vm, layout::SERIAL_LINE)?, stdio)));
        let (start, count) = (layout::SERIAL_PORT.into(), layout::SERIAL_PORTS.into());
        bus.add(Space::Port, start, count, "serial", Arc::clone(&port) as Arc<Mutex<dyn BusDevice>>);
        serial = Some(port);
    }
    let mut virtio = Vec::new();
    for (place, part) in (0..).zip(parts(spec)?) {
        virtio.push(place_on_bus(place, part, spec.doorbells, vm, memory, &mut bus)?);
    }
    let Line(generation) = line(vm, layout::EVENT_LINE)?;
    Ok(Devices { bus, virtio, serial, console_ends, generation })
}

/// How many virtio devices a specification asks for; each has an interrupt line of its own.
pub(super) fn virtio_devices(spec: &MachineSpec) -> Result<u8> {
    let most = layout::INTERRUPT_LINES - layout::FIRST_VIRTIO_LINE;
    let count = spec.disks.len()
        + spec.nets.len()
        + [spec.vsock.is_some(), spec.rng, has_console(spec)].iter().filter(|on| **on).count();
    match u8::try_from(count) {
        Ok(count) if u32::from(count) <= most => Ok(count),
        _ => Err(Error::new(format!("the machine has {count} virtio devices, and there is room for {most}"))),
    }
}

fn limit(spec: LimitSpec) -> RateLimit {
    RateLimit::new(RateLimitSpec {
        bytes_per_s: spec.bytes_per_second,
        operations_per_s: spec.operations_per_second,
        burst_ms: BURST_MS,
    })
}

/// A rested device may do at once what it may do in this time.
const BURST_MS: u32 = 100;

fn parts(spec: &MachineSpec) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (number, disk) in spec.disks.iter().enumerate() {
        let name = format!("disk{number}");
        let part = block(name, disk).context(|| format!("disk {}", disk.file));
        parts.push(part?);
    }
    for (number, net) in spec.nets.iter().enumerate() {
        let part = card(format!("net{number}"), net).context(|| format!("network card on {}", net.tap));
        parts.push(part?);
    }
    if let Some(vsock) = &spec.vsock {
        parts.push(sockets(vsock)?);
    }
    if has_console(spec) {
        parts.push(console(spec)?);
    }
    if spec.rng {
        let device = Box::new(Rng::new(OsEntropy, RateLimit::none()));
        parts.push(Part { name: "rng".to_owned(), device, watches: Vec::new() });
    }
    Ok(parts)
}

fn has_console(spec: &MachineSpec) -> bool {
    spec.console || !spec.ports.is_empty()
}

/// The console: the terminal first, if there is one, then the named ports.
fn console(spec: &MachineSpec) -> Result<Part> {
    let mut ports: Vec<(Box<dyn Stream>, PortOptions)> = Vec::new();
    let mut watches = Vec::new();
    if spec.console {
        let stdio = Stdio::new()?;
        watches.extend(stdio.clone_ends()?.into_iter().map(|fd| Watch { fd, token: 0 }));
        ports.push((Box::new(stdio), PortOptions { name: String::new(), console: true }));
    }
    for PortSpec { name, file } in &spec.ports {
        if !(1..=NAME_BYTES).contains(&name.len()) {
            return Err(Error::new(format!("port {name:?}: a name has 1 to {NAME_BYTES} bytes")));
        }
        let channel = files::open_channel(file).context(|| format!("port {name} on {file}"))?;
        let token = ports.len() as u64;
        watches.push(Watch { fd: channel.try_clone()?, token });
        let stream = FdStream::new(Some(channel.try_clone()?), Some(channel));
        ports.push((Box::new(stream), PortOptions { name: name.clone(), console: false }));
    }
    if ports.len() > usize::from(MOST_PORTS) {
        return Err(Error::new(format!("{} ports are more than a console's {MOST_PORTS}", ports.len())));
    }
    Ok(Part { name: "console".to_owned(), device: Box::new(Console::new(ports)), watches })
}

fn block(name: String, spec: &DiskSpec) -> Result<Part> {
    let file = files::open_disk(&spec.file, spec.read_only)?;
    if spec.id.len() > 20 {
        return Err(Error::new(format!("its id {:?} is longer than 20 bytes", spec.id)));
    }
    if !(1..=MOST_QUEUES).contains(&spec.queues) {
        return Err(Error::new(format!("{} queues are not 1 to {MOST_QUEUES}", spec.queues)));
    }
    let options = BlockOptions {
        read_only: spec.read_only,
        serial: spec.id.clone(),
        queues: spec.queues,
        limit: limit(spec.limit),
    };
    // io_uring is forbidden in many sandboxes; plain calls do the same.
    let ring = if spec.plain { None } else { UringDisk::new(clone(&file)?).ok() };
    Ok(match ring {
        Some(disk) => {
            let fd = disk.event_fd().try_clone()?;
            let watches = vec![Watch { fd, token: 0 }];
            Part { name, device: Box::new(Block::new(disk, options)), watches }
        }
        None => {
            Part { name, device: Box::new(Block::new(FileDisk::new(file)?, options)), watches: Vec::new() }
        }
    })
}

fn card(name: String, spec: &NetSpec) -> Result<Part> {
    if !(1..=MOST_PAIRS).contains(&spec.queue_pairs) {
        return Err(Error::new(format!("{} pairs of queues are not 1 to {MOST_PAIRS}", spec.queue_pairs)));
    }
    let taps = match files::inherited(&spec.tap)? {
        Some(_) if spec.queue_pairs > 1 => {
            return Err(Error::new("an inherited descriptor is one pair of queues, not more"));
        }
        Some(fd) => {
            // What is inherited is this machine's alone, so the flag is nobody else's.
            rustix::io::ioctl_fionbio(&fd, true)?;
            vec![Tap::from_fd(fd, false)]
        }
        None => Tap::open(&spec.tap, spec.queue_pairs)?,
    };
    let mut watches = Vec::new();
    for (tap, token) in taps.iter().zip(0..) {
        watches.push(Watch { fd: tap.as_fd().try_clone_to_owned()?, token });
    }
    let options = NetOptions {
        mac: match spec.mac {
            Some(mac) => mac.0,
            None => random_mac()?,
        },
        received: limit(spec.limit),
        sent: limit(spec.limit),
        mtu: 0,
    };
    Ok(Part { name, device: Box::new(Net::new(taps, options)), watches })
}

/// An address of nobody's: the bit for local administration is set, that for groups is not.
fn random_mac() -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

fn sockets(spec: &VsockSpec) -> Result<Part> {
    if u64::from(spec.cid) < FIRST_GUEST_CID || spec.cid == u32::MAX {
        return Err(Error::new(format!(
            "vsock: address {} is not {FIRST_GUEST_CID} to {}",
            spec.cid,
            u32::MAX - 1
        )));
    }
    let host = UnixVsock::bind(Path::new(&spec.socket))?;
    let watches = vec![Watch { fd: host.event_fd().try_clone()?, token: vsock::HOST }];
    Ok(Part { name: "vsock".to_owned(), device: Box::new(Vsock::new(host, spec.cid.into())), watches })
}

fn clone(file: &File) -> Result<File> {
    file.try_clone().context(|| files::describe(file))
}

/// Gives a device its window, its line and its doorbells.
fn place_on_bus(
    place: u8,
    part: Part,
    with_doorbells: bool,
    vm: &Vm,
    memory: &Memory,
    bus: &mut Bus,
) -> Result<Virtio> {
    let Part { name, device, watches } = part;
    let base = layout::VIRTIO + u64::from(place) * layout::VIRTIO_BYTES;
    let line: Arc<dyn InterruptLine> = Arc::new(line(vm, layout::FIRST_VIRTIO_LINE + u32::from(place))?);
    let queues = device.queue_sizes().len();
    let mut doorbells = Vec::new();
    for queue in (0..queues as u32).filter(|_| with_doorbells) {
        let bell = event()?;
        let address = base + register::QUEUE_NOTIFY;
        vm.add_doorbell(&bell, Doorbell { address, value: Some(queue) })?;
        doorbells.push(bell);
    }
    let transport =
        Arc::new(Mutex::new(Transport::new(device, Arc::clone(memory.guest()), Arc::clone(&line))));
    let touched = event()?;
    let registers = Registers {
        transport: Arc::clone(&transport),
        touched: touched.try_clone().context(|| "event descriptor")?,
    };
    bus.add(Space::Memory, base, layout::VIRTIO_BYTES, &name, Arc::new(Mutex::new(registers)));
    Ok(Virtio { name, transport, line, doorbells, watches, touched })
}
