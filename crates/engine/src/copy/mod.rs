//! Copying files between a workload and its host, as tar streams, by Docker's rules.
//!
//! Everything goes by descriptors below the root of the workload: its own root where it runs, else its root file system
//! mounted anew with its volumes ([`View`](crate::view)). A path is resolved by the kernel within that root, no name is
//! looked up twice, and what was looked at is what is opened, so that a workload that swaps files and links meanwhile
//! gains nothing. Nothing of the workload is run and none of its libraries is loaded: there is nobody to be tricked.
//! An absolute symbolic link of the workload (`/var/run` to `/run`) leads where it leads for the workload.
//!
//! ```text
//!  one side: Place --pack--> tar stream --unpack--> Place: the other side
//! ```

mod pack;
mod place;
mod unpack;

use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use moat_linux::fs;
use rustix::fs::{FileType, OFlags};

use crate::oci::IdMaps;
use crate::view::View;
use crate::{Context, Error, Result, Timestamp, Workload};

use pack::pack;
use place::{Source, Target, TargetKind};
use unpack::{Unpack, unpack};

/// How much of a stream is on its way at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How files are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Owners, set-user-ID bits and all attributes are kept (`-a`); else what is copied belongs to the root of the
    /// workload, or on the host to whoever calls.
    pub archive: bool,
    /// A symbolic link that is named as the source is followed (`-L`).
    pub follow: bool,
}

/// What is at a path of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStat {
    /// The last part of the path.
    pub name: String,
    /// Bytes of a file.
    pub size_bytes: u64,
    /// As stat(2) has it.
    pub mode: u32,
    /// When it was changed.
    pub modified: Timestamp,
    /// Where a symbolic link leads.
    pub link_target: Option<String>,
}

/// Ids of a workload as they are inside, by those of its user namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids(Option<IdMaps>);

impl Ids {
    /// As the workload sees an owner; who is not mapped is root.
    fn inside(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        let Some(maps) = &self.0 else { return (uid, gid) };
        (IdMaps::inside(&maps.uids, uid).unwrap_or(0), IdMaps::inside(&maps.gids, gid).unwrap_or(0))
    }

    /// As the host sees an owner.
    fn outside(&self, (uid, gid): (u32, u32)) -> Result<(u32, u32)> {
        let Some(maps) = &self.0 else { return Ok((uid, gid)) };
        match (IdMaps::outside(&maps.uids, uid), IdMaps::outside(&maps.gids, gid)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Error::invalid(format!(
                "owner {uid}:{gid} is not mapped in the workload's user namespace"
            ))),
        }
    }
}

impl Workload {
    /// What is at `path`; a symbolic link is not followed.
    pub fn path_stat(&self, path: &str) -> Result<PathStat> {
        let view = View::open(self, true)?;
        self.in_workload(path, || {
            let source = Source::find(view.root(), path, false)?;
            source.stat()
        })
    }

    /// Writes what is at `path` as a tar archive whose entries begin with the last part of the path; with `/.` at its
    /// end, with `.`.
    pub fn copy_from(&self, path: &str, options: &CopyOptions, to: impl Write) -> Result<PathStat> {
        let view = View::open(self, true)?;
        self.in_workload(path, || {
            let source = Source::find(view.root(), path, options.follow)?;
            let stat = source.stat()?;
            let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
            pack(&source, &source.archive_name(), &Ids(view.id_maps()), &mut to)?;
            to.flush().context(|| "write the archive")?;
            Ok(stat)
        })
    }

    /// Unpacks a tar archive into the folder `path`, which must exist.
    pub fn copy_to(&self, path: &str, options: &CopyOptions, from: impl Read) -> Result<()> {
        let view = View::open(self, true)?;
        self.in_workload(path, || {
            let target = Target::find(view.root(), path)?;
            let folder = target.into_folder()?;
            let ids = Ids(view.id_maps());
            unpack(
                folder.as_fd(),
                BufReader::with_capacity(BUFFER_BYTES, from),
                &Unpack::workload(options, &ids)?,
            )
        })
    }

    /// Copies what is at `path` to the host, by Docker's rules of trailing slashes.
    pub fn copy_out(&self, path: &str, local: &Path, options: &CopyOptions) -> Result<()> {
        let view = View::open(self, true)?;
        let host = host_root()?;
        let from = || -> Result<Source> {
            self.in_workload(path, || Source::find(view.root(), path, options.follow))
        };
        let local = absolute(local)?;
        let to = || Target::find(host.as_fd(), &local);
        let ids = Ids(view.id_maps());
        across(&from()?, to()?, &ids, &Unpack::host(options))
            .context(|| format!("copy {path} of workload {} to {local}", self.name()))
    }

    /// Copies what is at `local` of the host into the workload, by Docker's rules of trailing slashes.
    pub fn copy_in(&self, local: &Path, path: &str, options: &CopyOptions) -> Result<()> {
        let view = View::open(self, true)?;
        let host = host_root()?;
        let local = absolute(local)?;
        let from = Source::find(host.as_fd(), &local, options.follow)?;
        let to = self.in_workload(path, || Target::find(view.root(), path))?;
        let ids = Ids(view.id_maps());
        across(&from, to, &Ids::default(), &Unpack::workload(options, &ids)?)
            .context(|| format!("copy {local} to {path} of workload {}", self.name()))
    }

    fn in_workload<T>(&self, path: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        act().context(|| format!("path {path} of workload {}", self.name()))
    }
}

/// Unpacks a tar archive into a folder of the host, as [`Workload::copy_out`] does with what it gets of a workload:
/// nothing is written outside the folder, no link below it is followed, and without [`CopyOptions::archive`] nothing
/// is made that gives somebody a right.
///
/// Errors: the archive is malformed, leads out of the folder, or does not fit what is there; what came before it stays.
pub fn unpack_onto_host(folder: BorrowedFd<'_>, options: &CopyOptions, from: impl Read) -> Result<()> {
    unpack(folder, BufReader::with_capacity(BUFFER_BYTES, from), &Unpack::host(options))
}

fn host_root() -> Result<OwnedFd> {
    Ok(fs::open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?)
}

/// A path of the host with its trailing slash or dot, which mean something.
fn absolute(path: &Path) -> Result<String> {
    let text =
        path.to_str().ok_or_else(|| Error::invalid(format!("path {} is not UTF-8", path.display())))?;
    if text.is_empty() {
        return Err(Error::invalid("the path on the host is empty"));
    }
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let here = std::env::current_dir().context(|| "the working directory")?;
    Ok(format!("{}/{text}", here.display()))
}

/// Copies from one side to the other. The archive goes through a pipe: what reads and what writes work side by side.
fn across(from: &Source, to: Target, ids: &Ids, how: &Unpack<'_>) -> Result<()> {
    let (folder, name) = landing(from, to)?;
    let (reader, writer) = std::io::pipe().context(|| "a pipe")?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
            pack(from, &name, ids, &mut writer)?;
            writer.flush().context(|| "the pipe")
        });
        let unpacked = unpack(folder.as_fd(), BufReader::with_capacity(BUFFER_BYTES, reader), how);
        // The reader is gone by now, so who still writes into the pipe fails.
        let packed = packing.join().map_err(|_| Error::new("reading the source failed"))?;
        match (packed, unpacked) {
            (_, Err(error)) => Err(error),
            (packed, Ok(())) => packed,
        }
    })
}

/// The folder to unpack into, and the name that the first entry gets there.
///
/// | source | target | result |
/// |---|---|---|
/// | file | not there | the file is made under this name |
/// | file | not there, with a slash at the end | refused |
/// | file | file | it is replaced |
/// | file or folder | folder | it gets a place in the folder under its own name |
/// | folder | not there | the folder is made under this name |
/// | folder | file | refused |
/// | folder, with `/.` at the end | folder | what is in the one goes into the other |
fn landing(from: &Source, to: Target) -> Result<(OwnedFd, std::path::PathBuf)> {
    let folder = from.kind() == FileType::Directory;
    match &to.kind {
        TargetKind::Folder(_) if folder && from.contents_only => Ok((to.into_folder()?, ".".into())),
        TargetKind::Folder(_) => Ok((to.into_folder()?, from.name.clone())),
        TargetKind::File { .. } if folder => {
            Err(Error::invalid(format!("a folder can not be copied over the file {}", to.path)))
        }
        TargetKind::File { .. } if to.wants_folder => {
            Err(Error::invalid(format!("{} is not a folder", to.path)))
        }
        TargetKind::Missing { .. } if !folder && to.wants_folder => {
            Err(Error::not_found(format!("the folder {} does not exist", to.path)))
        }
        TargetKind::File { .. } | TargetKind::Missing { .. } => to.into_parent(),
    }
}

#[cfg(test)]
mod tests;
