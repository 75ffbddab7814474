//! The header of a packet (section 5.10.6).

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = 44;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const STREAM: u16 = 1;
/// The host's CID.
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: no more data is wanted.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: no more data will come.
pub const SHUTDOWN_SEND: u32 = 2;

/// Operations.
pub mod op {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    #[allow(missing_docs, reason = "named as in the specification")]
    pub src_cid: u64,
    #[allow(missing_docs, reason = "named as in the specification")]
    pub dst_cid: u64,
    #[allow(missing_docs, reason = "named as in the specification")]
    pub src_port: u32,
    #[allow(missing_docs, reason = "named as in the specification")]
    pub dst_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    /// Stream, or what is not known here.
    pub kind: u16,
    /// See [`op`].
    pub op: u16,
    /// Of a shutdown.
    pub flags: u32,
    /// How much the sender buffers.
    pub buf_alloc: u32,
    /// How much of that it has passed on, counted from the beginning, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(raw: &[u8; HEADER_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// As it goes over the wire.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0xdead_beef,
            dst_port: 1,
            len: 7,
            kind: 1,
            op: 5,
            flags: 3,
            buf_alloc: u32::MAX,
            fwd_cnt: 9,
        };
        assert_eq!(Header::parse(&header.to_bytes()), header);
        assert_eq!(header.to_bytes()[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    }
}
