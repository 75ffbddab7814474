//! Durations as Go writes them (`1m30s`, `1.5h`, `300ms`), and points in time.

/// Milliseconds of a duration.
pub(crate) fn parse_ms(text: &str) -> Result<u64, String> {
    let ns = parse_ns(text)?;
    let ms = ns / 1_000_000;
    if ns > 0 && ms == 0 {
        return Err(format!("{text} is less than a millisecond"));
    }
    u64::try_from(ms).map_err(|_| format!("{text} is longer than this clock counts"))
}

/// Nanoseconds of a duration.
pub(crate) fn parse_ns(text: &str) -> Result<u128, String> {
    let bad = || format!("{text:?} is no duration; write numbers with units, as in 1m30s or 500ms");
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 18 {
            return Err(bad());
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        total += whole * scale;
        let mut place = scale;
        for digit in fraction.bytes() {
            place /= 10;
            total += u128::from(digit - b'0') * place;
        }
        rest = next;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// A point in time: a Unix time with or without a fraction, a date, a date with a time, RFC 3339, or a
/// duration before `now`. Gives nanoseconds since 1970.
pub(crate) fn parse_time(text: &str, now: jiff::Timestamp) -> Result<i128, String> {
    let bad = || {
        format!(
            "{text:?} is no point in time; write 2026-01-02T15:04:05Z, 2026-01-02, Unix seconds, or how \
             long ago, as in 10m"
        )
    };
    if let Ok(ago) = parse_ns(text)
        && text != "0"
    {
        return Ok(now.as_nanosecond() - i128::try_from(ago).map_err(|_| bad())?);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !whole.is_empty() && whole.len() <= 12 && numeric(whole) && fraction.len() <= 9 && numeric(fraction) {
        let seconds: i128 = whole.parse().map_err(|_| bad())?;
        let nanoseconds: i128 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
        return Ok(seconds * 1_000_000_000 + nanoseconds);
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return Ok(stamp.as_nanosecond());
    }
    // Docker's dates end in Z or nothing; nothing means the local time.
    let (civil, zone) = match text.strip_suffix('Z') {
        Some(civil) => (civil, jiff::tz::TimeZone::UTC),
        None => (text, jiff::tz::TimeZone::system()),
    };
    let padded = match civil.len() {
        13 => format!("{civil}:00"),
        _ => civil.to_owned(),
    };
    let civil: jiff::civil::DateTime = padded.parse().map_err(|_| bad())?;
    Ok(civil.to_zoned(zone).map_err(|_| bad())?.timestamp().as_nanosecond())
}

#[cfg(test)]
mod tests {
    use super::{parse_ms, parse_ns, parse_time};

    #[test]
    fn durations_of_go() {
        for (text, ns) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("2h45m", 9_900_000_000_000),
            ("300ms", 300_000_000),
            ("1us", 1_000),
            ("1µs", 1_000),
            ("7ns", 7),
        ] {
            assert_eq!(parse_ns(text), Ok(ns), "{text}");
        }
        for text in ["", "5", "s", ".s", "1..2s", "-1s", "1d", "1 s", "1s2", "١s", "9999999999999999999h"] {
            assert!(parse_ns(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_ms("1500us"), Ok(1));
        assert!(parse_ms("1us").is_err());
    }

    #[test]
    fn points_in_time() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        for (text, ns) in [
            ("10m", (1_000_000 - 600) * 1_000_000_000),
            ("0", 0),
            ("1136073845", 1_136_073_845_000_000_000),
            ("1136073845.000000001", 1_136_073_845_000_000_001),
            ("2006-01-02T15:04:05Z", 1_136_214_245_000_000_000),
            ("2006-01-02T15:04:05.5Z", 1_136_214_245_500_000_000),
            ("2006-01-02T15:04:05+01:00", 1_136_210_645_000_000_000),
            ("2006-01-02T15:04Z", 1_136_214_240_000_000_000),
            ("2006-01-02T15Z", 1_136_214_000_000_000_000),
            ("2006-01-02Z", 1_136_160_000_000_000_000),
        ] {
            assert_eq!(parse_time(text, now), Ok(ns), "{text}");
        }
        assert!(parse_time("2006-01-02", now).is_ok());
        for text in ["", "yesterday", "2006-13-01", "1.1234567890", "2006-01-02T25:00", "-5"] {
            assert!(parse_time(text, now).is_err(), "{text:?}");
        }
    }
}
