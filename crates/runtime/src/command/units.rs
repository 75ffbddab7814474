//! Sizes and times as the flags of runc take them.

use std::time::Duration;

use moat_sandbox::{Error, Result};

/// Bytes, as `100M`, `1.5GiB`, `-1` for no limit. All units are powers of 1024, as in go-units.
pub(crate) fn bytes(flag: &str, text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let size = parse_bytes(text);
    size.ok_or_else(|| Error::new(format!("{flag} {text:?} is not a size such as 100M, 1.5GiB or -1")))
}

fn parse_bytes(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at_checked(end)?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let exponent = match letter {
        // "5ib" is nothing that anybody writes.
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let factor = 1_i64 << (10 * exponent);
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(factor);
    }
    let size = number.parse::<f64>().ok()? * factor as f64;
    (size < i64::MAX as f64).then_some(size as i64)
}

/// A time as Go writes it: `5s`, `1m30s`, `1.5h`, `300ms`.
pub(crate) fn duration(flag: &str, text: &str) -> Result<Duration> {
    let bad = || Error::new(format!("{flag} {text:?} is not a time such as 5s, 1m30s or 300ms"));
    let nanoseconds = parse_duration(text).ok_or_else(bad)?;
    if nanoseconds < 1.0 {
        return Err(Error::new(format!("{flag} {text:?} must be more than 0")));
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

fn parse_duration(text: &str) -> Option<f64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0.0);
    }
    let mut nanoseconds = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end)?;
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanoseconds += number.parse::<f64>().ok()? * scale;
        if next.is_empty() {
            return (nanoseconds < i64::MAX as f64).then_some(nanoseconds);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_go_units() {
        for (text, size) in [
            ("0", 0),
            ("-1", -1),
            ("32", 32),
            ("32b", 32),
            ("32 KiB", 32 << 10),
            ("32kb", 32 << 10),
            ("1.5M", 3 << 19),
            ("2gib", 2 << 30),
            ("1P", 1 << 50),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(bytes("--memory", text).unwrap(), size, "{text}");
        }
        for bad in ["", "-2", "100x", "x", "1.5.5", ".", "M", "5ib", "5  M", "9000P", "9223372036854775808"] {
            assert!(bytes("--memory", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_go() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("2500us", 2),
            (".5s", 500),
        ] {
            assert_eq!(duration("--interval", text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for bad in ["", "0", "0s", "5", "s", "5 s", "-5s", "5d", "1.2.3s", "999999999h"] {
            assert!(duration("--interval", bad).is_err(), "{bad}");
        }
    }
}
