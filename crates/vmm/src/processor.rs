//! The virtual processors: one thread each, and the gate at which they all wait while the machine is paused.
//!
//! ```text
//!            start              pause                 resume
//! Waiting ----------> Running ----------> Parked ----------------> Running
//!                        |  the guest ends, or `stop`
//!                        +----------------------------> gone
//! ```
//!
//! A thread holds its processor only while it runs the guest. Parked, it has let go, and whoever paused the
//! machine may lock the processor to look at it, save it or restore it.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use moat_linux::kvm::Statistics;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::exits::ExitLog;
use crate::kvm::{Kick, Vcpu, VmEntry, VmExit};
use crate::lock::lock;
use crate::symbols::Symbols;
use crate::{Context, Error, Result};

/// Why the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched its machine off, with an exit code if it gave one.
    PowerOff(u8),
    /// It asked for a reset, which ends this monitor: whoever started it starts it again.
    Reset,
    /// A processor faulted while it handled a double fault. This one, at this instruction.
    TripleFault(String),
    /// The monitor could not go on.
    Failed(Error),
}

/// Where the end of the guest is told, by devices and processors. The first one counts.
#[derive(Debug)]
pub struct Ending {
    end: Mutex<Option<End>>,
    event: EventFd,
}

impl Ending {
    /// Nothing has ended yet.
    pub fn new() -> Result<Self> {
        let event =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context(|| "event of the guest's end")?;
        Ok(Self { end: Mutex::new(None), event })
    }

    /// Tells the end.
    pub fn tell(&self, end: End) {
        lock(&self.end).get_or_insert(end);
        // The counter can not overflow: it is read at its first change.
        let _ = self.event.write(1);
    }

    /// The end, once it was told.
    pub fn told(&self) -> Option<End> {
        lock(&self.end).clone()
    }

    /// Readable when the end was told.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct GateState {
    wanted: Wanted,
    /// How many threads wait here, or are gone.
    parked: usize,
}

/// The gate at which all processors wait.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    fn wants_run(&self) -> bool {
        lock(&self.state).wanted == Wanted::Run
    }

    /// Waits until the guest shall run; false when it shall not any more.
    fn pass(&self) -> bool {
        let mut state = lock(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while state.wanted == Wanted::Pause {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let run = state.wanted == Wanted::Run;
        if run {
            state.parked -= 1;
        }
        run
    }

    /// A thread is gone.
    fn leave(&self) {
        lock(&self.state).parked += 1;
        self.changed.notify_all();
    }

    fn want(&self, wanted: Wanted) {
        lock(&self.state).wanted = wanted;
        self.changed.notify_all();
    }

    fn wait_parked(&self, count: usize) {
        let mut state = lock(&self.state);
        while state.parked < count {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// One processor.
struct Processor {
    vcpu: Arc<Mutex<Vcpu>>,
    kick: Arc<Kick>,
    exits: Arc<ExitLog>,
    statistics: Statistics,
    thread: Option<JoinHandle<()>>,
}

/// What the threads share.
#[derive(Clone)]
pub struct Surroundings {
    /// The devices.
    pub bus: Arc<Bus>,
    /// Where the end is told.
    pub ending: Arc<Ending>,
    /// The guest's symbols, if exits are to be told by them.
    pub symbols: Option<Arc<Symbols>>,
}

/// All processors of a machine.
pub struct Processors {
    all: Vec<Processor>,
    gate: Arc<Gate>,
}

impl Processors {
    /// Starts the threads, which wait at the gate. `prepare` runs first on each thread.
    pub fn new(
        vcpus: Vec<Vcpu>,
        around: &Surroundings,
        prepare: impl Fn() -> Result<()> + Clone + Send + 'static,
    ) -> Result<Self> {
        moat_linux::thread::allow_interrupts()?;
        let state = Mutex::new(GateState { wanted: Wanted::Pause, parked: 0 });
        let gate = Arc::new(Gate { state, changed: Condvar::new() });
        let mut all = Vec::new();
        for vcpu in vcpus {
            let (index, kick) = (vcpu.index(), Arc::new(vcpu.kick()?));
            let statistics = vcpu.statistics()?;
            let (vcpu, exits) = (Arc::new(Mutex::new(vcpu)), Arc::new(ExitLog::default()));
            let worker = Worker {
                vcpu: Arc::clone(&vcpu),
                kick: Arc::clone(&kick),
                exits: Arc::clone(&exits),
                gate: Arc::clone(&gate),
                around: around.clone(),
            };
            let prepare = prepare.clone();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || worker.live(prepare))
                .context(|| format!("thread of virtual processor {index}"))?;
            all.push(Processor { vcpu, kick, exits, statistics, thread: Some(thread) });
        }
        gate.wait_parked(all.len());
        Ok(Self { all, gate })
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.gate.want(Wanted::Run);
    }

    /// Stops all processors at the end of an instruction; they have let go when this returns.
    pub fn pause(&self) -> Result<()> {
        self.gate.want(Wanted::Pause);
        self.kick_all()?;
        self.gate.wait_parked(self.all.len());
        Ok(())
    }

    /// Ends the threads.
    pub fn stop(&mut self) -> Result<()> {
        self.gate.want(Wanted::Stop);
        self.kick_all()?;
        for processor in &mut self.all {
            if let Some(thread) = processor.thread.take() {
                thread.join().map_err(|_| Error::new("a virtual processor's thread panicked"))?;
            }
        }
        Ok(())
    }

    fn kick_all(&self) -> Result<()> {
        for processor in self.all.iter().filter(|processor| processor.thread.is_some()) {
            match processor.kick.kick() {
                // A thread that has ended by itself needs no kick.
                Err(_) if processor.thread.as_ref().is_some_and(JoinHandle::is_finished) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The processors, for whoever has paused them.
    pub fn vcpus(&self) -> impl Iterator<Item = &Mutex<Vcpu>> {
        self.all.iter().map(|processor| &*processor.vcpu)
    }

    /// Their statistics in the kernel.
    pub fn statistics(&self) -> impl Iterator<Item = &Statistics> {
        self.all.iter().map(|processor| &processor.statistics)
    }

    /// What they counted.
    pub fn exit_logs(&self) -> impl Iterator<Item = &ExitLog> {
        self.all.iter().map(|processor| &*processor.exits)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        // Nobody is left to be told; a thread that can not be stopped ends with the process.
        let _ = self.stop();
    }
}

/// What one thread has.
struct Worker {
    vcpu: Arc<Mutex<Vcpu>>,
    kick: Arc<Kick>,
    exits: Arc<ExitLog>,
    gate: Arc<Gate>,
    around: Surroundings,
}

impl Worker {
    fn live(self, prepare: impl Fn() -> Result<()>) {
        self.kick.adopt();
        if let Err(error) = prepare() {
            self.around.ending.tell(End::Failed(error));
            return self.gate.leave();
        }
        while self.gate.pass() {
            let end = match self.turn() {
                Ok(None) => continue,
                Ok(Some(end)) => end,
                Err(error) => End::Failed(error),
            };
            self.around.ending.tell(end);
            return self.gate.leave();
        }
    }

    /// Runs the guest until it shall pause, or ends.
    fn turn(&self) -> Result<Option<End>> {
        let mut vcpu = lock(&self.vcpu);
        vcpu.clear_kick();
        // Whoever wants a pause says so before it kicks, so a kick that was just cleared is not lost.
        if !self.gate.wants_run() {
            return Ok(None);
        }
        let mut entry = VmEntry::Resume;
        // Only an interrupted entry is a place to stop: before, the kernel has finished the last instruction.
        loop {
            let exit = vcpu.enter(entry)?;
            let began = Instant::now();
            let (next, target) = match exit {
                VmExit::Io { space, address, size, access, .. } => {
                    let (next, target) = self.around.bus.access(space, address, size, access);
                    (next, Some(target))
                }
                VmExit::Msr { .. } => (VmEntry::Fault, None),
                _ => (VmEntry::Resume, None),
            };
            let symbol = match &self.around.symbols {
                Some(symbols) => symbols.place(vcpu.registers()?.rip),
                None => None,
            };
            self.exits.record(&exit, target, symbol, began.elapsed());
            match exit {
                VmExit::Io { .. } | VmExit::Msr { .. } => {}
                VmExit::Interrupted => return Ok(None),
                end => return ended(&vcpu, end).map(Some),
            }
            entry = next;
        }
    }
}

/// Says why the guest ended, with what a person needs to look further.
fn ended(vcpu: &Vcpu, exit: VmExit) -> Result<End> {
    let registers = vcpu.registers()?;
    let system = vcpu.system_registers()?;
    let place = format!(
        "virtual processor {} at {:#x} (CR0 {:#x}, CR2 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x})",
        vcpu.index(),
        registers.rip,
        system.cr0,
        system.cr2,
        system.cr3,
        system.cr4,
        system.efer
    );
    let failed = |what: String| End::Failed(Error::new(format!("{what}: {place}")));
    Ok(match exit {
        VmExit::TripleFault => End::TripleFault(place),
        VmExit::Halted => failed("the guest halted with nothing that could wake it".to_owned()),
        VmExit::EntryFailed(reason) => {
            failed(format!("the processor refused the guest's state ({reason:#x})"))
        }
        VmExit::Internal(suberror) => {
            failed(format!("KVM could not emulate an instruction (suberror {suberror})"))
        }
        // KVM_SYSTEM_EVENT_SHUTDOWN.
        VmExit::SystemEvent(1) => End::PowerOff(0),
        VmExit::SystemEvent(_) => End::Reset,
        other => failed(format!("KVM came out with {other:?}, for which nobody asked")),
    })
}
