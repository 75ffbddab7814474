//! The encoding of nf_tables' messages: attributes in attributes, numbers in network order
//! (`linux/netfilter/nf_tables.h`).

use moat_linux::netlink::{Request, flag};

/// The subsystem, in the upper half of a message's kind.
pub(crate) const SUBSYSTEM: u8 = 10;
pub(crate) const NEWTABLE: u16 = kind(0);
pub(crate) const DELTABLE: u16 = kind(2);
pub(crate) const NEWCHAIN: u16 = kind(3);
pub(crate) const GETCHAIN: u16 = kind(4);
pub(crate) const NEWRULE: u16 = kind(6);
pub(crate) const GETRULE: u16 = kind(7);
pub(crate) const NEWSET: u16 = kind(9);
pub(crate) const NEWSETELEM: u16 = kind(12);
pub(crate) const GETSETELEM: u16 = kind(13);
pub(crate) const DELSETELEM: u16 = kind(14);

const NESTED: u16 = 0x8000;
const ORDER: u16 = 0x4000;

const fn kind(message: u16) -> u16 {
    (SUBSYSTEM as u16) << 8 | message
}

/// The families of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames that cross a bridge.
    Bridge = 7,
}

/// Attributes that are being put together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// The header of a message, `struct nfgenmsg`.
    pub(crate) fn of(family: Family) -> Self {
        Self::of_raw(family as u8)
    }

    pub(crate) fn of_raw(family: u8) -> Self {
        Self(vec![family, 0, 0, 0])
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// A request that holds these.
    pub(crate) fn request(self, kind: u16, flags: u16, what: impl Into<String>) -> Request {
        Request { kind, flags, payload: self.0, what: what.into() }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Flags of a request that makes something.
pub(crate) const CREATE: u16 = flag::CREATE;
/// Flags of a request that makes something that must not be there.
pub(crate) const CREATE_NEW: u16 = flag::CREATE | flag::EXCL;

/// The attributes of an answer, in order: kind and value. What is cut off ends the walk.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & !(NESTED | ORDER);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attributes of a whole answer.
pub(crate) fn answer(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(payload.get(4..).unwrap_or_default())
}

/// The value of one attribute.
pub(crate) fn find<'a>(mut all: impl Iterator<Item = (u16, &'a [u8])>, kind: u16) -> Option<&'a [u8]> {
    all.find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text that ends in a zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number of 64 bits.
pub(crate) fn long(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// A number of 32 bits.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Attributes::default().number(1, 7).text(2, "moat");
        let bytes = Attributes::of(Family::Inet).nested(4, &inner).bytes(5, &[1, 2, 3]).into_bytes();
        let found: Vec<_> = answer(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(number(find(attributes(found[0].1), 1).unwrap()), Some(7));
        assert_eq!(text(find(attributes(found[0].1), 2).unwrap()), "moat");
        assert_eq!(found[1], (5, [1, 2, 3].as_slice()));
    }

    #[test]
    fn what_is_cut_off_ends() {
        let bytes = Attributes::of(Family::Bridge).number(1, 7).number(2, 8).into_bytes();
        for cut in 0..bytes.len() {
            assert!(answer(&bytes[..cut]).count() < 2, "{cut}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}
