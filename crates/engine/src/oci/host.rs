//! What a configuration depends on beside the wish and the image.

use std::path::Path;

use moat_sandbox::cgroup::Layout;
use moat_sandbox::host::Host;

use crate::{Context, Result};

/// The host, read once.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// What the sandbox knows of it.
    pub sandbox: Host,
    /// The machine in the words of the specification, `SCMP_ARCH_X86_64`.
    pub architecture: String,
    /// The first two numbers of the kernel's version.
    pub kernel: (u32, u32),
    /// The host's name.
    pub host_name: String,
    /// Whether the kernel can limit swap.
    pub swap_limit: bool,
    /// Whether the group `tty` of Linux, 5, is one that this process may give files to.
    pub terminal_group: bool,
    /// How many processors are online.
    pub processors: u32,
}

impl HostFacts {
    /// Reads /proc and /sys, beyond what `sandbox` has read already.
    pub fn detect(sandbox: Host) -> Result<Self> {
        let release =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").context(|| "the kernel's version")?;
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context(|| "the host's name")?;
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        Ok(Self {
            swap_limit: can_limit_swap(&sandbox.cgroups),
            terminal_group: !sandbox.in_user_namespace
                || crate::rootless::is_mapped("/proc/self/gid_map", 5)?,
            sandbox,
            architecture: moat_sandbox::seccomp::native_architecture().to_owned(),
            kernel: version(&release),
            host_name: name.trim_end().to_owned(),
            processors: count(online.trim()).max(1),
        })
    }

    /// Whether cgroup v2 is all there is.
    pub fn is_unified(&self) -> bool {
        matches!(self.sandbox.cgroups, Layout::Unified(_))
    }

    /// Whether this process has a range of ids that it may map: the initial user namespace, as root.
    pub fn rootful(&self) -> bool {
        !self.sandbox.rootless()
    }
}

/// v1: the memory controller was booted with swap accounting. v2: always (`memory.swap.max` of any group but the
/// root), where the memory controller is there.
fn can_limit_swap(layout: &Layout) -> bool {
    let memory = |controllers: &[String]| controllers.iter().any(|controller| controller == "memory");
    match layout {
        Layout::Unified(unified) => memory(&unified.controllers) && Path::new("/proc/swaps").exists(),
        Layout::Legacy { hierarchies, .. } => {
            let home = hierarchies.iter().find(|hierarchy| memory(&hierarchy.controllers));
            home.is_some_and(|home| home.mount.join("memory.memsw.limit_in_bytes").exists())
        }
        Layout::None => false,
    }
}

/// `6.18.0-rc1+` is 6 and 18; what has no numbers is 0.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// How many a list such as `0-3,7` names.
fn count(list: &str) -> u32 {
    let number = |text: &str| text.parse::<u32>().ok();
    let part = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(last)?.checked_sub(number(first)?)?.saturating_add(1)),
        None => number(part).map(|_| 1),
    };
    list.split(',').filter_map(part).fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::{count, version};

    #[test]
    fn versions_and_lists() {
        assert_eq!(version("6.18.0-rc1+\n"), (6, 18));
        assert_eq!(version("5.4\n"), (5, 4));
        assert_eq!(version("odd"), (0, 0));
        assert_eq!((count("0-3,7"), count("0"), count(""), count("3-1")), (5, 1, 0, 0));
    }
}
