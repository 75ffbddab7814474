//! Sizes as Docker reads them: `512m`, `1.5g`, `2GiB`; each unit is 1024 of the one before.

/// Bytes of a size such as `64m`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write a number with b, k, m, g, t or p, as in 512m");
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.').ok_or_else(bad)? + 1;
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(bad());
    }
    let shift = match unit.as_bytes() {
        [] | [b'b'] => 0,
        [letter] | [letter, b'b'] | [letter, b'i', b'b'] => {
            let place = b"kmgtp".iter().position(|known| known == letter).ok_or_else(bad)?;
            10 * (place as u32 + 1)
        }
        _ => return Err(bad()),
    };
    let scale = 1_u64 << shift;
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => {
            let exact = number.parse::<f64>().map_err(|_| bad())? * scale as f64;
            (exact < u64::MAX as f64).then_some(exact as u64)
        }
    };
    // The kernel's interfaces and Docker's API take signed numbers.
    bytes
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| format!("{text:?} is more than a machine can have"))
}

/// As [`parse`], with -1 for "no limit".
pub(crate) fn parse_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { parse(text).map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_or_unlimited};

    #[test]
    fn what_docker_accepts() {
        for (text, bytes) in [
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("32B", 32),
            ("32k", 32 << 10),
            ("32KB", 32 << 10),
            ("32KiB", 32 << 10),
            ("32 kb", 32 << 10),
            ("32m", 32 << 20),
            ("1.5g", 3 << 29),
            ("32.5kB", 33_280),
            ("0.5k", 512),
            (".5k", 512),
            ("32T", 32 << 40),
            ("3Pb", 3 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_or_unlimited("-1"), Ok(-1));
        assert_eq!(parse_or_unlimited("1g"), Ok(1 << 30));
    }

    #[test]
    fn what_docker_refuses() {
        for text in [
            "",
            "hello",
            "-32",
            "-1",
            " 32 ",
            "32m b",
            "32bm",
            "m",
            "1.2.3k",
            "32gg",
            "32ib",
            "32bb",
            "0x10",
            "32kibb",
            "99999999p",
            "1e3",
            "٣k",
            "inf",
            "1\nk",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse_or_unlimited("-2").is_err());
    }
}
