//! The records of pax extended headers: `LENGTH NAME=VALUE\n`.

use super::archive::{corrupt, xattr_fits};
use crate::Result;

/// What the records of one extended header say; `None` where they say nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    pub(super) sparse: Option<Sparse>,
}

/// GNU's sparse files in pax records, all three forms.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Vec<(u64, u64)>,
    pub(super) map_in_content: bool,
    /// Form 0.0 tells offset and length in records of their own.
    offset: Option<u64>,
}

impl Extended {
    /// Takes over what `other` says.
    pub(super) fn update(&mut self, other: Self) {
        let Self { path, link, size, uid, gid, mtime, xattrs, sparse } = other;
        self.path = path.or(self.path.take());
        self.link = link.or(self.link.take());
        self.size = size.or(self.size);
        self.uid = uid.or(self.uid);
        self.gid = gid.or(self.gid);
        self.mtime = mtime.or(self.mtime);
        self.sparse = sparse.or(self.sparse.take());
        for (name, value) in xattrs {
            self.xattrs.retain(|(known, _)| *known != name);
            self.xattrs.push((name, value));
        }
    }

    pub(super) fn overlaid(mut self, over: Option<Self>) -> Self {
        if let Some(over) = over {
            self.update(over);
        }
        self
    }
}

pub(super) fn parse_extended(mut bytes: &[u8]) -> Result<Extended> {
    let mut extended = Extended::default();
    // Some writers fill the rest of the block with NULs and count them.
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let (name, value, rest) = record(bytes).ok_or_else(|| corrupt("a pax record is malformed"))?;
        bytes = rest;
        apply(&mut extended, name, value)?;
    }
    Ok(extended)
}

/// The first record's name and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let blank = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..blank)?).ok()?.parse().ok()?;
    let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let name = std::str::from_utf8(record.get(..equals)?).ok()?;
    Some((name, record.get(equals + 1..)?, bytes.get(length..)?))
}

fn apply(extended: &mut Extended, name: &str, value: &[u8]) -> Result<()> {
    let number = || {
        let text = std::str::from_utf8(value).ok();
        text.and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| corrupt(&format!("the pax record {name:?} holds no number")))
    };
    // An empty value takes back what a global header has set.
    let text = || Some(value.to_vec()).filter(|value| !value.is_empty());
    match name {
        "path" => extended.path = text(),
        "linkpath" => extended.link = text(),
        "size" => extended.size = Some(number()?),
        "uid" => extended.uid = Some(number()?),
        "gid" => extended.gid = Some(number()?),
        "mtime" => extended.mtime = Some(time(value)?),
        "GNU.sparse.name" => sparse(extended).name = text(),
        "GNU.sparse.realsize" | "GNU.sparse.size" => sparse(extended).real_size = Some(number()?),
        "GNU.sparse.major" => sparse(extended).map_in_content = number()? == 1,
        "GNU.sparse.offset" => sparse(extended).offset = Some(number()?),
        "GNU.sparse.numbytes" => {
            let length = number()?;
            let sparse = sparse(extended);
            let offset = sparse.offset.take().ok_or_else(|| corrupt("a sparse part has no offset"))?;
            sparse.map.push((offset, length));
        }
        "GNU.sparse.map" => {
            let text = std::str::from_utf8(value).unwrap_or_default();
            let numbers: std::result::Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
            let numbers = numbers.map_err(|_| corrupt("a sparse file's map holds no number"))?;
            sparse(extended).map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        }
        _ => {
            let attribute =
                name.strip_prefix("SCHILY.xattr.").or_else(|| name.strip_prefix("LIBARCHIVE.xattr."));
            // libarchive writes each attribute twice, its own in another coding; SCHILY's is the plain one.
            if let Some(attribute) = attribute.filter(|_| name.starts_with("SCHILY.")) {
                if !xattr_fits(attribute, value) {
                    return Err(corrupt(&format!(
                        "the attribute {attribute:?} has no legal name or is too long"
                    )));
                }
                extended.xattrs.retain(|(known, _)| known != attribute);
                extended.xattrs.push((attribute.to_owned(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn sparse(extended: &mut Extended) -> &mut Sparse {
    extended.sparse.get_or_insert_default()
}

/// Decimal seconds with a fraction; they may be negative.
fn time(value: &[u8]) -> Result<(i64, u32)> {
    let parse = || {
        let text = std::str::from_utf8(value).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanoseconds: u32 = digits.parse().ok()?;
        // -1.25 s is 0.75 s after -2 s.
        if whole.starts_with('-') && nanoseconds > 0 {
            return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
        }
        Some((seconds, nanoseconds))
    };
    parse().ok_or_else(|| corrupt("a pax record holds no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let extended = parse_extended(b"12 path=a/b\n28 SCHILY.xattr.user.x=a\n\0=\n20 mtime=1.000000001\n");
        assert!(extended.is_err(), "lengths must be right");
        let extended =
            parse_extended(b"12 path=a/b\n27 SCHILY.xattr.user.x=a\n\0\n21 mtime=1.000000001\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extended.xattrs, [("user.x".to_owned(), b"a\n\0".to_vec())]);
        assert_eq!(extended.mtime, Some((1, 1)));
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("0", (0, 0)),
            ("1.5", (1, 500_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("2.1234567891", (2, 123_456_789)),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), expected, "{text}");
        }
        for bad in ["", "x", "1.x", "-", "1e3"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [&b"x"[..], b"5 a=b\n", b"99 a=b\n", b"3 \n", b"0 a=b\n", b"18446744073709551615 a=b\n"] {
            assert!(parse_extended(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
