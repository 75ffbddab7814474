//! The entries of a tar archive: the door for layers.
//!
//! Names and types of a 512-byte header are decoded by the `tar` crate. Everything that has a size (long names,
//! extended headers, sparse maps) is read here, because a size is the archive's word, and each has a limit.

use std::io::{BufRead, Read};
use std::ops::Range;

use tar::{EntryType, Header};

use super::limits::{MAX_HEADER_BYTES, MAX_SPARSE_PARTS, MAX_XATTR_BYTES};
use super::pax::{Extended, parse_extended};
use crate::{Context, Error, Kind, Result};

const BLOCK: usize = 512;

/// An entry as it stands in the archive: paths are not checked yet.
#[derive(Debug)]
pub struct RawEntry {
    /// Where, as the archive says.
    pub path: Vec<u8>,
    /// What.
    pub kind: EntryType,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Major and minor number of a node.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The size of the file, holes counted.
    pub size: u64,
    /// Offset and length of the parts that are no holes; `None`: the whole file.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads one entry after the other. The content of an entry is read, or skipped by the next call.
pub struct Entries<R> {
    from: R,
    /// What is left of the current entry's content, and of the padding behind it.
    left: u64,
    padding: u64,
    global: Extended,
    ended: bool,
}

impl<R: BufRead> Entries<R> {
    /// Reads an archive without compression.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0, global: Extended::default(), ended: false }
    }

    /// The next entry; `None` at the end of the archive.
    ///
    /// Errors: the archive is malformed or cut off.
    pub fn next_entry(&mut self) -> Result<Option<RawEntry>> {
        self.skip_rest()?;
        let (mut long_path, mut long_link) = (None, None);
        let mut extended = None;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            let size = unsigned(&header, SIZE, "size")?;
            match kind {
                EntryType::GNULongName => long_path = Some(self.text(size)?),
                EntryType::GNULongLink => long_link = Some(self.text(size)?),
                EntryType::XHeader => {
                    let bytes = self.small(size)?;
                    extended = Some(parse_extended(&bytes)?);
                }
                EntryType::XGlobalHeader => {
                    let bytes = self.small(size)?;
                    self.global.update(parse_extended(&bytes)?);
                }
                _ => {
                    let extended = self.global.clone().overlaid(extended);
                    return self.entry(&header, extended, long_path, long_link).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        extended: Extended,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<RawEntry> {
        let kind = header.entry_type();
        let path = extended.path.or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended.link.or(long_link);
        let link =
            link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        // Only files have content; some archivers give links and folders a size that is none.
        let has_content = matches!(
            kind,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Link
        );
        let stored = extended.size.map_or_else(|| unsigned(header, SIZE, "size"), Ok)?;
        let stored = if has_content && kind != EntryType::Link { stored } else { 0 };
        self.left = stored;
        self.padding = padding(stored);
        let mut entry = RawEntry {
            path,
            kind,
            link,
            mode: u32::try_from(unsigned(header, MODE, "mode")? & 0o7777).unwrap_or(0),
            uid: id(extended.uid.map_or_else(|| unsigned(header, UID, "owner"), Ok)?, "owner")?,
            gid: id(extended.gid.map_or_else(|| unsigned(header, GID, "group"), Ok)?, "group")?,
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => (signed(header, MTIME, "time")?, 0),
            },
            device: device(header, kind)?,
            xattrs: extended.xattrs,
            size: stored,
            sparse: None,
        };
        if kind == EntryType::GNUSparse {
            self.old_sparse(header, &mut entry)?;
        } else if let Some(sparse) = extended.sparse {
            if let Some(name) = sparse.name {
                entry.path = name;
            }
            entry.size = sparse.real_size.unwrap_or(stored);
            let map = if sparse.map_in_content { self.sparse_map()? } else { sparse.map };
            entry.sparse = Some(check_sparse(map, entry.size, self.left)?);
        }
        Ok(entry)
    }

    /// One header; `None` where the archive ends by two empty blocks, or by nothing.
    fn header(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if !read_or_end(&mut self.from, block)? {
            self.ended = true;
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        let told = unsigned(&header, CHECKSUM, "checksum")?;
        // The checksum counts its own field as blanks.
        if told != u64::from(sum - own + 8 * u32::from(b' ')) {
            return Err(corrupt("a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// A small piece of content that belongs to a header.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_HEADER_BYTES {
            return Err(corrupt(&format!("an extended header is larger than {MAX_HEADER_BYTES} bytes"))
                .with_kind(Kind::TooLarge));
        }
        let mut bytes = Vec::new();
        let read = Read::by_ref(&mut self.from).take(size).read_to_end(&mut bytes);
        if read.context(|| "layer archive")? as u64 != size {
            return Err(corrupt("it ends within an extended header"));
        }
        skip(&mut self.from, padding(size))?;
        Ok(bytes)
    }

    /// A long name, which ends with a NUL.
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut bytes = self.small(size)?;
        if bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    /// GNU's old form: the map stands in the header, and in blocks behind it.
    fn old_sparse(&mut self, header: &Header, entry: &mut RawEntry) -> Result<()> {
        let gnu = header.as_gnu().ok_or_else(|| corrupt("a sparse file has no GNU header"))?;
        let mut map = Vec::new();
        let mut add = |part: &tar::GnuSparseHeader| -> Result<()> {
            if part.is_empty() {
                return Ok(());
            }
            if map.len() >= MAX_SPARSE_PARTS {
                return Err(corrupt("a sparse file has too many parts").with_kind(Kind::TooLarge));
            }
            map.push((field(part.offset(), "offset")?, field(part.length(), "length")?));
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !read_or_end(&mut self.from, block.as_mut_bytes())? {
                return Err(corrupt("it ends within a sparse file's map"));
            }
            block.sparse.iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        entry.size = field(gnu.real_size(), "real size")?;
        entry.sparse = Some(check_sparse(map, entry.size, self.left)?);
        Ok(())
    }

    /// GNU's form 1.0: the map stands in the content, as decimal numbers in whole blocks.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut digits = String::new();
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 || !read_or_end(&mut self.from, &mut block)? {
                return Err(corrupt("it ends within a sparse file's map"));
            }
            self.left -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(char::from(byte)),
                    b'\n' if numbers.len() < wanted => {
                        let number: u64 =
                            digits.parse().map_err(|_| corrupt("a sparse file's map holds no number"))?;
                        digits.clear();
                        if numbers.is_empty() {
                            if number > MAX_SPARSE_PARTS as u64 {
                                return Err(
                                    corrupt("a sparse file has too many parts").with_kind(Kind::TooLarge)
                                );
                            }
                            wanted = 1 + 2 * usize::try_from(number).unwrap_or(0);
                        }
                        numbers.push(number);
                    }
                    _ if numbers.len() >= wanted => break,
                    _ => return Err(corrupt("a sparse file's map holds no number")),
                }
            }
        }
        Ok(numbers.get(1..).unwrap_or_default().chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// The next bytes of the current entry's content, at most `most`; empty at its end.
    ///
    /// They stay until [`consume`](Self::consume) takes them.
    pub fn content(&mut self, most: u64) -> Result<&[u8]> {
        let most = usize::try_from(self.left.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = self.from.fill_buf().context(|| "layer archive")?;
        if bytes.is_empty() {
            return Err(corrupt("it ends within a file"));
        }
        Ok(bytes.get(..most).unwrap_or(bytes))
    }

    /// Takes bytes that [`content`](Self::content) has given.
    pub fn consume(&mut self, count: usize) {
        self.from.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    fn skip_rest(&mut self) -> Result<()> {
        skip(&mut self.from, self.left)?;
        skip(&mut self.from, self.padding)?;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64).saturating_sub(size)
}

fn skip(from: &mut impl BufRead, mut count: u64) -> Result<()> {
    while count > 0 {
        let here = from.fill_buf().context(|| "layer archive")?.len();
        if here == 0 {
            return Err(corrupt("it ends within a file"));
        }
        let step = usize::try_from(count).unwrap_or(usize::MAX).min(here);
        from.consume(step);
        count -= step as u64;
    }
    Ok(())
}

/// Fills a block; false when there is nothing at all.
fn read_or_end(from: &mut impl BufRead, block: &mut [u8]) -> Result<bool> {
    if from.fill_buf().context(|| "layer archive")?.is_empty() {
        return Ok(false);
    }
    from.read_exact(block).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt("it ends within a header"),
        _ => Error::from(error),
    })?;
    Ok(true)
}

/// The parts of a sparse file must follow each other, lie within it, and be all of the content.
fn check_sparse(map: Vec<(u64, u64)>, size: u64, content: u64) -> Result<Vec<(u64, u64)>> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in &map {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| corrupt("a sparse file's parts overlap or lie outside of it"))?;
        sum += length;
    }
    if sum != content {
        return Err(corrupt("a sparse file's parts are not as long as its content"));
    }
    Ok(map)
}

fn device(header: &Header, kind: EntryType) -> Result<(u32, u32)> {
    if !matches!(kind, EntryType::Char | EntryType::Block) {
        return Ok((0, 0));
    }
    let number = |place| {
        let number = unsigned(header, place, "device")?;
        u32::try_from(number).map_err(|_| corrupt(&format!("a device has the number {number}")))
    };
    Ok((number(MAJOR)?, number(MINOR)?))
}

fn id(number: u64, what: &str) -> Result<u32> {
    // The largest one means "leave it as it is" to the kernel.
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| corrupt(&format!("a file's {what} is {number}, which is no id")))
}

/// Where the numbers of a header stand.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;

/// A number of a header: octal digits, with blanks and NULs around them or nothing at all, which is 0; or, where the
/// first bit is set, a two's complement of the rest.
fn signed(header: &Header, place: Range<usize>, what: &str) -> Result<i64> {
    let bytes = header.as_bytes().get(place).unwrap_or_default();
    let malformed = || corrupt(&format!("a header's {what} is no number"));
    let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) else {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
        let text = text.trim_matches(['\0', ' ']);
        return if text.is_empty() { Ok(0) } else { i64::from_str_radix(text, 8).map_err(|_| malformed()) };
    };
    // The second bit is the sign.
    let start = if first & 0x40 == 0 { i128::from(first & 0x3f) } else { i128::from(*first) - 256 };
    let mut number = start;
    for byte in bytes.iter().skip(1) {
        number = number.checked_mul(256).ok_or_else(malformed)? + i128::from(*byte);
    }
    i64::try_from(number).map_err(|_| malformed())
}

fn unsigned(header: &Header, place: Range<usize>, what: &str) -> Result<u64> {
    let number = signed(header, place, what)?;
    u64::try_from(number).map_err(|_| corrupt(&format!("a header's {what} is negative")))
}

fn field<T>(value: std::io::Result<T>, what: &str) -> Result<T> {
    value.map_err(|_| corrupt(&format!("a header's {what} is no number")))
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::new(format!("layer archive: {what}")).with_kind(Kind::Corrupt)
}

/// Whether an attribute is within what the kernel takes.
pub(super) fn xattr_fits(name: &str, value: &[u8]) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains('\0') && value.len() <= MAX_XATTR_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_headers() {
        let read = |bytes: &[u8]| {
            let mut header = Header::new_old();
            header.as_mut_bytes().fill(0);
            header.as_mut_bytes()[MTIME][..bytes.len()].copy_from_slice(bytes);
            signed(&header, MTIME, "time").ok()
        };
        assert_eq!(read(b""), Some(0));
        assert_eq!(read(b"   17 \0"), Some(15));
        assert_eq!(read(b"777777777777"), Some(0o777_777_777_777));
        assert_eq!(read(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(read(&[0xff; 12]), Some(-1));
        for bad in [&b"8"[..], b"1 2", b"-1x", &[0x80, 1], &[0xc0, 0]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
