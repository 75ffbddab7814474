//! Where everything stands: pure arithmetic over the tree.

use super::fit;
use super::format::{BLOCK, INODE, INODES_OFFSET, SLOT, attributes_bytes, directory_bytes};
use super::tree::{Content, Node, Tree};
use crate::{Error, Result};

/// Where an inode and its data stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Offset of the inode in bytes, a multiple of 32.
    pub(super) inode: u64,
    /// First block of the data that is not behind the inode; 0 where there is none.
    pub(super) first_block: u32,
    /// Bytes of data from there on.
    pub(super) data_bytes: u64,
    /// Bytes of data behind the inode and its attributes.
    pub(super) tail_bytes: usize,
    /// All bytes of data.
    pub(super) size: u64,
}

impl Place {
    /// What directory entries name the inode by.
    pub(super) fn nid(&self) -> u64 {
        self.inode / SLOT
    }
}

/// Where all inodes stand, by the index of their nodes.
pub(super) struct Layout {
    places: Vec<Place>,
    /// Size of the image in blocks.
    pub(super) blocks: u64,
}

impl Layout {
    pub(super) fn of(tree: &Tree) -> Result<Self> {
        let mut places = Vec::with_capacity(tree.nodes.len());
        let mut at = INODES_OFFSET;
        for node in &tree.nodes {
            let place = place(node, at)?;
            at = place.inode + INODE + attributes_bytes(node) + place.tail_bytes as u64;
            places.push(place);
        }
        let mut block = at.div_ceil(BLOCK);
        for (place, node) in places.iter_mut().zip(&tree.nodes) {
            if place.data_bytes > 0 {
                place.first_block = fit(block, "block", node)?;
                block += place.data_bytes.div_ceil(BLOCK);
            }
        }
        if u32::try_from(block).is_err() {
            return Err(Error::new("the tree is larger than the 16 TiB that EROFS can hold"));
        }
        Ok(Self { places, blocks: block })
    }

    pub(super) fn place(&self, node: usize) -> Result<Place> {
        self.places
            .get(node)
            .copied()
            .ok_or_else(|| Error::new("a directory names an inode that is not there"))
    }

    pub(super) fn inodes(&self) -> u64 {
        self.places.len() as u64
    }
}

fn place(node: &Node, at: u64) -> Result<Place> {
    let size = match &node.content {
        Content::Directory(entries) => directory_bytes(entries),
        _ => node.size,
    };
    let (mut data_bytes, mut tail) = (size / BLOCK * BLOCK, size % BLOCK);
    let head = INODE + attributes_bytes(node);
    // The tail shares a block with the inode before it, or it is a block of its own.
    if head + tail > BLOCK {
        (data_bytes, tail) = (size, 0);
    }
    let mut inode = at.next_multiple_of(SLOT);
    let end = inode + head + tail;
    if tail > 0 && inode / BLOCK != (end - 1) / BLOCK {
        inode = inode.next_multiple_of(BLOCK);
    }
    Ok(Place { inode, first_block: 0, data_bytes, tail_bytes: fit(tail, "tail", node)?, size })
}
