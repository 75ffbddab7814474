//! The guest beneath the third-party drivers: memory of which they know addresses only, and the registers of
//! one device.
#![allow(dead_code, reason = "several test programs use parts of this")]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use moat_vmm::device::{BusDevice, InterruptLine};
use moat_vmm::virtio::mmio::{self, register};
use moat_vmm::virtio::{Memory, VirtioDevice};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MEMORY_BYTES: usize = 256 << 20;

/// A device as this process has it.
pub(crate) type Local<D> = Arc<Mutex<mmio::Transport<D>>>;

/// Where a device's registers are reached.
pub(crate) trait Window {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);

    /// The driver has notified, and will look at memory until the device is done.
    fn notified(&self) {}
}

impl<D: VirtioDevice> Window for Local<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap().write(offset, data);
    }

    fn notified(&self) {
        // Nobody runs the event loop meanwhile.
        self.lock().unwrap().drain();
    }
}

/// The memory of this thread's guest, and how much of it is given away. Nothing is given twice.
struct Ram {
    memory: Memory,
    next: u64,
}

thread_local! {
    static RAM: RefCell<Ram> = RefCell::new(Ram {
        memory: Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()),
        next: PAGE_SIZE as u64,
    });
}

pub(crate) fn memory() -> Memory {
    RAM.with_borrow(|ram| Arc::clone(&ram.memory))
}

/// From now on this thread's guest has this memory, free from `first` on.
pub(crate) fn adopt(memory: Memory, first: u64) {
    RAM.set(Ram { memory, next: first });
}

fn take(bytes: usize, alignment: u64) -> u64 {
    RAM.with_borrow_mut(|ram| {
        let start = ram.next.next_multiple_of(alignment);
        ram.next = start + bytes as u64;
        assert!(ram.memory.address_in_range(GuestAddress(ram.next)), "the guest's memory is used up");
        start
    })
}

pub(crate) struct Ground;

// SAFETY: addresses are of memory that is mapped as long as the thread lives, aligned and zeroed by the
// kernel, and given to one caller only.
unsafe impl Hal for Ground {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let address = take(pages * PAGE_SIZE, PAGE_SIZE as u64);
        let start = memory().get_host_address(GuestAddress(address)).unwrap();
        (address, NonNull::new(start).unwrap())
    }

    unsafe fn dma_dealloc(_address: PhysAddr, _start: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("only PCI asks for this")
    }

    // What is shared is a copy in the guest's memory, so a device that reads or writes beside it is found.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let address = take(buffer.len(), 16);
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller promises a valid buffer that nobody else uses during this call.
            let bytes = unsafe { buffer.as_ref() };
            memory().write_slice(bytes, GuestAddress(address)).unwrap();
        }
        address
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as above.
            let bytes = unsafe { buffer.as_mut() };
            memory().read_slice(bytes, GuestAddress(address)).unwrap();
        }
    }
}

pub(crate) struct NoLine;

impl InterruptLine for NoLine {
    fn trigger(&self) {}
}

/// A device's registers, seen from the driver.
pub(crate) struct Registers<W>(pub(crate) W);

impl<D: VirtioDevice> Registers<Local<D>> {
    pub(crate) fn new(device: D) -> Self {
        Self(Arc::new(Mutex::new(mmio::Transport::new(device, memory(), Arc::new(NoLine)))))
    }

    /// For the test, which plays the event loop.
    pub(crate) fn shared(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Window> Registers<W> {
    fn read(&self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.0.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    fn write(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

impl<W: Window> Transport for Registers<W> {
    fn device_type(&self) -> DeviceType {
        assert_eq!((self.read(register::MAGIC_VALUE), self.read(register::VERSION)), (0x7472_6976, 2));
        self.read(register::DEVICE_ID).try_into().unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 0);
        let low = self.read(register::DEVICE_FEATURES);
        self.write(register::DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(register::DEVICE_FEATURES)) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for word in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, word);
            self.write(register::DRIVER_FEATURES, (features >> (word * 32)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(register::QUEUE_SEL, queue.into());
        self.read(register::QUEUE_NUM_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
        self.0.notified();
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(register::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.write(register::STATUS, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, table: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.write(register::QUEUE_SEL, queue.into());
        self.write(register::QUEUE_NUM, size);
        self.write64(register::QUEUE_DESC_LOW, table);
        self.write64(register::QUEUE_DRIVER_LOW, driver);
        self.write64(register::QUEUE_DEVICE_LOW, device);
        self.write(register::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.write(register::QUEUE_SEL, queue.into());
        self.write(register::QUEUE_READY, 0);
        assert_eq!(self.read(register::QUEUE_READY), 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(register::QUEUE_SEL, queue.into());
        self.read(register::QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, status);
        InterruptStatus::from_bits_retain(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.read(register::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.0.read(register::CONFIG + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.0.write(register::CONFIG + offset as u64, value.as_bytes());
        Ok(())
    }
}
