//! The root file system: layers as EROFS disks, and something to write on, put together by OverlayFS.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use moat_model::agent::{DiskSpec, ROOT, RootSpec};
use moat_sandbox::{Context, Error, Result};
use rustix::mount::MountFlags;

/// Short, because the kernel takes no more than a page of mount options, and every layer is named in them.
const LAYERS: &str = "/run/moat/l";
const WRITABLE: &str = "/run/moat/w";

pub(crate) fn assemble(spec: &RootSpec) -> Result<()> {
    for folder in [LAYERS, WRITABLE, ROOT] {
        fs::create_dir_all(folder).context(|| folder)?;
    }
    if spec.layers.is_empty() {
        return Err(Error::new("a root file system needs at least one layer"));
    }
    let disks = disks()?;
    for (number, layer) in spec.layers.iter().enumerate() {
        let target = format!("{LAYERS}/{number}");
        fs::create_dir(&target).context(|| target.clone())?;
        mount(Some(&find(&disks, layer)?), &target, "erofs", MountFlags::RDONLY, "")?;
    }
    match &spec.writable {
        Some(disk) => mount(Some(&find(&disks, disk)?), WRITABLE, "ext4", MountFlags::empty(), "")?,
        None => {
            let size = match spec.memory_bytes {
                0 => String::new(),
                bytes => format!(",size={bytes}"),
            };
            mount(None, WRITABLE, "tmpfs", MountFlags::empty(), &format!("mode=0755{size}"))?;
        }
    }
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).context(|| folder.clone())?;
    }
    // Names relative to the layers' folder leave room for hundreds of them.
    std::env::set_current_dir(LAYERS).context(|| LAYERS)?;
    let names: Vec<String> = (0..spec.layers.len()).map(|number| number.to_string()).collect();
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", names.join(":"));
    let mounted = mount(None, ROOT, "overlay", MountFlags::empty(), &options);
    std::env::set_current_dir("/").context(|| "/")?;
    mounted
}

fn mount(source: Option<&Path>, target: &str, kind: &str, flags: MountFlags, options: &str) -> Result<()> {
    let source = source.unwrap_or(Path::new("none"));
    let what = || format!("mount {} on {target} as {kind}", source.display());
    let options = CString::new(options).map_err(|_| Error::new("mount options hold a NUL byte"))?;
    rustix::mount::mount(source, target, kind, flags, options.as_c_str())
        .map_err(std::io::Error::from)
        .context(what)
}

/// The machine's disks: serial number and device.
fn disks() -> Result<Vec<(String, PathBuf)>> {
    const BLOCK: &str = "/sys/block";
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCK).context(|| BLOCK)? {
        let entry = entry.context(|| BLOCK)?;
        // Devices without a serial number are not ours.
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            found.push((serial.trim().to_owned(), Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(found)
}

fn find(disks: &[(String, PathBuf)], wanted: &DiskSpec) -> Result<PathBuf> {
    let found = disks.iter().find(|(serial, _)| *serial == wanted.serial);
    let found =
        found.ok_or_else(|| Error::new(format!("no disk has the serial number {:?}", wanted.serial)))?;
    Ok(found.1.clone())
}
