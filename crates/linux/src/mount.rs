//! The mount API by file descriptor: fsopen(2), open_tree(2), move_mount(2), mount_setattr(2), and
//! pivot_root(2).

use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use linux_raw_sys::general as raw;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{Error, Result, fd_name, named, syscall};

/// Mount attributes, mount_setattr(2): what to set, what to clear, propagation, id mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// One of MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0.
    pub propagation: u64,
}

impl Attributes {
    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// MOUNT_ATTR_* bits.
pub mod attr {
    use linux_raw_sys::general as raw;

    /// Read-only.
    pub const RDONLY: u64 = raw::MOUNT_ATTR_RDONLY as u64;
    /// Set-user-ID bits have no effect.
    pub const NOSUID: u64 = raw::MOUNT_ATTR_NOSUID as u64;
    /// Device nodes can not be opened.
    pub const NODEV: u64 = raw::MOUNT_ATTR_NODEV as u64;
    /// No program can be run.
    pub const NOEXEC: u64 = raw::MOUNT_ATTR_NOEXEC as u64;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = raw::MOUNT_ATTR_NOSYMFOLLOW as u64;
    /// Access times of directories are not updated.
    pub const NODIRATIME: u64 = raw::MOUNT_ATTR_NODIRATIME as u64;
    /// The field of the three values below.
    pub const ATIME_FIELD: u64 = raw::MOUNT_ATTR__ATIME as u64;
    /// Access times relative to modification.
    pub const RELATIME: u64 = raw::MOUNT_ATTR_RELATIME as u64;
    /// No access times.
    pub const NOATIME: u64 = raw::MOUNT_ATTR_NOATIME as u64;
    /// Access times always.
    pub const STRICTATIME: u64 = raw::MOUNT_ATTR_STRICTATIME as u64;
}

/// Propagation types, for [`Attributes::propagation`].
pub mod propagation {
    /// MS_SHARED
    pub const SHARED: u64 = libc::MS_SHARED;
    /// MS_SLAVE
    pub const SLAVE: u64 = libc::MS_SLAVE;
    /// MS_PRIVATE
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    /// MS_UNBINDABLE
    pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
}

/// A mount configuration that is being put together, fsopen(2).
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    kind: String,
}

impl FsContext {
    /// fsopen(2): `kind` is a type of file system such as `tmpfs`.
    pub fn open(kind: &str) -> Result<Self> {
        let fd =
            named(rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC), "fsopen", || kind.to_owned())?;
        Ok(Self { fd, kind: kind.to_owned() })
    }

    /// fsconfig(2) with FSCONFIG_SET_STRING.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let result = rustix::mount::fsconfig_set_string(self.fd.as_fd(), key, value);
        named(result, "fsconfig", || format!("{}, {key}={value}{}", self.kind, self.log()))
    }

    /// fsconfig(2) with FSCONFIG_SET_FLAG.
    pub fn set_flag(&self, key: &str) -> Result<()> {
        let result = rustix::mount::fsconfig_set_flag(self.fd.as_fd(), key);
        named(result, "fsconfig", || format!("{}, {key}{}", self.kind, self.log()))
    }

    /// FSCONFIG_CMD_CREATE and fsmount(2): the mount, attached nowhere.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        let created = rustix::mount::fsconfig_create(self.fd.as_fd());
        named(created, "fsconfig", || format!("{}, CMD_CREATE{}", self.kind, self.log()))?;
        let bits = MountAttrFlags::from_bits_retain(attributes as u32);
        named(rustix::mount::fsmount(self.fd.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, bits), "fsmount", || {
            format!("{}, {}", self.kind, attributes_text(attributes))
        })
    }

    /// What the kernel has to say about the last failure: the context's message queue.
    fn log(&self) -> String {
        let mut text = String::new();
        let mut buffer = [0_u8; 256];
        while let Ok(count) = rustix::io::read(&self.fd, &mut buffer) {
            let line = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
            text.push_str(" [");
            text.push_str(line.trim_start_matches("e ").trim());
            text.push(']');
        }
        text
    }
}

/// open_tree(2) with OPEN_TREE_CLONE: a private copy of the mount at `path`, attached nowhere.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    named(rustix::mount::open_tree(dir, path, flags), "open_tree", || {
        format!("{}, {:?}, {flags:?}", fd_name(dir), path.display())
    })
}

/// move_mount(2): attaches a detached mount to an entry of `dir`, which must not be a symbolic link.
pub fn attach_at(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    named(rustix::mount::move_mount(mount, "", dir, name, flags), "move_mount", || {
        format!("{}, {}, {}", fd_name(mount), fd_name(dir), name.display())
    })
}

/// move_mount(2): attaches a detached mount to the directory or file behind `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    named(rustix::mount::move_mount(mount, "", target, "", flags), "move_mount", || {
        format!("{}, {}", fd_name(mount), fd_name(target))
    })
}

/// mount_setattr(2) on the mount behind `fd`.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<()> {
    set_attributes_raw(fd, attributes, 0, None, recursive)
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP: maps ids by the user namespace behind `user_namespace`.
pub fn set_id_mapping(fd: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let idmap = u64::from(raw::MOUNT_ATTR_IDMAP);
    set_attributes_raw(fd, Attributes::default(), idmap, Some(user_namespace), recursive)
}

fn set_attributes_raw(
    fd: BorrowedFd<'_>,
    attributes: Attributes,
    extra: u64,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> Result<()> {
    let argument = raw::mount_attr {
        attr_set: attributes.set | extra,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal and `argument` lives, with its true size, through the call.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of::<raw::mount_attr>(),
        )
    };
    named(syscall(returned), "mount_setattr", || {
        format!(
            "{}, {}{}",
            fd_name(fd),
            attributes_text(argument.attr_set),
            if recursive { ", AT_RECURSIVE" } else { "" }
        )
    })?;
    Ok(())
}

/// The names of MOUNT_ATTR_* bits, joined by `|`.
pub fn attributes_text(bits: u64) -> String {
    const NAMES: [(u64, &str); 9] = [
        (attr::RDONLY, "RDONLY"),
        (attr::NOSUID, "NOSUID"),
        (attr::NODEV, "NODEV"),
        (attr::NOEXEC, "NOEXEC"),
        (attr::NOSYMFOLLOW, "NOSYMFOLLOW"),
        (attr::NODIRATIME, "NODIRATIME"),
        (attr::NOATIME, "NOATIME"),
        (attr::STRICTATIME, "STRICTATIME"),
        (raw::MOUNT_ATTR_IDMAP as u64, "IDMAP"),
    ];
    let names: Vec<&str> = NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "0".to_owned() } else { names.join("|") }
}

/// pivot_root(2) of the working directory onto itself: the old root ends up mounted over the new one.
pub fn pivot_root_here() -> Result<()> {
    named(rustix::process::pivot_root(".", "."), "pivot_root", || "., .".to_owned())
}

/// umount2(2) of the working directory with MNT_DETACH.
pub fn unmount_here() -> Result<()> {
    named(rustix::mount::unmount(".", UnmountFlags::DETACH), "umount2", || "., MNT_DETACH".to_owned())
}

/// umount2(2) of a path, never through a symbolic link, with MNT_DETACH.
pub fn unmount(path: &Path) -> Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    named(rustix::mount::unmount(path, flags), "umount2", || format!("{}, MNT_DETACH", path.display()))
}

/// Moves the mount at the working directory to `/` (MS_MOVE), as an initramfs must that can not pivot.
pub fn move_here_to_root() -> Result<()> {
    let here = named(
        rustix::fs::openat(
            rustix::fs::CWD,
            ".",
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            0.into(),
        ),
        "openat",
        || ".".to_owned(),
    )?;
    named(
        rustix::mount::move_mount(&here, "", rustix::fs::CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH),
        "move_mount",
        || ".,  /".to_owned(),
    )
}

/// statmount(2)-free identity of a mount: the unique mount id where the kernel has it, else the plain one.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    use rustix::fs::{AtFlags, StatxFlags};
    let wanted = StatxFlags::from_bits_retain(raw::STATX_MNT_ID);
    let found = named(rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted), "statx", || fd_name(fd))?;
    Ok(found.stx_mnt_id)
}

/// A mount with the flags of the old interface, for what the new one lacks (a type with `source`).
pub fn set_propagation(path: &CStr, flags: u64) -> Result<()> {
    // SAFETY: null source, type and data are allowed for a change of propagation; the path is NUL-terminated.
    let returned =
        unsafe { libc::mount(std::ptr::null(), path.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    named(syscall(returned.into()), "mount", || format!("none, {path:?}, {flags:#x}")).map(drop)
}

/// mount(2) with options as one text, for kernels whose file systems take them in no other way.
pub fn mount_with_options(kind: &str, source: &str, target: &Path, options: &str) -> Result<()> {
    let text = || format!("{kind}, {}, {options}", target.display());
    let data = std::ffi::CString::new(options);
    let data = named(data.map_err(|_| rustix::io::Errno::INVAL), "mount", text)?;
    let mounted =
        rustix::mount::mount(source, target, kind, rustix::mount::MountFlags::empty(), Some(data.as_c_str()));
    named(mounted, "mount", text)
}

/// A copy of a descriptor that execve(2) closes.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer; the result is a new descriptor that nobody else owns.
    let returned = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    match syscall(returned.into()) {
        // SAFETY: the kernel has just made this descriptor.
        Ok(_) => Ok(unsafe { OwnedFd::from_raw_fd(returned) }),
        Err(errno) => Err(Error::new("fcntl", format!("{}, F_DUPFD_CLOEXEC", fd_name(fd)), errno)),
    }
}
