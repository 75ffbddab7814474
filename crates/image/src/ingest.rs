//! One layer from its bytes, as they come, into the store: one pass, three threads.
//!
//! ```text
//! this thread      read, hash (compressed digest), write the blob
//!    | pipe
//! second thread    decompress, hash (uncompressed digest), count
//!    | pipe
//! third thread     parse the archive, write the folder
//! ```
//!
//! Where the bytes come uncompressed and no manifest tells their digest (an archive of `docker save`, `import`,
//! `commit`), the blob is compressed on the way, so that pushing needs no second look at it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Hashing, verify};
use crate::layer::unpack::{Pending, Unpacker};
use crate::layer::{LayerLimits, LayerReader, Ownership, UnpackReport};
use crate::manifest::{Descriptor, media_type};
use crate::stream::{PipeReader, PipeWriter, is_gone, pipe};
use crate::{Context, Digest, Error, Kind, Result};

/// How a layer's bytes are packed, by their first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(first: &[u8]) -> Result<Self> {
        match first {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err(Error::new("layer is packed by bzip2, which images do not use")),
            [0xfd, b'7', b'z', b'X', ..] => Err(Error::new("layer is packed by xz, which images do not use")),
            _ => Ok(Self::Plain),
        }
    }

    fn undo<'a>(self, from: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(from);
                Box::new(decoder.context(|| "decompress the layer")?)
            }
        })
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
            // What comes plain is compressed on its way.
            Self::Plain | Self::Gzip => media_type::OCI_LAYER_GZIP,
        }
    }
}

/// An archive without its packing.
pub(crate) fn unpacked<'a>(mut from: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
    let packing = Packing::of(from.fill_buf().context(|| "read the archive")?)?;
    packing.undo(from)
}

/// Where a layer goes, and what it is promised to be.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    /// An empty folder for its files; `None`: only the blob is wanted.
    pub(crate) folder: Option<&'a Path>,
    /// Where its blob is written; `None`: it is in the store already.
    pub(crate) blob: Option<PathBuf>,
    pub(crate) ownership: Ownership,
    pub(crate) limits: LayerLimits,
    /// Digest and size of the bytes as they come.
    pub(crate) promised: Option<(Digest, u64)>,
    /// Digest of the archive before compression.
    pub(crate) diff_id: Option<Digest>,
}

/// A layer that is unpacked, and waits for those below it.
#[derive(Debug)]
pub(crate) struct Ingested {
    /// The blob that was written.
    pub(crate) blob: Descriptor,
    pub(crate) pending: Pending,
    pub(crate) report: UnpackReport,
}

/// Ends a chain of threads: which of their errors is the cause, and which only says that another has failed.
fn first_cause(results: [Option<Error>; 3]) -> Option<Error> {
    results.into_iter().flatten().next()
}

/// Reads a layer from `from` and brings it to `target`. `seen` is told of each read's bytes.
///
/// Errors: reading failed; a digest or size is not what was promised; the archive is malformed or exceeds a limit;
/// writing failed. What was written stays in `target` for the caller to remove.
pub(crate) fn ingest(from: impl Read, target: &Target<'_>, seen: &mut dyn FnMut(u64)) -> Result<Ingested> {
    let mut from = BufReader::with_capacity(64 << 10, from);
    let packing = Packing::of(from.fill_buf().context(|| "read the layer")?)?;
    let compress = target.blob.is_some() && packing == Packing::Plain && target.promised.is_none();
    let (to_second, second_from) = pipe();
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(move || unpack_stream(second_from, packing, compress, target));
        let first = first_thread(from, to_second, target, compress, seen);
        (first, second.join().unwrap_or_else(|_| Second::failed("the thread that decompresses has panicked")))
    });
    let (first, first_error) = split(first);
    if let Some(error) = first_cause([first_error, second.decompress, second.unpack]) {
        return Err(error);
    }
    let fault = || Error::new("a thread ended without a result and without an error");
    let (digest, size) = first.flatten().ok_or_else(fault)?;
    let diff_id = second.diff_id.ok_or_else(fault)?;
    if let Some(promised) = &target.diff_id {
        verify("layer's archive", promised, &diff_id)?;
    }
    let (digest, size) = second.compressed.unwrap_or((digest, size));
    let (pending, report) = second.unpacked.ok_or_else(fault)?;
    Ok(Ingested { blob: Descriptor::new(packing.media_type(), digest, size), pending, report })
}

fn split<T>(result: Result<T>) -> (Option<T>, Option<Error>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    }
}

/// Reads, hashes, writes the blob. `None`: a later thread has failed, and has the cause.
fn first_thread(
    mut from: impl Read,
    mut to: PipeWriter,
    target: &Target<'_>,
    compress: bool,
    seen: &mut dyn FnMut(u64),
) -> Result<Option<(Digest, u64)>> {
    let mut blob = match &target.blob {
        Some(path) if !compress => Some(create(path)?),
        _ => None,
    };
    let mut hash = Hashing::new(());
    loop {
        let mut written = Ok(());
        let read = to.fill_from(&mut from, |bytes| {
            hash.update(bytes);
            if let Some(file) = &mut blob {
                written = file.write_all(bytes);
            }
        });
        written.context(|| "write the layer's blob")?;
        match read {
            Ok(0) => break,
            Ok(count) => seen(count as u64),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "read the layer"),
        }
        if let Some((_, size)) = target.promised
            && hash.count() > size
        {
            return Err(Error::new(format!("layer is longer than the {size} bytes that were promised"))
                .with_kind(Kind::Corrupt));
        }
    }
    let ((), digest, size) = hash.finish();
    if let Some((promised, promised_size)) = &target.promised {
        if size != *promised_size {
            return Err(Error::new(format!("layer has {size} bytes, but {promised_size} were promised"))
                .with_kind(Kind::Corrupt));
        }
        verify("layer", promised, &digest)?;
    }
    match to.finish() {
        Ok(()) => Ok(Some((digest, size))),
        Err(_) => Ok(None),
    }
}

/// What the second and third thread have come to.
#[derive(Default)]
struct Second {
    diff_id: Option<Digest>,
    compressed: Option<(Digest, u64)>,
    unpacked: Option<(Pending, UnpackReport)>,
    decompress: Option<Error>,
    unpack: Option<Error>,
}

impl Second {
    fn failed(what: &str) -> Self {
        Self { decompress: Some(Error::new(what)), ..Self::default() }
    }
}

fn unpack_stream(from: PipeReader, packing: Packing, compress: bool, target: &Target<'_>) -> Second {
    let unpack_failed = AtomicBool::new(false);
    let Some(folder) = target.folder else {
        let (hashes, decompress) = split(decompress(from, packing, compress, None, target, &unpack_failed));
        let (diff_id, compressed) = hashes.unwrap_or_default();
        return Second { diff_id, compressed, unpacked: Some(Default::default()), decompress, unpack: None };
    };
    let (to_third, third_from) = pipe();
    let (second, third) = std::thread::scope(|scope| {
        let failed = &unpack_failed;
        let third = scope.spawn(move || {
            let mut reader = LayerReader::new(third_from, target.limits);
            let unpacked =
                Unpacker::new(folder, target.ownership).and_then(|unpacker| unpacker.unpack(&mut reader));
            // Told before the pipe goes, so that the second thread knows why it has gone.
            failed.store(unpacked.is_err(), Ordering::Release);
            unpacked
        });
        let second = decompress(from, packing, compress, Some(to_third), target, failed);
        (second, third.join().unwrap_or_else(|_| Err(Error::new("the thread that unpacks has panicked"))))
    });
    let (second, decompress) = split(second);
    let (diff_id, compressed) = second.unwrap_or_default();
    let (unpacked, unpack) = split(third);
    // When decompressing has failed, the third thread has seen a broken pipe and no more than that.
    Second { diff_id, compressed, unpacked, decompress, unpack }
}

type Hashes = (Option<Digest>, Option<(Digest, u64)>);

/// Decompresses and hashes; compresses where the blob is to be. Goes on hashing when the third thread has had enough:
/// what follows an archive's end is part of its digest.
fn decompress(
    from: PipeReader,
    packing: Packing,
    compress: bool,
    mut to: Option<PipeWriter>,
    target: &Target<'_>,
    unpack_failed: &AtomicBool,
) -> Result<Hashes> {
    let mut from = packing.undo(from)?;
    let mut blob = match &target.blob {
        Some(path) if compress => Some(Compressor::create(path)?),
        _ => None,
    };
    let mut hash = Hashing::new(());
    let mut own = vec![0; if to.is_none() { 256 << 10 } else { 0 }];
    loop {
        let mut written = Ok(());
        let mut each = |bytes: &[u8]| {
            hash.update(bytes);
            if let Some(blob) = &mut blob {
                written = blob.write_all(bytes);
            }
        };
        let read = match &mut to {
            Some(to) => to.fill_from(&mut from, each),
            None => {
                if own.is_empty() {
                    own = vec![0; 256 << 10];
                }
                let read = from.read(&mut own);
                each(own.get(..*read.as_ref().unwrap_or(&0)).unwrap_or_default());
                read
            }
        };
        written.context(|| "write the layer's blob")?;
        match read {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_gone(&error) => {
                // Either the first thread has failed and has the cause, or the third has read all that it wants.
                if to.take().is_none() || unpack_failed.load(Ordering::Acquire) {
                    return Ok((None, None));
                }
            }
            Err(error) => return Err(error).context(|| "decompress the layer").map_err(corrupt),
        }
        if hash.count() > target.limits.bytes {
            return Err(Error::new(format!(
                "layer is larger than {} bytes uncompressed",
                target.limits.bytes
            ))
            .with_kind(Kind::TooLarge));
        }
    }
    if let Some(to) = to {
        // The third thread may have read all that it wants.
        let _ = to.finish();
    }
    let compressed = blob.map(Compressor::finish).transpose().context(|| "write the layer's blob")?;
    let ((), digest, _) = hash.finish();
    Ok((Some(digest), compressed))
}

fn corrupt(error: Error) -> Error {
    error.with_kind(Kind::Corrupt)
}

fn create(path: &Path) -> Result<File> {
    File::create_new(path).context(|| format!("create {}", path.display()))
}

/// Gzip, which every registry and every engine takes, at the level that costs least time.
struct Compressor(flate2::write::GzEncoder<Hashing<BufWriter<File>>>);

impl Compressor {
    fn create(path: &Path) -> Result<Self> {
        let to = Hashing::new(BufWriter::with_capacity(128 << 10, create(path)?));
        Ok(Self(flate2::write::GzEncoder::new(to, flate2::Compression::fast())))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn finish(self) -> io::Result<(Digest, u64)> {
        let (mut to, digest, size) = self.0.finish()?.finish();
        to.flush()?;
        Ok((digest, size))
    }
}
