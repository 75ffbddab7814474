//! The files of an archive or of a folder, by name: the door for what `load` is given.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags};

use crate::assemble::LayerStream;
use crate::{Context, Error, Kind, Result};

/// The most files in an archive of images.
const MAX_FILES: usize = 100_000;
/// So many symbolic links may lead from one to the next.
const MAX_LINKS: usize = 8;

/// Files by name.
pub(super) enum Layout {
    Archive(Archive),
    Folder(OwnedFd),
}

/// An archive that can be read anywhere, and what is where in it.
pub(super) struct Archive {
    file: Arc<File>,
    files: HashMap<PathBuf, (u64, u64)>,
    /// Old archives of `docker save` have layers that are links to others.
    links: HashMap<PathBuf, PathBuf>,
}

impl Layout {
    /// Opens an archive, not compressed, or a folder.
    pub(super) fn of_archive(file: File) -> Result<Self> {
        Ok(Self::Archive(Archive::index(file)?))
    }

    pub(super) fn of_folder(path: &Path) -> Result<Self> {
        Ok(Self::Folder(fs::open(path, OFlags::PATH | OFlags::DIRECTORY)?))
    }

    /// Reads a small file; `None` when there is none of that name.
    pub(super) fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(stream) = self.find(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        stream.take(max_bytes + 1).read_to_end(&mut bytes).context(|| name.to_owned())?;
        if bytes.len() as u64 > max_bytes {
            return Err(
                Error::new(format!("{name} is larger than {max_bytes} bytes")).with_kind(Kind::TooLarge)
            );
        }
        Ok(Some(bytes))
    }

    /// Opens a file.
    pub(super) fn open(&self, name: &str) -> Result<LayerStream<'static>> {
        let missing = || Error::new(format!("archive has no file {name:?}")).with_kind(Kind::Corrupt);
        self.find(name)?.ok_or_else(missing)
    }

    fn find(&self, name: &str) -> Result<Option<LayerStream<'static>>> {
        match self {
            Self::Archive(archive) => {
                let Some((offset, left)) = archive.find(name) else { return Ok(None) };
                Ok(Some(Box::new(Part { file: Arc::clone(&archive.file), offset, left })))
            }
            Self::Folder(root) => {
                // Without waiting: a FIFO in the folder must not stop us.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let opened = fs::open_in_root(root.as_fd(), Path::new(name), flags, 0, Follow::InRoot);
                let file = match opened {
                    Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    other => other?,
                };
                let kind = FileType::from_raw_mode(fs::stat(file.as_fd())?.st_mode);
                if kind != FileType::RegularFile {
                    return Err(Error::new(format!("{name} is no regular file")));
                }
                Ok(Some(Box::new(File::from(file))))
            }
        }
    }
}

impl Archive {
    fn index(mut file: File) -> Result<Self> {
        let malformed = || "archive of images";
        file.seek(SeekFrom::Start(0)).context(malformed)?;
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().context(malformed)? {
            let entry = entry.context(malformed)?;
            let path = clean(&entry.path().context(malformed)?);
            if files.len() + links.len() >= MAX_FILES {
                return Err(Error::new(format!("archive of images holds more than {MAX_FILES} files"))
                    .with_kind(Kind::TooLarge));
            }
            let kind = entry.header().entry_type();
            if kind.is_file() {
                files.insert(path, (entry.raw_file_position(), entry.size()));
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name().context(malformed)?.unwrap_or_default();
                let base =
                    if kind.is_symlink() { path.parent().unwrap_or(Path::new("")) } else { Path::new("") };
                links.insert(path.clone(), clean(&base.join(target)));
            }
        }
        Ok(Self { file: Arc::new(file), files, links })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut path = clean(Path::new(name));
        for _ in 0..=MAX_LINKS {
            if let Some(found) = self.files.get(&path) {
                return Some(*found);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }
}

/// A path of an archive without `.` and `..`; it is only ever looked up among the archive's own.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// A part of a file, read by position, so that several threads may share the file.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.offset)?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
