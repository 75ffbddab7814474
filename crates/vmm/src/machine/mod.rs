//! A machine: everything between a specification and a guest that runs.

mod devices;
pub mod dump;
pub(crate) mod files;
mod saved;
pub mod stdio;
mod timeline;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use moat_model::vmm::{FlatMode, MachineSpec};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use devices::{SerialPort, Virtio};
pub use timeline::Timeline;

use crate::boot::{self, Entry, Hardware, Payload};
use crate::bus::Bus;
use crate::exits::ExitReport;
use crate::isolation::{self, Paths, Thread};
use crate::kvm::cpuid::{CpuidSpec, Leaves};
use crate::kvm::{Kvm, Vcpu, Vm, hardware_virtualization};
use crate::lock::lock;
use crate::memory::{Memory, MemorySpec};
use crate::processor::{Ending, Processors, Surroundings};
use crate::symbols::Symbols;
use crate::walk::{Walk, walk_of};
use crate::{Context, Error, Result};

/// The most processors.
pub const MOST_CPUS: u8 = 32;
/// Where a flat image in real mode starts.
const FLAT_REAL: u16 = 0x1000;
/// Where a flat image in 64-bit mode starts.
const FLAT_LONG: u64 = 0x10_0000;

/// The inherited descriptor that `fd:N` names.
pub fn inherited(name: &str) -> Result<OwnedFd> {
    files::inherited(name)?.ok_or_else(|| Error::new(format!("{name:?} is not of the form fd:N")))
}

/// Opens a folder by path or as `fd:N`.
pub fn open_folder(name: &str) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    match files::inherited(name)? {
        Some(folder) => Ok(folder),
        None => Ok(rustix::fs::open(name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?),
    }
}

/// A machine with its guest.
pub struct Machine {
    spec: MachineSpec,
    // Dropped first: the threads use all that follows.
    processors: Processors,
    bus: Arc<Bus>,
    pub(crate) virtio: Vec<Virtio>,
    pub(crate) serial: Option<Arc<Mutex<SerialPort>>>,
    generation: EventFd,
    ending: Arc<Ending>,
    console_ends: Vec<OwnedFd>,
    symbols: Option<Arc<Symbols>>,
    memory: Memory,
    vm: Vm,
    kvm: Kvm,
    paths: Paths,
}

impl Machine {
    /// Opens all files, makes all parts and loads the guest, which does not run yet. Afterwards the process
    /// reaches no path but beneath `folders`.
    pub fn new(spec: MachineSpec, folders: &[BorrowedFd<'_>], timeline: &mut Timeline) -> Result<Self> {
        check(&spec)?;
        let mut kernel = files::open("kernel", &spec.kernel)?;
        let mut initrd =
            spec.initrd.as_ref().map(|name| files::open("initial file system", name)).transpose()?;
        if spec.flat.is_none() {
            boot::format(&kernel).context(|| format!("kernel {}", spec.kernel))?;
            runnable()?;
        }
        timeline.mark("open files");
        let memory_spec = MemorySpec { size_bytes: spec.memory_bytes, hugepages: spec.hugepages };
        let memory = Memory::new(memory_spec)?;
        timeline.mark("guest memory");
        let (kvm, vm) = create_vm(&memory, spec.kvm.as_deref())?;
        timeline.mark("VM, memory slots, interrupt controllers");
        let vcpus = create_vcpus(&spec, &kvm, &vm)?;
        timeline.mark("virtual processors");
        let entry = match spec.flat {
            Some(mode) => {
                let entry = match mode {
                    FlatMode::Real => Entry::Real { address: FLAT_REAL },
                    FlatMode::Long => Entry::Long { address: FLAT_LONG, zero_page: 0 },
                };
                boot::load_flat(&memory, &mut kernel, entry)
            }
            None => {
                let hardware = Hardware {
                    cpus: spec.cpus,
                    virtio_devices: devices::virtio_devices(&spec)?,
                    serial: spec.serial,
                };
                let payload = Payload {
                    kernel: &mut kernel,
                    initrd: initrd.as_mut(),
                    command_line: &spec.command_line,
                };
                boot::load(&memory, payload, hardware)
            }
        };
        let entry = entry.context(|| format!("kernel {}", spec.kernel))?;
        timeline.mark("load the guest");
        if let Some(first) = vcpus.first() {
            entry.apply(first, memory.guest())?;
        }
        saved::new_generation(&memory)?;
        Self::assemble(spec, memory, kvm, vm, vcpus, folders, timeline)
    }

    /// Puts devices and threads to a VM whose memory and processors are there.
    fn assemble(
        spec: MachineSpec,
        memory: Memory,
        kvm: Kvm,
        vm: Vm,
        vcpus: Vec<Vcpu>,
        folders: &[BorrowedFd<'_>],
        timeline: &mut Timeline,
    ) -> Result<Self> {
        let symbols = match &spec.symbols {
            Some(name) => Some(Arc::new(Symbols::read(files::open("symbols", name)?)?)),
            None => None,
        };
        let ending = Arc::new(Ending::new()?);
        let devices = devices::build(&spec, &vm, &memory, &ending)?;
        timeline.mark("devices");
        let bus = Arc::new(devices.bus);
        let around =
            Surroundings { bus: Arc::clone(&bus), ending: Arc::clone(&ending), symbols: symbols.clone() };
        // From here on nothing is opened by its path but beneath folders that are open: threads inherit that.
        let sockets = spec.vsock.as_ref().map(|vsock| files::folder_of(&vsock.socket)).transpose()?;
        let mut folders = folders.to_vec();
        folders.extend(sockets.as_ref().map(AsFd::as_fd));
        let paths = isolation::give_up_paths(&folders)?;
        let filter = Arc::new(isolation::filter(Thread::Processor)?);
        timeline.mark("giving up paths, the filters");
        let processors = Processors::new(vcpus, &around, move || {
            moat_linux::thread::unblock_interrupts()?;
            isolation::enter(&filter)
        })?;
        timeline.mark("threads");
        let (virtio, serial, generation) = (devices.virtio, devices.serial, devices.generation);
        let console_ends = devices.console_ends;
        Ok(Self {
            spec,
            processors,
            bus,
            virtio,
            serial,
            generation,
            ending,
            console_ends,
            symbols,
            memory,
            vm,
            kvm,
            paths,
        })
    }

    /// What it was made from.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.processors.resume();
    }

    /// Stops the guest between two instructions.
    pub fn pause(&self) -> Result<()> {
        self.processors.pause()
    }

    /// Ends the threads.
    pub fn stop(&mut self) -> Result<()> {
        self.processors.stop()
    }

    /// Where the guest's end is told.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Whether the kernel enforces that there are no paths any more.
    pub fn paths(&self) -> Paths {
        self.paths
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The way of an address, as the processor `vcpu` would go, which must stand still.
    pub fn walk(&self, vcpu: u64, linear: u64) -> Result<Walk> {
        let found = usize::try_from(vcpu).ok().and_then(|index| self.processors.vcpus().nth(index));
        let vcpu = found.ok_or_else(|| Error::new(format!("there is no virtual processor {vcpu}")))?;
        walk_of(&lock(vcpu), &self.memory, linear)
    }

    /// What was counted so far.
    pub fn exits(&self) -> Result<ExitReport> {
        let name = |place| self.symbols.as_ref().and_then(|symbols| symbols.name(place)).map(str::to_owned);
        let mut report = ExitReport::new(self.processors.exit_logs(), self.bus.names(), name);
        for statistics in self.processors.statistics() {
            for statistic in statistics.read()? {
                // Histograms are of no use summed up.
                if let [value] = statistic.values[..] {
                    *report.kvm.entry(statistic.name).or_default() += value;
                }
            }
        }
        for statistic in self.vm.statistics()?.read()? {
            if let [value] = statistic.values[..] {
                report.kvm.insert(statistic.name, value);
            }
        }
        Ok(report)
    }

    /// The descriptors of the console's ends, to be watched.
    pub(crate) fn console_ends(&self) -> &[OwnedFd] {
        &self.console_ends
    }
}

fn check(spec: &MachineSpec) -> Result<()> {
    if !(1..=MOST_CPUS).contains(&spec.cpus) {
        return Err(Error::new(format!("{} virtual processors are not 1 to {MOST_CPUS}", spec.cpus)));
    }
    devices::virtio_devices(spec).map(drop)
}

/// Whether a stock kernel runs here.
fn runnable() -> Result<()> {
    if hardware_virtualization() {
        return Ok(());
    }
    Err(Error::new(
        "this host's KVM has no hardware virtualization (the processor shows neither VMX nor SVM): it interprets \
         guests instruction by instruction, and a kernel would not finish booting",
    )
    .hint("use a host with VMX or SVM, or let this machine's own host pass it on; only flat test images run here"))
}

/// A VM with memory, interrupt controllers and filter, in the order that is fastest.
fn create_vm(memory: &Memory, kvm: Option<&str>) -> Result<(Kvm, Vm)> {
    let kvm = match kvm.map(files::inherited).transpose()? {
        None => Kvm::open()?,
        Some(Some(fd)) => Kvm::from_fd(fd)?,
        Some(None) => return Err(Error::new("--kvm takes an inherited descriptor").hint("it is fd:N")),
    };
    let mut vm = kvm.create_vm()?;
    vm.set_memory(memory)?;
    vm.filter_msrs()?;
    vm.create_chips()?;
    Ok((kvm, vm))
}

fn create_vcpus(spec: &MachineSpec, kvm: &Kvm, vm: &Vm) -> Result<Vec<Vcpu>> {
    let leaves = Leaves::new(kvm, CpuidSpec { cpus: spec.cpus, nested: spec.nested })?;
    let mut vcpus = Vec::new();
    for index in 0..spec.cpus {
        let vcpu = vm.create_vcpu(index)?;
        vcpu.set_cpuid(&leaves.of(index)?)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
