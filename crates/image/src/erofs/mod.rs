//! Writes a directory as an EROFS file system: the form of a layer that a kernel of its own mounts.
//!
//! A layer's directory holds what OverlayFS wants to see (whiteouts as devices 0:0, opaque directories as
//! an extended attribute), so its image is a lower layer as well. The same directory gives the same
//! bytes: nothing of the day, the machine or the order of readdir(2) gets in, so an image is named by
//! what it holds and is built once.
//!
//! The format is the kernel's `fs/erofs/erofs_fs.h`, the uncompressed part of it that every kernel since
//! 5.4 mounts. The image is one run of blocks of 4 KiB:
//!
//! ```text
//! 0      1024        1152                                   first block after the inodes
//! | zero | superblock | inodes, each with its attributes and  | data of files and directories,
//! |      |            | the tail of its data, 32-byte slots   | whole blocks
//! ```
//!
//! A whole first pass over the tree gives every inode its place, a second one writes. Inodes are the
//! extended form (64 bytes), because the compact one has no time of its own. The last part of a block
//! of data stands behind the inode wherever it fits there, so a small file costs no block.

mod format;
mod layout;
mod tree;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use crate::layer::Ownership;
use crate::{Context, Error, Result};
use format::BLOCK;
use layout::Layout;
use tree::{Content, Node, Tree};

/// What became of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the image, a multiple of 4096.
    pub bytes: u64,
    /// How many inodes it has; a file with several names is one.
    pub inodes: u64,
}

/// Writes what is below `root` to `image`, from its beginning.
///
/// `uuid` is the file system's own name (blkid(8) shows it). `image` should be empty; zeroes are left as
/// holes. `ownership` says how the tree was made: what an ordinary user had to write down in another way
/// becomes what root of the guest expects. Errors: those of reading and writing, naming the path; a tree
/// that EROFS cannot hold; a file that changed its size meanwhile.
pub fn write(root: BorrowedFd<'_>, image: &File, uuid: [u8; 16], ownership: Ownership) -> Result<Written> {
    let mut tree = Tree::read(root)?;
    tree.translate(ownership);
    let layout = Layout::of(&tree)?;
    let bytes = layout.blocks * BLOCK;
    image.set_len(bytes).context(|| "the image's size")?;
    write_inodes(&tree, &layout, image)?;
    write_data(&tree, &layout, image)?;
    let superblock = format::superblock(&layout, uuid);
    image.write_all_at(&superblock, format::SUPERBLOCK_OFFSET).context(|| "the superblock")?;
    Ok(Written { bytes, inodes: tree.nodes.len() as u64 })
}

/// Whether a file begins as an EROFS file system does, and is as long as that says.
pub(crate) fn is_whole(image: &File) -> std::io::Result<bool> {
    let mut superblock = [0; format::SUPERBLOCK];
    let bytes = image.metadata()?.len();
    if bytes < BLOCK {
        return Ok(false);
    }
    image.read_exact_at(&mut superblock, format::SUPERBLOCK_OFFSET)?;
    Ok(format::described_bytes(&superblock) == Some(bytes))
}

/// The inodes, each followed by its attributes and its tail. They stand in the order of the nodes.
fn write_inodes(tree: &Tree, layout: &Layout, image: &File) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, image);
    let mut at = 0;
    for (index, node) in tree.nodes.iter().enumerate() {
        let place = layout.place(index)?;
        if place.inode != at {
            out.seek(SeekFrom::Start(place.inode)).context(|| "the inodes")?;
        }
        let inode = format::inode(node, place, index)?;
        out.write_all(&inode).context(|| "the inodes")?;
        at = place.inode + inode.len() as u64;
        if place.tail_bytes > 0 {
            let tail = tail(tree, layout, node, place.tail_bytes)?;
            out.write_all(&tail).context(|| "the inodes")?;
            at += tail.len() as u64;
        }
    }
    out.flush().context(|| "the inodes")
}

/// The last bytes of a node's data, which fill no whole block.
fn tail(tree: &Tree, layout: &Layout, node: &Node, bytes: usize) -> Result<Vec<u8>> {
    match &node.content {
        Content::Link(target) => Ok(target.clone()),
        Content::Directory(_) => {
            let mut data = format::directory(layout, node)?;
            Ok(data.split_off(data.len() - bytes))
        }
        Content::File => {
            let mut data = vec![0; bytes];
            let file = tree.open(node)?;
            let whole = node.size - bytes as u64;
            file.read_exact_at(&mut data, whole).context(|| changed(node))?;
            Ok(data)
        }
        Content::Special => Ok(Vec::new()),
    }
}

/// The blocks of files and directories that are not tails.
fn write_data(tree: &Tree, layout: &Layout, image: &File) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for (index, node) in tree.nodes.iter().enumerate() {
        let place = layout.place(index)?;
        if place.data_bytes == 0 {
            continue;
        }
        let at = u64::from(place.first_block) * BLOCK;
        match &node.content {
            Content::Directory(_) => {
                let data = format::directory(layout, node)?;
                let whole = data.get(..place.data_bytes as usize).unwrap_or(&data);
                image.write_all_at(whole, at).context(|| "a directory")?;
            }
            Content::File => copy_blocks(tree, node, place.data_bytes, image, at, &mut buffer)?,
            Content::Link(target) => image.write_all_at(target, at).context(|| "a symbolic link")?,
            Content::Special => {}
        }
    }
    Ok(())
}

fn copy_blocks(tree: &Tree, node: &Node, bytes: u64, image: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    let file = tree.open(node)?;
    let mut done = 0;
    while done < bytes {
        let want = buffer.len().min((bytes - done) as usize);
        let part = buffer.get_mut(..want).unwrap_or_default();
        file.read_exact_at(part, done).context(|| changed(node))?;
        for (number, block) in part.chunks(BLOCK as usize).enumerate() {
            // A hole of the image reads as zeroes, too.
            if block.iter().any(|byte| *byte != 0) {
                let offset = at + done + number as u64 * BLOCK;
                image.write_all_at(block, offset).context(|| "a file's blocks")?;
            }
        }
        done += want as u64;
    }
    Ok(())
}

fn changed(node: &Node) -> String {
    format!("{} is not what it was a moment ago", node.path.display())
}

/// A number that the format has fewer bits for.
fn fit<T: TryFrom<u64>>(number: u64, what: &str, node: &Node) -> Result<T> {
    T::try_from(number).map_err(|_| {
        Error::new(format!("{}: {what} {number} is more than EROFS can hold", node.path.display()))
    })
}
