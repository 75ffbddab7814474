//! The modules of the lab's kernel. Debian's package has no `modules.dep`: depmod makes it after installation. So an
//! index is made once of what stands in the modules themselves, and the lab's own modprobe reads it.

use std::path::Path;

use anyhow::{Context, Result};
use moat_initramfs::Index;

/// Loaded before the command starts, because nothing asks for them by name: buses, the root, the
/// scratch disk. Everything else is loaded when it is first used, as on any host.
pub(super) const AT_BOOT: &[&str] =
    &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk"];

/// Reads every module of a kernel's folder.
pub(super) fn scan(folder: &Path) -> Result<Index> {
    let mut index = Index::scan(&folder.join("lib/modules")).context("cannot read the kernel's modules")?;
    // Opening /dev/kvm asks for the part that all processors share; here it is this one.
    index.also_called("kvm_amd", "char_major_10_232");
    Ok(index)
}

/// Puts one module into the running kernel; one that is there already is fine.
pub(super) fn load(bytes: &[u8]) -> rustix::io::Result<()> {
    match rustix::system::init_module(bytes, c"") {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}
