//! The tree as it is on disk: every inode once, its names below their directories.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use moat_linux::fs;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};

use crate::layer::Ownership;
use crate::{Context, Error, Result};

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    /// One of its names, relative to the root.
    pub(super) path: PathBuf,
    /// st_mode.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of a device, as stat(2) gives it.
    pub(super) device: u64,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    /// Names that lead to it.
    pub(super) links: u32,
    /// Bytes of data; of a directory it is set by the layout.
    pub(super) size: u64,
    /// Extended attributes, sorted by name.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    File,
    Link(Vec<u8>),
    Directory(Entries),
    /// A device, FIFO or socket.
    Special,
}

/// What a directory holds; `.` and `..` are among them.
#[derive(Debug, Default)]
pub(super) struct Entries(pub(super) Vec<Entry>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    /// Index of the node.
    pub(super) node: usize,
    pub(super) kind: FileType,
}

/// All inodes; the root is the first, and a directory stands before what it holds.
pub(super) struct Tree {
    root: OwnedFd,
    pub(super) nodes: Vec<Node>,
}

/// The inodes that were met before and have further names, by (device, inode).
type Met = HashMap<(u64, u64), usize>;

impl Tree {
    /// Reads everything but the data of files. Neither symbolic links nor mounts are followed.
    pub(super) fn read(root: BorrowedFd<'_>) -> Result<Self> {
        let root = fs::open_at(root, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let stat = fs::stat(root.as_fd())?;
        let mut top = node(PathBuf::new(), &stat, Content::Directory(Entries::default()));
        top.attributes = attributes(&proc_path(root.as_fd(), None), &top.path)?;
        let mut tree = Self { root, nodes: vec![top] };
        let mut met = Met::new();
        // Directories that wait for being read, with the node of their parent. First in, first out, so that
        // the inodes of one directory stand together.
        let mut waiting = std::collections::VecDeque::from([(0, 0)]);
        while let Some((directory, parent)) = waiting.pop_front() {
            let entries = tree.read_directory(directory, parent, &mut met)?;
            for entry in &entries.0 {
                if entry.kind == FileType::Directory && entry.name != b"." && entry.name != b".." {
                    waiting.push_back((entry.node, directory));
                }
            }
            if let Some(node) = tree.nodes.get_mut(directory) {
                node.links = 2;
                let below = entries.0.iter().filter(|entry| entry.kind == FileType::Directory).count();
                node.links += (below as u32).saturating_sub(2);
                node.content = Content::Directory(entries);
            }
        }
        Ok(tree)
    }

    fn read_directory(&mut self, index: usize, parent: usize, met: &mut Met) -> Result<Entries> {
        let path = self.nodes.get(index).map(|node| node.path.clone()).unwrap_or_default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let below = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
        let directory = fs::open_at(self.root.as_fd(), below, flags, 0)?;
        let listed = Dir::read_from(&directory).context(|| path.display().to_string())?;
        let mut names = Vec::new();
        for entry in listed {
            let name = entry.context(|| path.display().to_string())?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        // Bytes decide: the kernel looks names up by bisection.
        names.sort_unstable();
        let own = |name: &[u8], node| Entry { name: name.to_vec(), node, kind: FileType::Directory };
        let mut entries = vec![own(b".", index), own(b"..", parent)];
        for name in names {
            let node = self.add(directory.as_fd(), &path, &name, met)?;
            let mode = self.nodes.get(node).map_or(0, |node| node.mode);
            entries.push(Entry { name, node, kind: FileType::from_raw_mode(mode) });
        }
        // Some names sort before the dots, as `-` does.
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Entries(entries))
    }

    /// The node of a name; a further name of a file that was met leads to the same node.
    fn add(&mut self, dir: BorrowedFd<'_>, parent: &Path, name: &[u8], met: &mut Met) -> Result<usize> {
        let file_name = OsStr::from_bytes(name);
        let path = parent.join(file_name);
        let what = || path.display().to_string();
        let stat = rustix::fs::statat(dir, file_name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory
            && stat.st_nlink > 1
            && let Some(&known) = met.get(&(stat.st_dev, stat.st_ino))
        {
            if let Some(node) = self.nodes.get_mut(known) {
                node.links += 1;
            }
            return Ok(known);
        }
        let content = match kind {
            FileType::RegularFile => Content::File,
            FileType::Directory => Content::Directory(Entries::default()),
            FileType::Symlink => {
                Content::Link(rustix::fs::readlinkat(dir, file_name, Vec::new()).context(what)?.into_bytes())
            }
            _ => Content::Special,
        };
        let mut made = node(path.clone(), &stat, content);
        made.attributes = attributes(&proc_path(dir, Some(file_name)), &path)?;
        let index = self.nodes.len();
        if kind != FileType::Directory && stat.st_nlink > 1 {
            met.insert((stat.st_dev, stat.st_ino), index);
        }
        self.nodes.push(made);
        Ok(index)
    }

    /// Turns what a user's store had to do in its own way into what it stands for: overlayfs's attributes have
    /// another prefix there, and where all belongs to the caller it stands for root.
    pub(super) fn translate(&mut self, ownership: Ownership) {
        let (own, prefix) = (ownership.overlay_prefix(), Ownership::Privileged.overlay_prefix());
        for node in &mut self.nodes {
            if own != prefix {
                for (name, _) in &mut node.attributes {
                    if name.starts_with(own.as_bytes()) {
                        name.splice(..own.len(), prefix.bytes());
                    }
                }
                node.attributes.sort_unstable();
            }
            if ownership == Ownership::Caller {
                (node.uid, node.gid) = (0, 0);
            }
        }
    }

    /// A regular file's data.
    pub(super) fn open(&self, node: &Node) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(File::from(fs::open_at(self.root.as_fd(), &node.path, flags, 0)?))
    }
}

fn node(path: PathBuf, stat: &Stat, content: Content) -> Node {
    let size = match &content {
        Content::File => stat.st_size.unsigned_abs(),
        Content::Link(target) => target.len() as u64,
        Content::Directory(_) | Content::Special => 0,
    };
    Node {
        path,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: stat.st_rdev,
        mtime_s: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        links: 1,
        size,
        attributes: Vec::new(),
        content,
    }
}

/// A path for the calls that take no descriptor of a symbolic link or device.
fn proc_path(dir: BorrowedFd<'_>, name: Option<&OsStr>) -> PathBuf {
    let directory = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    // The dot follows the magic link to the directory itself.
    directory.join(name.unwrap_or(OsStr::new(".")))
}

fn attributes(file: &Path, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let what = || format!("the extended attributes of {}", path.display());
    let names = match grow(|buffer| rustix::fs::llistxattr(file, buffer)) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Error::new(what()))?;
        let value = grow(|buffer| rustix::fs::lgetxattr(file, name, buffer)).context(what)?;
        found.push((name.to_bytes().to_vec(), value));
    }
    found.sort_unstable();
    Ok(found)
}

/// Calls with a buffer that is large enough; no attribute and no list of them is beyond 64 KiB.
fn grow(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    let length = match call(&mut buffer) {
        Err(rustix::io::Errno::RANGE) => {
            buffer.resize(64 << 10, 0);
            call(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}
