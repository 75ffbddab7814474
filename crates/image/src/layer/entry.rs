//! From an entry of an archive to what it means for a layer's folder, checked: pure, nothing is touched.

use std::io::BufRead;

use moat_linux::fs::Time;
use tar::EntryType;

use super::archive::{Entries, RawEntry, corrupt};
use super::limits::LayerLimits;
use super::path::LayerPath;
use crate::{Error, Kind, Result};

/// The prefix of names that say what is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The name that says: nothing of the layers below shows in this folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of AUFS's own book-keeping.
const AUFS: &[u8] = b".wh..wh.";

/// Who owns a file, its mode, its time and its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits, with set-uid, set-gid and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was last changed.
    pub mtime: Time,
    /// Extended attributes that a layer may set.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What one entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A folder.
    Directory,
    /// A file; its content follows in the archive.
    File {
        /// Its size in bytes, holes counted.
        size: u64,
        /// Offset and length of the parts that are no holes; `None`: the whole file.
        sparse: Option<Vec<(u64, u64)>>,
    },
    /// A symbolic link; what it says is never followed while unpacking the link itself.
    Symlink(Vec<u8>),
    /// Another name of a file that the layer, or one below it, has.
    HardLink(LayerPath),
    /// A device node.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// Its numbers.
        major: u32,
        /// See `major`.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path is gone, whatever the layers below have there.
    Whiteout,
    /// The path is a folder in which nothing of the layers below shows.
    Opaque,
}

/// One entry, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: LayerPath,
    /// What.
    pub action: Action,
    /// How; without meaning for whiteouts and opaque folders.
    pub metadata: Metadata,
    /// Attributes of the entry that a layer may not set.
    pub ignored_xattrs: u32,
}

/// Checks entries and counts them against the limits.
pub struct LayerReader<R> {
    entries: Entries<R>,
    limits: LayerLimits,
    inodes: u64,
    bytes: u64,
}

impl<R: BufRead> LayerReader<R> {
    /// Reads a layer's archive, without compression.
    pub fn new(from: R, limits: LayerLimits) -> Self {
        Self { entries: Entries::new(from), limits, inodes: 0, bytes: 0 }
    }

    /// The next entry that means something; `None` at the end.
    ///
    /// Errors: the archive is malformed, leads out of the layer, or exceeds a limit.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        while let Some(raw) = self.entries.next_entry()? {
            self.inodes += 1;
            if self.inodes > self.limits.inodes {
                return Err(too_large(&format!("has more than {} entries", self.limits.inodes)));
            }
            self.bytes = self.bytes.saturating_add(raw.size);
            if self.bytes > self.limits.bytes {
                return Err(too_large(&format!("holds more than {} bytes of files", self.limits.bytes)));
            }
            if let Some(entry) = check(raw, self.limits.depth)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The next bytes of the current file's content, at most `most`; see [`consume`](Self::consume).
    pub(crate) fn content(&mut self, most: u64) -> Result<&[u8]> {
        self.entries.content(most)
    }

    /// Takes bytes that [`content`](Self::content) has given.
    pub(crate) fn consume(&mut self, count: usize) {
        self.entries.consume(count);
    }
}

fn too_large(what: &str) -> Error {
    Error::new(format!("layer archive {what}")).with_kind(Kind::TooLarge)
}

/// `None` for an entry that means nothing.
fn check(raw: RawEntry, max_depth: usize) -> Result<Option<Entry>> {
    let path = LayerPath::new(&raw.path, max_depth)?;
    let name = path.split().map(|(_, name)| name.as_encoded_bytes().to_vec());
    if let Some(hidden) = name.as_deref().and_then(|name| name.strip_prefix(WHITEOUT)) {
        let name = name.as_deref().unwrap_or_default();
        if name == OPAQUE {
            return Ok(Some(bare(path.parent().unwrap_or_default(), Action::Opaque)));
        }
        if name.starts_with(AUFS) {
            return Ok(None);
        }
        return Ok(Some(bare(path.with_name(hidden)?, Action::Whiteout)));
    }
    let action = match raw.kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // Before there was a type for folders, a name that ends with a slash was one.
            if raw.path.ends_with(b"/") {
                Action::Directory
            } else {
                Action::File { size: raw.size, sparse: raw.sparse }
            }
        }
        EntryType::Directory => Action::Directory,
        EntryType::Symlink => Action::Symlink(link_text(raw.link)?),
        EntryType::Link => Action::HardLink(LayerPath::new(&raw.link, max_depth)?),
        EntryType::Fifo => Action::Fifo,
        EntryType::Char if raw.device == (0, 0) => Action::Whiteout,
        EntryType::Char | EntryType::Block => {
            let (major, minor) = raw.device;
            Action::Device { block: raw.kind == EntryType::Block, major, minor }
        }
        other => {
            let kind = char::from(other.as_byte()).escape_default();
            return Err(corrupt(&format!(
                "{path} is of the kind '{kind}', which is none of a file system's"
            )));
        }
    };
    if path.is_root() && !matches!(action, Action::Directory) {
        return Err(corrupt("the root is not a folder"));
    }
    if let Action::HardLink(target) = &action
        && (target.is_root() || *target == path)
    {
        return Err(corrupt(&format!("{path} is a hard link to {target}")));
    }
    let before = raw.xattrs.len();
    let xattrs: Vec<_> = raw.xattrs.into_iter().filter(|(name, _)| may_set(name)).collect();
    let ignored_xattrs = u32::try_from(before - xattrs.len()).unwrap_or(u32::MAX);
    let metadata = Metadata { mode: raw.mode, uid: raw.uid, gid: raw.gid, mtime: raw.mtime, xattrs };
    Ok(Some(Entry { path, action, metadata, ignored_xattrs }))
}

fn bare(path: LayerPath, action: Action) -> Entry {
    Entry { path, action, metadata: Metadata::default(), ignored_xattrs: 0 }
}

/// Capabilities, access lists and what users keep for themselves. `trusted.overlay.*` and `user.overlay.*` would tell
/// overlayfs to look elsewhere, and the labels of a security module are the host's.
fn may_set(name: &str) -> bool {
    match name {
        "security.capability" | "system.posix_acl_access" | "system.posix_acl_default" => true,
        _ => name.starts_with("user.") && !name.starts_with("user.overlay."),
    }
}

fn link_text(text: Vec<u8>) -> Result<Vec<u8>> {
    if text.is_empty() || text.len() > 4095 || text.contains(&0) {
        return Err(corrupt("a symbolic link is empty, too long or holds a NUL"));
    }
    Ok(text)
}
