//! What a driver did that no driver may do.

use thiserror::Error;

/// Why a device stopped serving its driver: it sets DEVICE_NEEDS_RESET and waits for a reset.
///
/// A fault holds numbers only, so that a guest which makes faults costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A ring that is not where a ring can be.
    #[error("queue {queue}: its {part} at {address:#x} is not {alignment}-aligned and inside guest memory")]
    Ring {
        /// Which queue.
        queue: u16,
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// Guest physical.
        address: u64,
        /// In bytes.
        alignment: u64,
    },
    /// A queue size that is no power of two up to the queue's maximum.
    #[error("queue {queue}: a size of {size} is not a power of two up to {maximum}")]
    QueueSize {
        /// Which queue.
        queue: u16,
        /// What the driver wrote.
        size: u16,
        /// What the device offers.
        maximum: u16,
    },
    /// More new chains than the ring has entries.
    #[error("the available index moved by {moved}, the queue has {size} entries")]
    AvailableIndex {
        /// Entries since the last look.
        moved: u16,
        /// Size of the queue.
        size: u16,
    },
    /// A descriptor number beyond its table.
    #[error("descriptor {index} of a table with {size}")]
    DescriptorIndex {
        /// The descriptor.
        index: u16,
        /// The table's size.
        size: u16,
    },
    /// A loop, or simply too many.
    #[error("a descriptor chain is longer than the queue's size of {size}")]
    ChainLength {
        /// Size of the queue.
        size: u16,
    },
    /// More than 2^32 - 1 bytes in one chain.
    #[error("the buffers of a descriptor chain are longer than 4 GiB together")]
    ChainBytes,
    /// An indirect descriptor that the features or the specification forbid.
    #[error("an indirect descriptor {0}")]
    Indirect(&'static str),
    /// A buffer for the driver before one for the device.
    #[error("a device-readable descriptor stands behind a device-writable one")]
    Order,
    /// A buffer that is not in guest memory.
    #[error("a buffer of {length_bytes} bytes at {address:#x} is not in guest memory")]
    Buffer {
        /// Guest physical.
        address: u64,
        /// As the descriptor has it.
        length_bytes: u32,
    },
    /// A chain that lacks room for what the device must read or write.
    #[error("a descriptor chain is too short for {0}")]
    Short(&'static str),
    /// Chains made available again before they were used.
    #[error("more than {size} descriptor chains of a queue are in flight")]
    InFlight {
        /// Size of the queue.
        size: u16,
    },
    /// A message that breaks the protocol of the device.
    #[error("{0}")]
    Protocol(&'static str),
}
