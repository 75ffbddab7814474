//! The root file system of a workload: the layers of its image, and on top of them what it writes.
//!
//! Each layer is given to the kernel by a call of its own (`lowerdir+`), so their number is limited by overlayfs
//! alone, to 500. Kernels before 6.7 take all of them in one page of options: there the layers are named by their
//! descriptors (`/proc/self/fd/N`), short enough for 200 and more.
//!
//! The mount is made detached and attached in a mount namespace that only the monitor and its workload see. When
//! both have ended, however they did, the kernel unmounts it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use moat_linux::mount::{self, FsContext};
use moat_linux::{Errno, fs};
use rustix::fs::OFlags;

use crate::{Context, Error, Result};

/// The upper directory is read as it is, by `diff` and `commit`: it holds whole files and no references to layers,
/// whatever the kernel's defaults are.
const PLAIN: [(&str, &str); 2] = [("index", "off"), ("xino", "off")];
/// As well, but `userxattr` implies them, and does not go with them.
const PLAIN_OF_ROOT: [(&str, &str); 2] = [("redirect_dir", "off"), ("metacopy", "off")];

/// What is put on top of what.
#[derive(Clone, Debug)]
pub(crate) struct Overlay<'a> {
    /// Folders of layers, the topmost first.
    pub(crate) layers: &'a [PathBuf],
    /// Where writes go, and overlayfs's folder beside it; without them the view is read-only.
    pub(crate) upper: Option<(&'a Path, &'a Path)>,
    /// Nothing need outlive a crash of the machine: no fsync(2) reaches the disk.
    pub(crate) volatile: bool,
    /// Attributes are kept as `user.overlay.*`, as in a user namespace they must.
    pub(crate) user_xattr: bool,
}

impl Overlay<'_> {
    /// Mounts it at `target`.
    ///
    /// Errors: the sentence of the kernel, with what was asked for.
    pub(crate) fn mount_at(&self, target: &Path) -> Result<()> {
        let below = fs::open(target, OFlags::PATH | OFlags::DIRECTORY)?;
        match self.mount() {
            Ok(Some(tree)) => Ok(mount::attach(tree.as_fd(), below.as_fd())?),
            Ok(None) => self.mount_by_options(target),
            Err(error) => Err(error),
        }
        .context(|| format!("mount the root file system of {} layers", self.layers.len()))
    }

    /// The mount, attached nowhere; `None` where the kernel does not know `lowerdir+`.
    pub(crate) fn mount(&self) -> Result<Option<OwnedFd>> {
        let context = FsContext::open("overlay")?;
        context.set("source", "moat")?;
        for (index, layer) in self.layers.iter().enumerate() {
            match context.set("lowerdir+", text(layer)?) {
                Err(error) if index == 0 && error.errno() == Errno::INVAL => return Ok(None),
                other => other?,
            }
        }
        if let Some((upper, work)) = self.upper {
            context.set("upperdir", &escaped(text(upper)?))?;
            context.set("workdir", &escaped(text(work)?))?;
        }
        for (key, value) in self.plain() {
            context.set(key, value)?;
        }
        for flag in self.flags() {
            context.set_flag(flag)?;
        }
        match context.mount(0) {
            Err(error) if error.errno() == Errno::INVAL && keeps_options_unread()? => Ok(None),
            mounted => Ok(Some(mounted?)),
        }
    }

    fn plain(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let of_root = PLAIN_OF_ROOT.iter().filter(|_| !self.user_xattr);
        PLAIN.iter().chain(of_root).copied()
    }

    fn flags(&self) -> impl Iterator<Item = &'static str> {
        let volatile = (self.volatile && self.upper.is_some()).then_some("volatile");
        volatile.into_iter().chain(self.user_xattr.then_some("userxattr"))
    }

    /// mount(2), whose options are one page.
    fn mount_by_options(&self, target: &Path) -> Result<()> {
        let open = |path: &Path| fs::open(path, OFlags::PATH | OFlags::DIRECTORY);
        let layers = self.layers.iter().map(|layer| open(layer)).collect::<moat_linux::Result<Vec<_>>>()?;
        let short = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut options = format!("lowerdir={}", layers.iter().map(short).collect::<Vec<_>>().join(":"));
        let mut kept = Vec::new();
        if let Some((upper, work)) = self.upper {
            for (key, path) in [("upperdir", upper), ("workdir", work)] {
                let fd = open(path)?;
                options.push_str(&format!(",{key}={}", short(&fd)));
                kept.push(fd);
            }
        }
        self.plain().for_each(|(key, value)| options.push_str(&format!(",{key}={value}")));
        self.flags().for_each(|flag| options.push_str(&format!(",{flag}")));
        if options.len() >= 4096 {
            return Err(Error::invalid(format!(
                "this kernel takes no more than a page of mount options, too few for {} layers",
                self.layers.len()
            ))
            .hint("Linux 6.7 and later take up to 500"));
        }
        Ok(mount::mount_with_options("overlay", "moat", target, &options)?)
    }
}

/// Before 6.5, overlayfs looks at what it is told only when it is to be mounted: `lowerdir+` is refused as late as that.
fn keeps_options_unread() -> Result<bool> {
    let context = FsContext::open("overlay")?;
    Ok(context.set_flag("what-no-kernel-knows").is_ok())
}

fn text(path: &Path) -> Result<&str> {
    std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid(format!("path {} is not UTF-8", path.display())))
}

/// overlayfs takes a backslash in these two for an escape.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:")
}
