//! The memory's file: written sparse, with a sum for each 2 MiB that is not zero throughout.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128;

use crate::memory::Memory;
use crate::{Context, Error, Result};

const PAGE_BYTES: usize = 4096;
/// What has one sum.
const CHUNK_BYTES: u64 = 2 << 20;

/// The sums of the chunks that are not zero throughout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    /// Cryptographic, or only against accidents.
    kind: Kind,
    /// The chunk's number, and its sum; in ascending order.
    chunks: Vec<(u32, [u8; 32])>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// XXH3, for snapshots that nobody else can write to.
    #[default]
    Fast,
    /// SHA-256, for snapshots with a key.
    Strong,
}

fn sum(kind: Kind, bytes: &[u8]) -> [u8; 32] {
    match kind {
        Kind::Fast => {
            let mut sum = [0; 32];
            sum[..16].copy_from_slice(&xxh3_128(bytes).to_le_bytes());
            sum
        }
        Kind::Strong => Sha256::digest(bytes).into(),
    }
}

impl Sums {
    /// None yet; cryptographic ones where the snapshot will be authenticated.
    pub(crate) fn none(authenticated: bool) -> Self {
        Self { kind: if authenticated { Kind::Strong } else { Kind::Fast }, chunks: Vec::new() }
    }
}

/// Writes what is not zero, page by page.
pub(super) fn write(memory: &Memory, file: &File, sums: Sums) -> Result<Sums> {
    let what = || "writing the guest's memory";
    let Sums { kind, mut chunks } = sums;
    let size = memory.size_bytes();
    rustix::fs::ftruncate(file, size).context(what)?;
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let zero = [0; PAGE_BYTES];
    for number in 0..u32::try_from(size.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX) {
        let start = u64::from(number) * CHUNK_BYTES;
        let length = (size - start).min(CHUNK_BYTES) as usize;
        let Some(bytes) = chunk.get_mut(..length) else { continue };
        if !memory.read_file(start, bytes).context(what)? {
            continue;
        }
        let mut any = false;
        // Runs of pages that are not zero are written at once.
        let mut run = 0;
        for at in (0..length).step_by(PAGE_BYTES) {
            let page = bytes.get(at..at + PAGE_BYTES).unwrap_or_default();
            if page != zero {
                run += PAGE_BYTES;
                any = true;
                continue;
            }
            write_run(file, start, bytes, at - run, at).context(what)?;
            run = 0;
        }
        write_run(file, start, bytes, length - run, length).context(what)?;
        if any {
            chunks.push((number, sum(kind, bytes)));
        }
    }
    Ok(Sums { kind, chunks })
}

fn write_run(file: &File, start: u64, bytes: &[u8], from: usize, to: usize) -> std::io::Result<()> {
    match bytes.get(from..to) {
        Some(run @ [_, ..]) => file.write_all_at(run, start + from as u64),
        _ => Ok(()),
    }
}

/// Checks the file against the sums: the size, every chunk, and that there is nothing else.
pub(super) fn check(file: &File, size_bytes: u64, sums: &Sums, authenticated: bool) -> Result<()> {
    if file.metadata()?.len() != size_bytes {
        return Err(Error::new(format!("it is not {size_bytes} bytes long, as the guest's memory was")));
    }
    if authenticated && sums.kind != Kind::Strong {
        return Err(Error::new("its sums are not those of an authenticated snapshot"));
    }
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    let mut known = sums.chunks.iter().copied().peekable();
    for number in 0..u32::try_from(size_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX) {
        let start = u64::from(number) * CHUNK_BYTES;
        let length = (size_bytes - start).min(CHUNK_BYTES);
        let told = known.next_if(|(of, _)| *of == number).map(|(_, sum)| sum);
        if told.is_none() && !has_data(file, start, length)? {
            continue;
        }
        let Some(bytes) = bytes.get_mut(..length as usize) else { continue };
        file.read_exact_at(bytes, start)?;
        let right = match told {
            Some(told) => sum(sums.kind, bytes) == told,
            None => bytes.iter().all(|byte| *byte == 0),
        };
        if !right {
            return Err(Error::new(format!(
                "it was changed after it was written: the sum at {start:#x} is wrong"
            )));
        }
    }
    match known.next() {
        None => Ok(()),
        Some((number, _)) => {
            Err(Error::new(format!("there is a sum for chunk {number}, which does not exist")))
        }
    }
}

/// Whether there is anything but a hole.
fn has_data(file: &File, start: u64, length: u64) -> Result<bool> {
    match rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(start)) {
        Ok(at) => Ok(at < start + length),
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::MemorySpec;

    fn file() -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        File::from(fd)
    }

    #[test]
    fn zero_pages_are_holes_and_every_flipped_bit_is_found() {
        const SIZE: u64 = 5 << 20;
        let memory = Memory::new(MemorySpec { size_bytes: SIZE, hugepages: false }).unwrap();
        memory.guest().write_slice(b"one", GuestAddress(0)).unwrap();
        memory.guest().write_slice(b"two", GuestAddress(SIZE - 3)).unwrap();
        // Touched, but zero.
        memory.guest().write_slice(&[0; 8192], GuestAddress(3 << 20)).unwrap();
        for authenticated in [false, true] {
            let file = file();
            let sums = write(&memory, &file, Sums::none(authenticated)).unwrap();
            assert_eq!(sums.chunks.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 2]);
            assert_eq!(rustix::fs::fstat(&file).unwrap().st_blocks, 16);
            check(&file, SIZE, &sums, authenticated).unwrap();
            for (at, wrong) in [(1, b"x"), (SIZE - 1, b"x"), (4096, b"x"), (3 << 20, b"x")] {
                let mut before = [0];
                file.read_exact_at(&mut before, at).unwrap();
                file.write_all_at(wrong, at).unwrap();
                let error = check(&file, SIZE, &sums, authenticated).unwrap_err();
                assert!(error.to_string().contains("the sum at"), "{error}");
                file.write_all_at(&before, at).unwrap();
            }
            check(&file, SIZE, &sums, authenticated).unwrap();
            file.set_len(SIZE - 4096).unwrap();
            assert!(check(&file, SIZE, &sums, authenticated).is_err());
        }
        assert!(check(&file(), 0, &Sums::none(false), true).is_err());
    }
}
