//! The bytes: superblock, inodes, attributes and directories of `fs/erofs/erofs_fs.h`.

use super::fit;
use super::layout::{Layout, Place};
use super::tree::{Content, Entries, Node};
use crate::{Error, Result};

use rustix::fs::FileType;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// Inodes begin at multiples of it; a `nid` counts them from the beginning of the image.
pub(super) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(super) const INODE: u64 = 64;
pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
pub(super) const SUPERBLOCK: usize = 128;
/// The first inode, the root's: the superblock has 16 bits for its `nid`.
pub(super) const INODES_OFFSET: u64 = SUPERBLOCK_OFFSET + SUPERBLOCK as u64;

const MAGIC: u32 = 0xe0f5_e1e2;
/// feature_compat: the times of inodes are those of modification.
const COMPAT_MTIME: u32 = 2;
/// i_format: extended; data as whole blocks, or its tail behind the inode.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;

const ATTRIBUTES_HEADER: u64 = 12;
const ATTRIBUTE_HEADER: u64 = 4;
const DIRENT: usize = 12;

/// The prefixes of attributes that have a number, `EROFS_XATTR_INDEX_*`; longer ones first.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// The superblock. Its checksum is left out, as the feature is: the layer's digest guards the whole.
pub(super) fn superblock(layout: &Layout, uuid: [u8; 16]) -> Vec<u8> {
    let mut block = Vec::with_capacity(SUPERBLOCK);
    block.extend(MAGIC.to_le_bytes());
    block.extend(0_u32.to_le_bytes()); // checksum
    block.extend(COMPAT_MTIME.to_le_bytes());
    block.extend([BLOCK_BITS, 0]); // sb_extslots
    block.extend(((INODES_OFFSET / SLOT) as u16).to_le_bytes()); // root_nid
    block.extend(layout.inodes().to_le_bytes());
    block.extend([0; 12]); // build_time, build_time_nsec: every inode has its own
    block.extend((layout.blocks as u32).to_le_bytes());
    block.extend([0; 8]); // meta_blkaddr: nids count from the beginning; xattr_blkaddr: none are shared
    block.extend(uuid);
    block.resize(SUPERBLOCK, 0);
    block
}

/// The size of an image as its superblock tells it; `None`: it is no superblock of ours.
pub(super) fn described_bytes(superblock: &[u8; SUPERBLOCK]) -> Option<u64> {
    let number = |at: usize| Some(u32::from_le_bytes(superblock.get(at..at + 4)?.try_into().ok()?));
    (number(0)? == MAGIC).then_some(u64::from(number(36)?) * BLOCK)
}

/// An inode and its attributes.
pub(super) fn inode(node: &Node, place: Place, index: usize) -> Result<Vec<u8>> {
    let format = if place.tail_bytes > 0 { FLAT_INLINE } else { FLAT_PLAIN };
    let attributes = attributes(node)?;
    let counted = match attributes_bytes(node) {
        0 => 0,
        bytes => (bytes - ATTRIBUTES_HEADER) / 4 + 1,
    };
    let place_or_device = match node.content {
        Content::Special => encode_device(node)?,
        _ => place.first_block,
    };
    let mut out = Vec::with_capacity(INODE as usize + attributes.len());
    out.extend((EXTENDED | format << 1).to_le_bytes());
    out.extend(fit::<u16>(counted, "size of extended attributes", node)?.to_le_bytes());
    out.extend((node.mode as u16).to_le_bytes());
    out.extend([0; 2]);
    out.extend(place.size.to_le_bytes());
    out.extend(place_or_device.to_le_bytes());
    out.extend(fit::<u32>(index as u64 + 1, "inode", node)?.to_le_bytes());
    out.extend(node.uid.to_le_bytes());
    out.extend(node.gid.to_le_bytes());
    out.extend(node.mtime_s.to_le_bytes());
    out.extend(node.mtime_ns.to_le_bytes());
    out.extend(node.links.to_le_bytes());
    out.resize(INODE as usize, 0);
    out.extend(attributes);
    Ok(out)
}

/// The kernel's own form, `new_encode_dev`: 12 bits of major number between 20 of the minor one.
fn encode_device(node: &Node) -> Result<u32> {
    let (major, minor) = (rustix::fs::major(node.device), rustix::fs::minor(node.device));
    if major >= 1 << 12 || minor >= 1 << 20 {
        let path = node.path.display();
        return Err(Error::new(format!("{path}: device {major}:{minor} is more than EROFS can hold")));
    }
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Bytes of a node's attributes, with their header; 0 where it has none.
pub(super) fn attributes_bytes(node: &Node) -> u64 {
    if node.attributes.is_empty() {
        return 0;
    }
    let one = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let suffix = split(name).map_or(name.len(), |(_, suffix)| suffix.len());
        (ATTRIBUTE_HEADER + suffix as u64 + value.len() as u64).next_multiple_of(4)
    };
    ATTRIBUTES_HEADER + node.attributes.iter().map(one).sum::<u64>()
}

fn attributes(node: &Node) -> Result<Vec<u8>> {
    if node.attributes.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; ATTRIBUTES_HEADER as usize];
    for (name, value) in &node.attributes {
        let Some((index, suffix)) = split(name) else {
            let (path, name) = (node.path.display(), String::from_utf8_lossy(name));
            return Err(Error::new(format!("{path}: EROFS has no place for the attribute {name}")));
        };
        out.push(fit(suffix.len() as u64, "length of an attribute's name", node)?);
        out.push(index);
        out.extend(fit::<u16>(value.len() as u64, "length of an attribute", node)?.to_le_bytes());
        out.extend(suffix);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// The entries of a directory in groups that fill a block each, with the bytes of the group.
///
/// A block holds its own entries first and their names behind, so that it can be searched alone.
fn groups(entries: &Entries) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for entry in &entries.0 {
        let more = DIRENT + entry.name.len();
        if bytes + more > BLOCK as usize {
            groups.push((count, bytes));
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += more;
    }
    groups.push((count, bytes));
    groups
}

/// Bytes of a directory: whole blocks, and what its last group takes.
pub(super) fn directory_bytes(entries: &Entries) -> u64 {
    let groups = groups(entries);
    let last = groups.last().map_or(0, |(_, bytes)| *bytes as u64);
    (groups.len() as u64 - 1) * BLOCK + last
}

/// The data of a directory.
pub(super) fn directory(layout: &Layout, node: &Node) -> Result<Vec<u8>> {
    let Content::Directory(entries) = &node.content else {
        return Err(Error::new(format!("{} is no directory", node.path.display())));
    };
    let mut out = Vec::with_capacity(directory_bytes(entries) as usize);
    let mut rest = entries.0.as_slice();
    for (count, _) in groups(entries) {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let (group, behind) = rest.split_at(count);
        let mut name_at = DIRENT * count;
        for entry in group {
            out.extend(layout.place(entry.node)?.nid().to_le_bytes());
            out.extend(fit::<u16>(name_at as u64, "offset of a name", node)?.to_le_bytes());
            out.extend([file_type(entry.kind), 0]);
            name_at += entry.name.len();
        }
        for entry in group {
            out.extend(&entry.name);
        }
        rest = behind;
    }
    Ok(out)
}

/// `FT_*` of the kernel's `fs_types.h`.
fn file_type(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 1,
        FileType::Directory => 2,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}
