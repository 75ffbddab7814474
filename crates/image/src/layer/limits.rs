//! How much of a machine one layer may take.

/// The limits of one layer. They bound what a hostile layer costs; no image in use comes near them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Bytes of the archive before compression, and of the files in it, holes counted.
    pub bytes: u64,
    /// Files, folders, links and devices.
    pub inodes: u64,
    /// Names in a path.
    pub depth: usize,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { bytes: 128 << 30, inodes: 2_000_000, depth: 255 }
    }
}

/// The largest extended header: paths and attributes of one entry.
pub(crate) const MAX_HEADER_BYTES: u64 = 1 << 20;
/// The most parts of a sparse file.
pub(crate) const MAX_SPARSE_PARTS: usize = 1 << 16;
/// The longest attribute that the kernel takes.
pub(crate) const MAX_XATTR_BYTES: usize = 1 << 16;
/// What the paths of a layer's folders may take in memory until their times are set.
pub(crate) const MAX_FOLDER_BYTES: usize = 64 << 20;
