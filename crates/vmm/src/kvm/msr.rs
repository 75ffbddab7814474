//! The model specific registers that a guest may touch, each range with its reason. All others are denied:
//! the access faults in the guest, and is counted.
//!
//! KVM emulates what is allowed; nothing here reaches the host's processor as such. The registers of the
//! local interrupt controller (0x800 to 0x8ff) are beyond any filter, and stay in the kernel.

use kvm_ioctls::{MsrFilterRange, MsrFilterRangeFlags};

/// A range of registers.
#[derive(Clone, Copy, Debug)]
pub struct MsrRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// Who needs it.
    pub reason: &'static str,
}

const fn range(first: u32, last: u32, reason: &'static str) -> MsrRange {
    MsrRange { first, last, reason }
}

/// What a guest may read and write.
pub const ALLOWED: &[MsrRange] = &[
    range(0x10, 0x12, "time stamp counter; kvmclock's first registers"),
    range(0x1b, 0x1b, "address of the local interrupt controller"),
    range(0x3a, 0x3b, "feature control, which says that VMX is locked off; adjustment of the counter"),
    range(0x48, 0x49, "speculation control and barriers"),
    range(0x8b, 0x8b, "microcode revision, read at every boot"),
    range(0xfe, 0xfe, "what memory types there are"),
    range(0x10a, 0x10b, "which speculation faults the processor has not; cache flush"),
    range(0x174, 0x176, "entry of SYSENTER"),
    range(0x179, 0x17b, "machine check capabilities and control"),
    range(0x1a0, 0x1a0, "miscellaneous features, among them fast strings"),
    range(0x1d9, 0x1d9, "debug control"),
    range(0x200, 0x20f, "memory types of variable ranges"),
    range(0x250, 0x26f, "memory types of fixed ranges"),
    range(0x277, 0x277, "page attribute table"),
    range(0x2ff, 0x2ff, "default memory type"),
    range(0x400, 0x47f, "banks of machine check"),
    range(0x6e0, 0x6e0, "deadline of the local timer"),
    range(0xda0, 0xda0, "supervisor states of XSAVE"),
    range(0x4b56_4d00, 0x4b56_4d0f, "KVM's own: clock, stolen time, page faults, end of interrupt"),
    range(0xc000_0080, 0xc000_0084, "long mode: EFER, SYSCALL"),
    range(0xc000_0100, 0xc000_0104, "bases of FS and GS, auxiliary counter value, counter ratio"),
    range(0xc001_0010, 0xc001_0015, "AMD: system configuration, hardware configuration"),
    range(0xc001_001f, 0xc001_001f, "AMD: north bridge configuration, read at boot"),
    range(0xc001_011f, 0xc001_011f, "AMD: virtual speculation control"),
    range(0xc001_0140, 0xc001_0141, "AMD: which errata the operating system works around"),
    range(0xc001_1029, 0xc001_1029, "AMD: decode configuration, whether LFENCE serializes"),
];

/// How far a bitmap reaches from its first register.
const REACH: u32 = 0x800;

/// The bitmaps of all ranges: the allowed registers, gathered where they lie near to each other, because the
/// kernel takes 16 ranges and no more.
pub(super) struct Bitmap {
    base: u32,
    count: u32,
    bits: Vec<u8>,
}

pub(super) fn bitmaps() -> Vec<Bitmap> {
    let mut all: Vec<Bitmap> = Vec::new();
    for MsrRange { first, last, .. } in ALLOWED.iter().copied() {
        if all.last().is_none_or(|bitmap| last - bitmap.base >= REACH) {
            all.push(Bitmap { base: first & !7, count: 0, bits: Vec::new() });
        }
        let Some(bitmap) = all.last_mut() else { continue };
        for register in first..=last {
            let bit = register - bitmap.base;
            bitmap.count = bitmap.count.max(bit + 1);
            bitmap.bits.resize((bitmap.count as usize).div_ceil(64) * 8, 0);
            if let Some(byte) = bitmap.bits.get_mut(bit as usize / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    all
}

pub(super) fn ranges(bitmaps: &[Bitmap]) -> Vec<MsrFilterRange<'_>> {
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let mut ranges = Vec::new();
    for Bitmap { base, count, bits } in bitmaps {
        ranges.push(MsrFilterRange { flags, base: *base, msr_count: *count, bitmap: bits });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmaps_allow_the_list_and_nothing_else() {
        let bitmaps = bitmaps();
        assert!(bitmaps.len() <= 16);
        let mut found = Vec::new();
        for Bitmap { base, count, bits } in &bitmaps {
            let set = |bit: &u32| bits[*bit as usize / 8] & (1 << (bit % 8)) != 0;
            found.extend((0..*count).filter(set).map(|bit| base + bit));
        }
        let wanted: Vec<u32> = ALLOWED.iter().flat_map(|range| range.first..=range.last).collect();
        assert_eq!(found, wanted);
    }
}
