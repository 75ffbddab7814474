//! From a descriptor chain to an operation (section 5.2.6).

use super::disk::{Operation, SECTOR_BYTES};
use super::{MOST_SECTORS, feature};
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::{Fault, Memory};

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a driver asks for.
#[derive(Debug)]
pub(super) enum Ask {
    /// Something for the disk.
    Disk(Operation),
    /// The serial number, to be written here.
    Serial(Buffers),
    /// Nothing that can be done.
    Refused(Status),
}

/// A request that was understood, or refused.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    /// Device-writable bytes before the status byte.
    pub(super) data_bytes: u32,
    /// Where the status byte goes.
    pub(super) status: Buffers,
}

/// What decides how requests are read.
pub(super) struct Rules {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// What was negotiated.
    pub(super) features: u64,
}

mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// A discard's or a write-zeroes' flag.
const UNMAP: u32 = 1;

impl Request {
    /// The header is copied once; what is done follows from the copy alone.
    pub(super) fn parse(chain: &Chain, memory: &Memory, rules: &Rules) -> Result<Self, Fault> {
        let mut reader = chain.reader(memory);
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] =
            reader.header("the header of a block request")?;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let mut writer = chain.writer(memory);
        let no_status = Fault::Short("the status of a block request");
        let data_bytes = writer.remaining().checked_sub(1).ok_or(no_status)?;
        let into = writer.take(data_bytes).ok_or(no_status)?;
        let status = writer.take(1).ok_or(no_status)?;
        let has = |wanted| rules.features & wanted != 0;
        let ask = match kind {
            kind::IN => match rules.range(sector, into.len() as u64) {
                Some(offset_bytes) => Ask::Disk(Operation::Read { offset_bytes, buffers: into }),
                None => Ask::Refused(Status::IoError),
            },
            kind::OUT if rules.read_only => Ask::Refused(Status::IoError),
            kind::OUT => {
                let from = reader.take(reader.remaining());
                match from.and_then(|from| Some((rules.range(sector, from.len() as u64)?, from))) {
                    Some((offset_bytes, buffers)) => {
                        // Section 5.2.6.2: without the flush command, what is done is durable.
                        let durable = !has(feature::FLUSH);
                        Ask::Disk(Operation::Write { offset_bytes, buffers, durable })
                    }
                    None => Ask::Refused(Status::IoError),
                }
            }
            kind::FLUSH if has(feature::FLUSH) => Ask::Disk(Operation::Flush),
            kind::GET_ID => Ask::Serial(into),
            kind::DISCARD if has(feature::DISCARD) => {
                rules.range_request(reader.header("a range to discard")?, reader.remaining(), false)
            }
            kind::WRITE_ZEROES if has(feature::WRITE_ZEROES) => {
                rules.range_request(reader.header("a range to zero")?, reader.remaining(), true)
            }
            _ => Ask::Refused(Status::Unsupported),
        };
        // Less than 4 GiB, as every chain.
        Ok(Self { ask, data_bytes: data_bytes as u32, status })
    }
}

impl Rules {
    /// The place on the disk of whole sectors that are all there.
    fn range(&self, sector: u64, length_bytes: u64) -> Option<u64> {
        let sectors = length_bytes / SECTOR_BYTES;
        let inside = sector.checked_add(sectors)? <= self.sectors;
        if !inside || !length_bytes.is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        sector.checked_mul(SECTOR_BYTES)
    }

    /// A discard or a write-zeroes, of which the configuration allows one range each.
    fn range_request(&self, range: [u8; 16], more_bytes: usize, zero: bool) -> Ask {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let known = if zero { UNMAP } else { 0 };
        if flags & !known != 0 {
            return Ask::Refused(Status::Unsupported);
        }
        let length_bytes = u64::from(sectors) * SECTOR_BYTES;
        if more_bytes != 0 || sectors > MOST_SECTORS || self.read_only {
            return Ask::Refused(Status::IoError);
        }
        match self.range(sector, length_bytes) {
            None => Ask::Refused(Status::IoError),
            Some(offset_bytes) if zero => {
                Ask::Disk(Operation::Zero { offset_bytes, length_bytes, unmap: flags & UNMAP != 0 })
            }
            Some(offset_bytes) => Ask::Disk(Operation::Discard { offset_bytes, length_bytes }),
        }
    }
}
