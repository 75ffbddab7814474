//! The monitor: one machine, the event loop that serves it, and the control socket.
//!
//! ```text
//!           configure            start               pause
//! Empty ---------------> Ready ---------> Running <----------> Paused
//!                          |                 |        resume     |
//!                          +-----------------+-------- stop -----+---> the monitor ends
//! ```
//!
//! Only this thread changes the state: commands come one after the other out of the event loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use moat_model::vmm::MachineSpec;
use serde::Serialize;

use crate::control::Server;
use crate::event_loop::{EventLoop, Interest, Source};
use crate::isolation::{self, Thread};
use crate::kvm::borrow;
use crate::lock::lock;
use crate::machine::{Machine, Timeline};
use crate::processor::End;
use crate::snapshot::{Saved, Shelf};
use crate::virtio::console::RESIZED;
use crate::virtio::{DeviceType, TIMER, VirtioDevice};
use crate::walk::Walk;
use crate::{Error, Result};

/// Where the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not configured yet.
    Empty,
    /// Made, and the guest has not begun.
    Ready,
    /// The guest runs.
    Running,
    /// The guest waits.
    Paused,
}

/// What a device's driver did wrong is told so often, and then only counted.
const MOST_FAULTS: u32 = 8;

/// What the user is told while the guest runs; the program prints it.
pub type Notices = Box<dyn FnMut(&str) + Send>;

/// The machine and what serves it.
pub struct Monitor {
    pub(crate) machine: Option<Machine>,
    phase: Phase,
    events: EventLoop,
    server: Option<Server>,
    shelf: Option<Shelf>,
    signals: std::os::fd::OwnedFd,
    notices: Notices,
    faults: u32,
    /// The serial port's input is a file, which is always ready and can not be watched.
    always_ready: bool,
    /// This thread is under its filter.
    filtered: bool,
    ended: Option<End>,
}

impl Monitor {
    /// A monitor without a machine. Signals come to its event loop from now on.
    pub fn new(notices: Notices) -> Result<Self> {
        moat_linux::process::block_signals()?;
        let signals = moat_linux::process::signal_descriptor()?;
        let mut events = EventLoop::new()?;
        events.watch(signals.as_fd(), Source::Signal, Interest::Readable)?;
        Ok(Self {
            machine: None,
            phase: Phase::Empty,
            events,
            server: None,
            shelf: None,
            signals,
            notices,
            faults: 0,
            always_ready: false,
            filtered: false,
            ended: None,
        })
    }

    /// Serves the control socket.
    pub fn serve(&mut self, server: Server) -> Result<()> {
        self.events.watch(server.listener(), Source::Control, Interest::Readable)?;
        self.server = Some(server);
        Ok(())
    }

    /// Where the machine stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Makes the machine.
    pub fn configure(&mut self, spec: MachineSpec, timeline: &mut Timeline) -> Result<()> {
        if self.phase != Phase::Empty {
            return Err(Error::new("the machine is configured already"));
        }
        let machine = Machine::new(spec, &self.folders(), timeline)?;
        self.adopt(machine, Phase::Ready)
    }

    /// Takes a machine that was made, and watches what it has.
    pub(crate) fn adopt(&mut self, machine: Machine, phase: Phase) -> Result<()> {
        let events = &mut self.events;
        events.watch(borrow(machine.ending().event()), Source::Ended, Interest::Readable)?;
        for (device, virtio) in machine.virtio.iter().enumerate() {
            for (queue, bell) in (0..).zip(&virtio.doorbells) {
                events.watch(borrow(bell), Source::Doorbell { device, queue }, Interest::Edge)?;
            }
            for watch in &virtio.watches {
                let source = Source::Backend { device, token: watch.token };
                events.watch(watch.fd.as_fd(), source, Interest::Edge)?;
            }
            events.watch(borrow(&virtio.touched), Source::Touched { device }, Interest::Edge)?;
        }
        for end in machine.console_ends() {
            self.always_ready |= !events.watch(end.as_fd(), Source::Serial, Interest::Edge)?;
        }
        self.machine = Some(machine);
        self.phase = phase;
        self.prime();
        Ok(())
    }

    /// What this process needs of the file system while the guest runs.
    fn folders(&self) -> Vec<BorrowedFd<'_>> {
        let server = self.server.as_ref().and_then(Server::folder);
        self.shelf.iter().map(Shelf::folder).chain(server).collect()
    }

    /// The machine, once there is one.
    pub fn machine(&self) -> Result<&Machine> {
        self.machine.as_ref().ok_or_else(|| Error::new("the machine is not configured yet"))
    }

    /// Lets the guest begin, or go on.
    pub fn resume(&mut self) -> Result<()> {
        self.machine()?;
        if self.phase == Phase::Running {
            return Err(Error::new("the guest runs already"));
        }
        if !self.filtered {
            moat_linux::thread::unblock_interrupts()?;
            isolation::enter(&isolation::filter(Thread::Main)?)?;
            self.filtered = true;
        }
        let machine = self.machine()?;
        for virtio in &machine.virtio {
            lock(&virtio.transport).resume();
        }
        machine.resume();
        self.phase = Phase::Running;
        Ok(())
    }

    /// Lets the guest wait.
    pub fn pause(&mut self) -> Result<()> {
        if self.phase != Phase::Running {
            return Err(Error::new("the guest does not run"));
        }
        self.machine()?.pause()?;
        self.phase = Phase::Paused;
        Ok(())
    }

    /// How often a driver did what it may not.
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// Looks at the machine while its guest waits, which runs again afterwards if it did before.
    pub fn while_paused<T>(&mut self, look: impl FnOnce(&Machine) -> Result<T>) -> Result<T> {
        let ran = self.phase == Phase::Running;
        if ran {
            self.pause()?;
        }
        let seen = self.machine().and_then(look);
        if ran {
            self.resume()?;
        }
        seen
    }

    /// The way of an address, as a processor that does not run would go.
    pub fn walk(&self, vcpu: u64, linear: u64) -> Result<Walk> {
        let machine = self.machine()?;
        if self.phase == Phase::Running {
            return Err(Error::new("the guest runs, and changes its tables").hint("pause it first"));
        }
        machine.walk(vcpu, linear)
    }

    /// Where snapshots go.
    pub fn set_shelf(&mut self, shelf: Shelf) {
        self.shelf = Some(shelf);
    }

    /// Writes a snapshot of the paused machine.
    pub fn snapshot(&self, name: &str) -> Result<()> {
        if self.phase != Phase::Paused {
            return Err(Error::new("only a paused machine gives a snapshot").hint("pause it first"));
        }
        let shelf = self.shelf.as_ref().ok_or_else(|| {
            Error::new("this monitor has no folder for snapshots").hint("start it with --snapshots FOLDER")
        })?;
        let machine = self.machine()?;
        shelf.write(name, machine.save()?, machine.memory())
    }

    /// Makes the machine from a snapshot. Its guest waits.
    pub fn restore(&mut self, saved: Saved, spec: MachineSpec, timeline: &mut Timeline) -> Result<()> {
        if self.phase != Phase::Empty {
            return Err(Error::new("the machine is configured already"));
        }
        let Saved { state, memory, late } = saved;
        let machine = Machine::restore(&state, memory, spec, &self.folders(), timeline)?;
        if let Some(check) = late {
            machine.check_late(check)?;
        }
        self.adopt(machine, Phase::Paused)
    }

    /// Ends the machine, whatever the guest does.
    pub fn stop(&mut self) {
        self.ended.get_or_insert(End::PowerOff(0));
    }

    /// Serves machine and control socket until the guest ends or somebody ends it.
    pub fn run(&mut self) -> Result<End> {
        loop {
            if let Some(end) = self.ended.take() {
                if let Some(machine) = &mut self.machine {
                    machine.stop()?;
                }
                return Ok(end);
            }
            for source in self.events.wait(self.wake_at())? {
                self.serve_source(source)?;
            }
            self.serve_timers();
            self.report_faults();
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let devices = self.machine.iter().flat_map(|machine| &machine.virtio);
        devices.filter_map(|virtio| lock(&virtio.transport).wake_at()).min()
    }

    fn serve_timers(&mut self) {
        let now = Instant::now();
        for virtio in self.machine.iter().flat_map(|machine| &machine.virtio) {
            let mut transport = lock(&virtio.transport);
            if transport.wake_at().is_some_and(|at| at <= now) {
                transport.ready(TIMER);
            }
        }
    }

    /// Tells what drivers did wrong, not oftener than a person wants to read.
    fn report_faults(&mut self) {
        for virtio in self.machine.iter().flat_map(|machine| &machine.virtio) {
            let Some(fault) = lock(&virtio.transport).take_fault() else { continue };
            self.faults = self.faults.saturating_add(1);
            match self.faults {
                ..MOST_FAULTS => (self.notices)(&format!("{}: {fault}", virtio.name)),
                MOST_FAULTS => (self.notices)("further faults of the guest's drivers are not told"),
                _ => {}
            }
        }
    }

    fn serve_source(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Ended => self.ended = self.machine()?.ending().told(),
            Source::Signal => {
                while let Some(signal) = moat_linux::process::next_signal(self.signals.as_fd())? {
                    if [libc::SIGTERM, libc::SIGINT, libc::SIGHUP].contains(&signal) {
                        self.stop();
                    }
                    if signal == libc::SIGWINCH {
                        self.resized();
                    }
                }
            }
            Source::Doorbell { device, queue } => {
                if let Some(virtio) = self.machine()?.virtio.get(device) {
                    lock(&virtio.transport).notify(queue);
                }
            }
            Source::Backend { device, token } => {
                if let Some(virtio) = self.machine()?.virtio.get(device) {
                    lock(&virtio.transport).ready(token);
                }
            }
            // Only the time of the next wake-up, which is asked for before each wait, and faults, which are told after it.
            Source::Touched { .. } => {}
            Source::Serial => {
                if let Some(serial) = &self.machine()?.serial {
                    lock(serial).ready();
                }
            }
            Source::Control => self.accept()?,
            Source::Connection { id } => self.converse(id)?,
        }
        Ok(())
    }

    /// The terminal has another size.
    fn resized(&self) {
        for virtio in self.machine.iter().flat_map(|machine| &machine.virtio) {
            let mut transport = lock(&virtio.transport);
            if transport.lifecycle().device().device_type() == DeviceType::Console {
                transport.ready(RESIZED);
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        while let Some((id, stream)) = server.accept()? {
            self.events.watch(stream, Source::Connection { id }, Interest::Readable)?;
            if let Some(id) = server.make_room() {
                self.events.forget(Source::Connection { id });
            }
        }
        Ok(())
    }

    /// Lets a connection read, answer and write.
    fn converse(&mut self, id: u64) -> Result<()> {
        // The server is put aside, so that a request may use the rest of the monitor.
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let source = Source::Connection { id };
        let state = server.converse(id, |request| crate::control::answer(self, request));
        match state {
            Some((stream, interest)) => self.events.rewatch(stream, source, interest)?,
            None => self.events.forget(source),
        }
        self.server = Some(server);
        Ok(())
    }

    /// The serial port's first look at an input that can not be watched.
    fn prime(&self) {
        if self.always_ready
            && let Some(serial) = self.machine.as_ref().and_then(|machine| machine.serial.as_ref())
        {
            lock(serial).ready();
        }
    }
}
