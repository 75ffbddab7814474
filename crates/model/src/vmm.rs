//! A microVM as it is wished for: what the monitor's command line, its control socket and the engine share.
//!
//! A file is named by a path, or as `fd:N` by a descriptor that the monitor inherits.

use serde::{Deserialize, Serialize};

use crate::network::Mac;

/// A microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// How many virtual processors, 1 to 32.
    #[serde(default = "one")]
    pub cpus: u8,
    /// The guest's memory in bytes.
    #[serde(default = "default_memory")]
    pub memory_bytes: u64,
    /// Take memory from the host's reserved pages of 2 MiB.
    #[serde(default)]
    pub hugepages: bool,
    /// Show VMX and SVM, so that the guest can run guests.
    #[serde(default)]
    pub nested: bool,
    /// /dev/kvm as `fd:N`; opened by its path when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<String>,
    /// The kernel: a vmlinux, a bzImage, or with `flat` bytes that are code from the first on.
    pub kernel: String,
    /// How a flat image starts; absent for a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat: Option<FlatMode>,
    /// The initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// Whether there is a serial port, on the monitor's standard input and output.
    #[serde(default = "yes")]
    pub serial: bool,
    /// Whether there is a source of random bytes.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network cards.
    #[serde(default)]
    pub nets: Vec<NetSpec>,
    /// Sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
    /// A virtio console on the monitor's standard input and output; then the serial port has none.
    #[serde(default)]
    pub console: bool,
    /// Ports of the virtio console beside the terminal: channels of bytes, which the guest finds by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Whether a notification reaches the device without an exit (ioeventfd).
    #[serde(default = "yes")]
    pub doorbells: bool,
    /// The kernel's System.map: exits are counted by the guest's function, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbols: Option<String>,
}

/// How the first instruction of a flat image is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlatMode {
    /// In real mode, at 0x1000.
    Real,
    /// In 64-bit mode, at 1 MiB, the first 4 GiB mapped to themselves.
    Long,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// A raw image or a block device.
    pub file: String,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as its serial number, at most 20 bytes.
    #[serde(default)]
    pub id: String,
    /// How many queues.
    #[serde(default = "one_queue")]
    pub queues: u16,
    /// Whether plain reads and writes are used where io_uring could be.
    #[serde(default)]
    pub plain: bool,
    /// How much it may do.
    #[serde(default)]
    pub limit: LimitSpec,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// The tap device's name, or `fd:N`.
    pub tap: String,
    /// The card's address; a random one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// How many pairs of queues.
    #[serde(default = "one_queue")]
    pub queue_pairs: u16,
    /// How much it may send and receive.
    #[serde(default)]
    pub limit: LimitSpec,
}

/// Sockets between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's address, 3 or more.
    pub cid: u32,
    /// The unix socket for connections from the host; those from the guest go to `PATH_PORT`.
    pub socket: String,
}

/// A port of the virtio console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// What the guest finds it by, at most 64 bytes.
    pub name: String,
    /// A terminal, a FIFO, a unix socket that somebody listens at, or `fd:N`.
    pub file: String,
}

/// A rate; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    /// Bytes in a second.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Operations in a second.
    #[serde(default)]
    pub operations_per_second: u64,
}

fn one() -> u8 {
    1
}

fn one_queue() -> u16 {
    1
}

fn yes() -> bool {
    true
}

fn default_memory() -> u64 {
    128 << 20
}

impl MachineSpec {
    /// A machine with one processor and 128 MiB that boots this kernel.
    pub fn new(kernel: impl Into<String>) -> Self {
        Self {
            cpus: one(),
            memory_bytes: default_memory(),
            hugepages: false,
            nested: false,
            kvm: None,
            kernel: kernel.into(),
            flat: None,
            initrd: None,
            command_line: String::new(),
            serial: true,
            rng: true,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            console: false,
            ports: Vec::new(),
            doorbells: true,
            symbols: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_the_default() {
        let spec: MachineSpec = serde_json::from_str(r#"{"kernel":"vmlinuz"}"#).unwrap();
        assert_eq!(spec, MachineSpec::new("vmlinuz"));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let error = serde_json::from_str::<MachineSpec>(r#"{"kernel":"k","disk":"x"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `disk`"), "{error}");
    }
}
