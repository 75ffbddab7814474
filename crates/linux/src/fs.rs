//! Paths below a root that is not trusted, and the few file calls whose errors must name the object.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use rustix::io::Errno;

use crate::{Error, Result, fd_name, named};

/// How a path is followed below a root, openat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Symbolic links are followed, as if the root were `/`; they never leave it.
    InRoot,
    /// As `InRoot`, and the last component may be no symbolic link.
    InRootNoLast,
    /// No symbolic link at all.
    Never,
}

/// Opens `path` below `root`: openat2(2) with RESOLVE_IN_ROOT and no magic links.
///
/// `path` may be absolute; it never leaves `root`, whatever symbolic links there are and however they
/// change meanwhile. Errors: those of openat2(2); ELOOP where a forbidden link is in the way.
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: u32,
    follow: Follow,
) -> Result<OwnedFd> {
    let opened = resolve_in_root(root, path, flags, mode, follow);
    named(opened, "openat2", || in_root_text(root, path, flags, follow))
}

/// As [`open_in_root`], for a path that may well be absent: the errors in `absent` give `None`. To name what the
/// root's descriptor refers to, as an error does, would cost more than the call itself.
pub fn find_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    follow: Follow,
    absent: &[Errno],
) -> Result<Option<OwnedFd>> {
    match resolve_in_root(root, path, flags, 0, follow) {
        Err(errno) if absent.contains(&errno) => Ok(None),
        opened => named(opened, "openat2", || in_root_text(root, path, flags, follow)).map(Some),
    }
}

fn resolve_flags(follow: Follow) -> (OFlags, ResolveFlags) {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match follow {
        Follow::InRoot => (OFlags::CLOEXEC, inside),
        Follow::InRootNoLast => (OFlags::CLOEXEC | OFlags::NOFOLLOW, inside),
        Follow::Never => (OFlags::CLOEXEC, inside | ResolveFlags::NO_SYMLINKS),
    }
}

fn resolve_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: u32,
    follow: Follow,
) -> rustix::io::Result<OwnedFd> {
    let (more, resolve) = resolve_flags(follow);
    loop {
        match rustix::fs::openat2(root, path, flags | more, Mode::from_raw_mode(mode), resolve) {
            // A rename elsewhere made the walk unsafe; the kernel asks to try again.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

fn in_root_text(root: BorrowedFd<'_>, path: &Path, flags: OFlags, follow: Follow) -> String {
    let (more, resolve) = resolve_flags(follow);
    format!("{}, {}, {:?}, {resolve:?}", fd_name(root), path.display(), flags | more)
}

/// open(2) relative to a directory, close-on-exec.
pub fn open_at(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    named(rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)), "openat", || {
        format!("{}, {}, {flags:?}", fd_name(dir), path.display())
    })
}

/// open(2) of a host path, close-on-exec.
pub fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_at(rustix::fs::CWD, path, flags, 0)
}

/// Opens again what `fd` refers to (an O_PATH descriptor, say), through /proc/self/fd.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    open(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())), flags)
}

/// mkdirat(2).
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()> {
    named(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)), "mkdirat", || {
        format!("{}, {}, {mode:04o}", fd_name(dir), name.display())
    })
}

/// mknodat(2).
pub fn mknod_at(
    dir: BorrowedFd<'_>,
    name: &Path,
    kind: FileType,
    mode: u32,
    major: u32,
    minor: u32,
) -> Result<()> {
    let device = rustix::fs::makedev(major, minor);
    named(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device), "mknodat", || {
        format!("{}, {}, {kind:?} {mode:04o}, {major}:{minor}", fd_name(dir), name.display())
    })
}

/// symlinkat(2).
pub fn symlink_at(target: &Path, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    named(rustix::fs::symlinkat(target, dir, name), "symlinkat", || {
        format!("{}, {}, {}", target.display(), fd_name(dir), name.display())
    })
}

/// unlinkat(2); `directory` removes an empty directory.
pub fn unlink_at(dir: BorrowedFd<'_>, name: &Path, directory: bool) -> Result<()> {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    named(rustix::fs::unlinkat(dir, name, flags), "unlinkat", || {
        format!("{}, {}, {flags:?}", fd_name(dir), name.display())
    })
}

/// fstat(2).
pub fn stat(fd: BorrowedFd<'_>) -> Result<Stat> {
    named(rustix::fs::fstat(fd), "fstat", || fd_name(fd))
}

/// fstatfs(2), the file system's magic number.
pub fn filesystem_magic(fd: BorrowedFd<'_>) -> Result<u64> {
    let found = named(rustix::fs::fstatfs(fd), "fstatfs", || fd_name(fd))?;
    Ok(found.f_type.unsigned_abs())
}

/// fstatvfs(2): the flags of the mount behind `fd` (`ST_RDONLY` and so on).
pub fn mount_flags(fd: BorrowedFd<'_>) -> Result<rustix::fs::StatVfsMountFlags> {
    Ok(named(rustix::fs::fstatvfs(fd), "fstatvfs", || fd_name(fd))?.f_flag)
}

/// fchown(2), also through an O_PATH descriptor.
pub fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    use rustix::fs::{Gid, Uid};
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    named(rustix::fs::chownat(fd, "", owner.0, owner.1, AtFlags::EMPTY_PATH), "fchownat", || {
        format!("{}, {uid}, {gid}", fd_name(fd))
    })
}

/// fchmodat(2) of an entry of a directory, which must not be a symbolic link.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()> {
    named(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty()), "fchmodat", || {
        format!("{}, {}, {mode:04o}", fd_name(dir), name.display())
    })
}

/// readlink(2) of what an O_PATH descriptor refers to.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<PathBuf> {
    let target = named(rustix::fs::readlinkat(fd, "", Vec::new()), "readlinkat", || fd_name(fd))?;
    Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// mkfifoat(2) on a host path.
pub fn mkfifo(path: &Path, mode: u32) -> Result<()> {
    mknod_at(rustix::fs::CWD, path, FileType::Fifo, mode, 0, 0)
}

/// The content of a file of the kernel's, as /proc and cgroup file systems have them.
///
/// Read in large pieces: std begins with 32 bytes, and the kernel may print the whole file anew for each piece.
pub fn read_text(file: &Path) -> Result<String> {
    let fd = open(file, OFlags::RDONLY)?;
    let mut content = Vec::new();
    let mut piece = [0_u8; 8192];
    loop {
        match rustix::io::read(&fd, &mut piece) {
            Ok(0) => break,
            Ok(count) => content.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::new("read", file.display().to_string(), errno)),
        }
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// memfd_create(2), close-on-exec, sealable.
pub fn memfd(name: &str) -> Result<File> {
    use rustix::fs::MemfdFlags;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(named(rustix::fs::memfd_create(name, flags), "memfd_create", || name.to_owned())?))
}

/// Seals a memfd against any change: F_ADD_SEALS with write, grow, shrink and seal.
pub fn seal(fd: BorrowedFd<'_>) -> Result<()> {
    use rustix::fs::SealFlags;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    named(rustix::fs::fcntl_add_seals(fd, seals), "fcntl", || format!("{}, F_ADD_SEALS", fd_name(fd)))
}

/// Whether `fd` is a memfd that can no longer be written.
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    use rustix::fs::SealFlags;
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::WRITE | SealFlags::SEAL))
}

/// Whether two descriptors refer to the same file.
pub fn same_file(one: impl AsFd, other: impl AsFd) -> Result<bool> {
    let (one, other) = (stat(one.as_fd())?, stat(other.as_fd())?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// fstatat(2) of an entry of a directory; a symbolic link is not followed. `None` when there is none.
pub fn stat_at(dir: BorrowedFd<'_>, name: &Path) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        other => named(other.map(Some), "fstatat", || format!("{}, {}", fd_name(dir), name.display())),
    }
}

/// linkat(2) of an entry of one directory into another; a symbolic link is not followed.
pub fn link_at(old_dir: BorrowedFd<'_>, old: &Path, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    named(rustix::fs::linkat(old_dir, old, dir, name, AtFlags::empty()), "linkat", || {
        format!("{}, {}, {}, {}", fd_name(old_dir), old.display(), fd_name(dir), name.display())
    })
}

/// fchownat(2) of an entry of a directory; a symbolic link is not followed.
pub fn chown_at(dir: BorrowedFd<'_>, name: &Path, uid: u32, gid: u32) -> Result<()> {
    use rustix::fs::{Gid, Uid};
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    named(rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW), "fchownat", || {
        format!("{}, {}, {uid}, {gid}, NOFOLLOW", fd_name(dir), name.display())
    })
}

/// fchmod(2) of an open file.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    named(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)), "fchmod", || {
        format!("{}, {mode:04o}", fd_name(fd))
    })
}

/// A time stamp: seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

fn timestamps((seconds, nanoseconds): Time) -> rustix::fs::Timestamps {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    rustix::fs::Timestamps { last_access: time, last_modification: time }
}

/// futimens(2): access and modification time alike.
pub fn set_time(fd: BorrowedFd<'_>, time: Time) -> Result<()> {
    named(rustix::fs::futimens(fd, &timestamps(time)), "futimens", || format!("{}, {}", fd_name(fd), time.0))
}

/// utimensat(2) of an entry of a directory; a symbolic link is not followed.
pub fn set_time_at(dir: BorrowedFd<'_>, name: &Path, time: Time) -> Result<()> {
    let times = timestamps(time);
    named(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW), "utimensat", || {
        format!("{}, {}, {}, NOFOLLOW", fd_name(dir), name.display(), time.0)
    })
}

/// fsetxattr(2).
pub fn set_xattr(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    named(rustix::fs::fsetxattr(fd, name, value, flags), "fsetxattr", || {
        format!("{}, {name}, {} bytes", fd_name(fd), value.len())
    })
}

/// fgetxattr(2); `None` when the file has no such attribute.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    // The kernel takes no longer value.
    let mut value = vec![0; 1 << 16];
    match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => named(Err(errno), "fgetxattr", || format!("{}, {name}", fd_name(fd))),
    }
}

/// flistxattr(2): the names of a file's attributes.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    // The kernel gives no longer list.
    let mut names = vec![0; 1 << 16];
    let length = named(rustix::fs::flistxattr(fd, &mut names[..]), "flistxattr", || fd_name(fd))?;
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
}

/// syncfs(2): everything of the file system that `fd` is on reaches the disk.
pub fn sync_filesystem(fd: BorrowedFd<'_>) -> Result<()> {
    named(rustix::fs::syncfs(fd), "syncfs", || fd_name(fd))
}

/// ftruncate(2).
pub fn set_length(fd: BorrowedFd<'_>, length_bytes: u64) -> Result<()> {
    named(rustix::fs::ftruncate(fd, length_bytes), "ftruncate", || format!("{}, {length_bytes}", fd_name(fd)))
}

/// The entries of an open directory, without `.` and `..`: names and kinds, as getdents64(2) tells them.
pub fn entries(dir: BorrowedFd<'_>) -> Result<Vec<(OsString, FileType)>> {
    let what = || fd_name(dir);
    let mut found = Vec::new();
    for entry in named(rustix::fs::Dir::read_from(dir), "getdents64", what)? {
        let entry = named(entry, "getdents64", what)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((OsString::from_vec(name.to_vec()), entry.file_type()));
        }
    }
    Ok(found)
}

/// A descriptor of our own for what an inherited one refers to, which stays open.
///
/// Errors: EBADF when nothing was inherited under that number.
pub fn duplicate_inherited(number: std::os::fd::RawFd) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: takes two numbers; a number that is no descriptor is refused.
    let copy = crate::syscall(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into());
    let copy = named(copy, "fcntl", || format!("{number}, F_DUPFD_CLOEXEC, 3"))?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as libc::c_int) })
}

/// linkat(2) with AT_EMPTY_PATH: another name for the file behind a descriptor, which may be of O_PATH.
pub fn link_descriptor(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    named(rustix::fs::linkat(file, "", dir, name, AtFlags::EMPTY_PATH), "linkat", || {
        format!("{}, {}, {}", fd_name(file), fd_name(dir), name.display())
    })
}

/// utimensat(2) with AT_EMPTY_PATH: access and modification time, seconds and nanoseconds since 1970, of the file
/// behind a descriptor, which may be of O_PATH.
pub fn set_times(fd: BorrowedFd<'_>, access: (i64, i64), modification: (i64, i64)) -> Result<()> {
    use rustix::fs::{Timespec, Timestamps};
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(access), last_modification: time(modification) };
    named(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH), "utimensat", || {
        format!("{}, {}", fd_name(fd), modification.0)
    })
}

/// chmod(2) of what a descriptor refers to, which may be of O_PATH, through /proc/self/fd: nothing can be put in its
/// place meanwhile. Errors: EOPNOTSUPP for a symbolic link.
pub fn chmod_descriptor(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    use std::os::fd::AsRawFd;
    let entry = format!("/proc/self/fd/{}", fd.as_raw_fd());
    named(rustix::fs::chmod(entry, Mode::from_raw_mode(mode)), "chmod", || {
        format!("{}, {mode:04o}", fd_name(fd))
    })
}
