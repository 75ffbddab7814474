//! The store: images, their layers and blobs, as files that a person can read.
//!
//! ```text
//! ROOT/lock                 shared by whoever adds, exclusive for whoever removes; never held while bytes move
//! ROOT/images/ID.json       what belongs to an image; it exists when all that it names does
//! ROOT/names/NAME -> ID     a tag, a symbolic link; `/` is written `%`
//! ROOT/holds/HOLDER -> ID   a workload that uses an image
//! ROOT/layers/CHAIN/fs      a layer, ready to be a lowerdir; CHAIN is OCI's chain id
//! ROOT/layers/CHAIN/layer.json
//! ROOT/layers/CHAIN/erofs  the same as a disk of a microVM, once one has asked for it
//! ROOT/blobs/DIGEST         configurations, manifests and compressed layers
//! ROOT/work/...             what is under way, each folder locked by its process
//! ```
//!
//! Compressed layers stay. They cost disk (and are counted), but pushing and saving give back the very bytes with the
//! very digests, and a damaged layer is unpacked again without a network.
//!
//! A layer is known by its chain id, not by its own digest alone, because a layer's folder may depend on those below
//! (see [`complete`](crate::layer::complete)).
//!
//! Whatever is made is made in `work`, synced once, and renamed into place; an image's record comes last. So a crash
//! leaves the old state or the new one, and what it leaves in `work` is unlocked and goes with the next `check`.

mod check;
mod collect;
mod disk;
mod hold;
mod names;
mod record;
mod usage;
mod work;

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

pub use check::{Finding, FindingKind};
pub use collect::{Pruned, Removed};
pub use hold::Hold;
pub use record::{Image, Layer, LayerHistory};
pub(crate) use record::{ImageRecord, LayerState, chain_ids};
pub use usage::{DiskUsage, ImageUsage};
pub(crate) use work::{Lease, Work};

use crate::layer::{LayerLimits, Ownership};
use crate::{Context, Digest, Result};

/// The image store of one user.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    ownership: Ownership,
    limits: LayerLimits,
}

/// The right to add to the store, or to remove from it; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    /// Opens the store in the folder `root`, and makes it, mode 0700, where there is none.
    pub fn open(root: &Path, ownership: Ownership) -> Result<Self> {
        let store = Self { root: root.to_owned(), ownership, limits: LayerLimits::default() };
        if !root.join("lock").exists() {
            for folder in ["", "images", "names", "holds", "layers", "blobs", "work"] {
                let path = root.join(folder);
                let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
                made.context(|| format!("make the image store {}", path.display()))?;
            }
            let mut options = File::options();
            options.create(true).truncate(false).write(true).mode(0o600);
            options.open(root.join("lock")).context(|| format!("image store {}", root.display()))?;
        }
        Ok(store)
    }

    /// The same store with other limits for the layers that are added.
    #[must_use]
    pub fn with_limits(mut self, limits: LayerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whom the files of its layers belong to.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// What one layer may take.
    pub(crate) fn limits(&self) -> LayerLimits {
        self.limits
    }

    /// The folders of an image's layers, topmost first, as overlayfs wants its lower ones.
    pub fn layer_paths(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().rev().map(|layer| self.layer_path(&layer.chain_id)).collect()
    }

    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.layer_folder(chain).join("fs")
    }

    pub(crate) fn layer_folder(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub(crate) fn image_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Opens a blob.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).context(|| format!("blob {digest}: {}", path.display()))
    }

    /// Reads a small blob, and checks that it is what it is called.
    pub(crate) fn read_blob(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        self.open_blob(digest)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
        crate::digest::verify("blob", digest, &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Waits for the right to add; many may have it at once.
    pub(crate) fn lock_to_add(&self) -> Result<Lock> {
        self.lock(FlockOperation::LockShared)
    }

    /// Waits for the right to remove; one may have it, and nobody adds meanwhile.
    pub(crate) fn lock_to_remove(&self) -> Result<Lock> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock> {
        let path = self.root.join("lock");
        let what = || format!("lock {}", path.display());
        let file = File::open(&path).context(what)?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.context(what)?,
            }
        }
        Ok(Lock { _file: file })
    }

    /// Writes a file of the store: whoever reads sees the old content or the new, also after a crash.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let what = || format!("write {}", path.display());
        let temporary = self.root.join("work").join(work::unique_name("file"));
        let written = (|| {
            let mut options = File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written.context(what)?;
        sync_folder(path.parent().unwrap_or(path))
    }

    /// Everything that was written to the store reaches the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        let root = File::open(&self.root).context(|| self.root.display().to_string())?;
        Ok(moat_linux::fs::sync_filesystem(root.as_fd())?)
    }
}

pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).context(|| format!("sync {}", path.display()))
}
