//! Writing a tar archive: ustar headers, and extended ones for what those have no room for.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{EntryType, Header};

use crate::{Metadata, Result};

/// Writes one entry after the other.
pub struct TarWriter<W: Write> {
    to: tar::Builder<W>,
}

impl<W: Write> TarWriter<W> {
    /// An archive without entries.
    pub fn new(to: W) -> Self {
        let mut to = tar::Builder::new(to);
        to.mode(tar::HeaderMode::Complete);
        Self { to }
    }

    /// Writes the end of the archive, and gives back where it went.
    pub fn finish(self) -> Result<W> {
        let mut to = self.to.into_inner()?;
        to.flush()?;
        Ok(to)
    }

    /// Writes an entry that has no content. `link` is a link's target, `device` the numbers of a node.
    pub fn entry(
        &mut self,
        kind: EntryType,
        path: &Path,
        metadata: &Metadata,
        link: Option<&Path>,
        device: u64,
    ) -> Result<()> {
        self.extended(path, metadata, link)?;
        let mut header = header(kind, metadata);
        header.set_size(0);
        header.set_device_major(rustix::fs::major(device))?;
        header.set_device_minor(rustix::fs::minor(device))?;
        set_short(&mut header, path, link);
        header.set_cksum();
        Ok(self.to.append(&header, std::io::empty())?)
    }

    /// Writes a file. Content that is longer or shorter than `size` is cut, or filled with zeros.
    pub fn file(&mut self, path: &Path, metadata: &Metadata, size: u64, content: impl Read) -> Result<()> {
        self.extended(path, metadata, None)?;
        let mut header = header(EntryType::Regular, metadata);
        header.set_size(size);
        set_short(&mut header, path, None);
        header.set_cksum();
        let content = content.take(size).chain(std::io::repeat(0)).take(size);
        Ok(self.to.append(&header, content)?)
    }

    /// What a header has no room for: long names, large ids, times below a second, attributes.
    fn extended(&mut self, path: &Path, metadata: &Metadata, link: Option<&Path>) -> Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        if path.as_os_str().len() > 100 {
            records.push(("path".to_owned(), bytes(path)));
        }
        if let Some(link) = link.filter(|link| link.as_os_str().len() > 100) {
            records.push(("linkpath".to_owned(), bytes(link)));
        }
        let (seconds, nanoseconds) = metadata.mtime;
        if nanoseconds != 0 || seconds < 0 {
            records.push(("mtime".to_owned(), time(seconds, nanoseconds).into_bytes()));
        }
        for (name, id) in [("uid", metadata.uid), ("gid", metadata.gid)] {
            if id >= 0o10_000_000 {
                records.push((name.to_owned(), id.to_string().into_bytes()));
            }
        }
        for (name, value) in &metadata.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records: Vec<(&str, &[u8])> =
            records.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        if !records.is_empty() {
            self.to.append_pax_extensions(records)?;
        }
        Ok(())
    }
}

/// Decimal seconds; a time before 1970 counts its fraction backwards.
fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

fn header(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode);
    // What does not fit stands in an extended header, and readers take that.
    header.set_uid(u64::from(metadata.uid).min(0o7_777_777));
    header.set_gid(u64::from(metadata.gid).min(0o7_777_777));
    header.set_mtime(metadata.mtime.0.max(0).unsigned_abs());
    header
}

/// Names as far as a header holds them; longer ones stand in an extended header.
fn set_short(header: &mut Header, path: &Path, link: Option<&Path>) {
    let copy = |to: &mut [u8], from: &Path| {
        let from = from.as_os_str().as_bytes();
        let count = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
    };
    let fields = header.as_old_mut();
    copy(&mut fields.name, path);
    if let Some(link) = link {
        copy(&mut fields.linkname, link);
    }
}
