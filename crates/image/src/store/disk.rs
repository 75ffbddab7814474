//! A layer as a disk: its folder as an EROFS file system, for a kernel that can not see the folder.
//!
//! The file lies beside the folder that it is made of, so it is held, leased and removed with the layer. It is made
//! when it is first asked for: a container never needs it. Whoever makes it holds a lock on the layer meanwhile, so
//! that fifty who ask at once make one.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

use super::{Lease, Store, Work, sync_folder};
use crate::{Context, Digest, Error, Kind, Layer, Result, erofs};

impl Store {
    /// A layer as an EROFS file system, open for reading; it is made when there is none yet.
    ///
    /// Whoever asks holds the image, or it may go at any time; the open file stays what it is. Errors: the layer is
    /// not in the store ([`Kind::NotFound`]); those of reading the layer and writing the file.
    pub fn erofs(&self, layer: &Layer) -> Result<File> {
        let chain = &layer.chain_id;
        match open(&self.erofs_path(chain))? {
            Some(file) => Ok(file),
            None => self.make_erofs(chain).context(|| format!("layer {chain} as a disk")),
        }
    }

    pub(crate) fn erofs_path(&self, chain: &Digest) -> PathBuf {
        self.layer_folder(chain).join("erofs")
    }

    /// Bytes on the disk of a layer's file, 0 where it has none.
    pub(super) fn erofs_bytes(&self, chain: &Digest) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.erofs_path(chain).symlink_metadata().map_or(0, |found| found.blocks() * 512)
    }

    fn make_erofs(&self, chain: &Digest) -> Result<File> {
        let work = Work::new(self, "erofs")?;
        work.lease(self, &Lease { layers: [*chain].into(), ..Lease::default() })?;
        let folder = self.layer_folder(chain);
        let missing = || Error::new("it is not in the store").with_kind(Kind::NotFound);
        let Some(layer) = open(&folder)? else { return Err(missing()) };
        lock(&layer, &folder)?;
        let path = self.erofs_path(chain);
        if let Some(file) = open(&path)? {
            // Whoever had the lock has made it.
            return Ok(file);
        }
        let made = work.path().join("erofs");
        self.write_erofs(chain, &made)?.sync_all().context(|| format!("sync {}", made.display()))?;
        std::fs::rename(&made, &path)
            .context(|| format!("rename {} to {}", made.display(), path.display()))?;
        sync_folder(&folder)?;
        open(&path)?.ok_or_else(missing)
    }

    /// Writes a layer to a new file.
    fn write_erofs(&self, chain: &Digest, path: &Path) -> Result<File> {
        let root = self.layer_path(chain);
        let root = moat_linux::fs::open(&root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        let file = file.context(|| format!("write {}", path.display()))?;
        erofs::write(root.as_fd(), &file, uuid(chain), self.ownership())?;
        Ok(file)
    }

    /// What is wrong with a layer's file. With `deep` it is made again and compared.
    pub(super) fn erofs_fault(&self, chain: &Digest, deep: bool) -> Result<Option<&'static str>> {
        let path = self.erofs_path(chain);
        let Some(file) = open(&path)? else { return Ok(None) };
        let what = || path.display().to_string();
        if !erofs::is_whole(&file).context(what)? {
            return Ok(Some("is no whole file system"));
        }
        if !deep {
            return Ok(None);
        }
        let work = Work::new(self, "erofs")?;
        work.lease(self, &Lease { layers: [*chain].into(), ..Lease::default() })?;
        let again = self.write_erofs(chain, &work.path().join("erofs"))?;
        Ok(if same(&file, &again).context(what)? { None } else { Some("is not what its layer holds") })
    }
}

/// The file system's name, which blkid(8) shows: the beginning of the chain id.
fn uuid(chain: &Digest) -> [u8; 16] {
    let hex = chain.hex();
    let byte = |at: usize| hex.get(at * 2..at * 2 + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    std::array::from_fn(|at| byte(at).unwrap_or_default())
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).context(|| path.display().to_string()),
    }
}

fn lock(folder: &File, path: &Path) -> Result<()> {
    loop {
        match rustix::fs::flock(folder, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.context(|| format!("lock {}", path.display())),
        }
    }
}

fn same(one: &File, other: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let bytes = one.metadata()?.len();
    if other.metadata()?.len() != bytes {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < bytes {
        let part = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(here.len());
        let (here, there) = (here.split_at_mut(part).0, there.split_at_mut(part).0);
        one.read_exact_at(here, at)?;
        other.read_exact_at(there, at)?;
        if here != there {
            return Ok(false);
        }
        at += part as u64;
    }
    Ok(true)
}
