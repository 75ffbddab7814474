//! Sizes and times as Docker writes them.

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// Four digits, units of 1000: `1.234MB`.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes as f64, 4, 1000.0, &DECIMAL)
}

/// Three digits, units of 1000: `1.23MB`.
pub(crate) fn short_size(bytes: u64) -> String {
    scaled(bytes as f64, 3, 1000.0, &DECIMAL)
}

/// Four digits, units of 1024: `1.178MiB`.
pub(crate) fn memory(bytes: u64) -> String {
    scaled(bytes as f64, 4, 1024.0, &BINARY)
}

fn scaled(mut value: f64, digits: usize, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units.get(unit).unwrap_or(&""))
}

/// C's `%.{digits}g` for numbers below 10000.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent = format!("{value:.*e}", digits - 1);
    let power: i32 = exponent.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    if power >= digits as i32 {
        let (digits, _) = exponent.split_once('e').unwrap_or((&exponent, ""));
        let digits =
            if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e+{power:02}");
    }
    let places = (digits as i32 - 1 - power).max(0) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// How long, in words: `About an hour`.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes) {
        (0, _) => "Less than a second".to_owned(),
        (1, _) => "1 second".to_owned(),
        (2..60, _) => format!("{seconds} seconds"),
        (_, 1) => "About a minute".to_owned(),
        (_, 2..60) => format!("{minutes} minutes"),
        _ => match hours {
            1 => "About an hour".to_owned(),
            2..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 24 / 7),
            1440..17520 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", hours / 24 / 365),
        },
    }
}

/// A point in time as Go prints it: `2006-01-02 15:04:05 +0000 UTC`, in local time.
pub(crate) fn local_time(nanoseconds: i128) -> String {
    match jiff::Timestamp::from_nanosecond(nanoseconds) {
        Ok(stamp) => {
            stamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
        }
        Err(_) => String::new(),
    }
}

/// At most `width` characters, the last of them an ellipsis where something was left out.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::{duration, ellipsis, memory, short_size, size};

    #[test]
    fn sizes() {
        for (bytes, four, three, binary) in [
            (0, "0B", "0B", "0B"),
            (1, "1B", "1B", "1B"),
            (999, "999B", "999B", "999B"),
            (1000, "1kB", "1kB", "1000B"),
            (1024, "1.024kB", "1.02kB", "1KiB"),
            (4_262_100, "4.262MB", "4.26MB", "4.065MiB"),
            (72_800_000, "72.8MB", "72.8MB", "69.43MiB"),
            (1_010_000_000, "1.01GB", "1.01GB", "963.2MiB"),
            (25_260_000_000, "25.26GB", "25.3GB", "23.53GiB"),
            (999_999, "1000kB", "1e+03kB", "976.6KiB"),
            (9_223_372_036_854_775_807, "9.223EB", "9.22EB", "8EiB"),
        ] {
            assert_eq!((&*size(bytes), &*short_size(bytes), &*memory(bytes)), (four, three, binary));
        }
    }

    #[test]
    fn durations() {
        const HOUR: u64 = 3600;
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (45, "45 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (180, "3 minutes"),
            (59 * 60 + 59, "59 minutes"),
            (HOUR, "About an hour"),
            (HOUR + 45 * 60, "2 hours"),
            (47 * HOUR, "47 hours"),
            (3 * 24 * HOUR, "3 days"),
            (13 * 24 * HOUR, "13 days"),
            (14 * 24 * HOUR, "2 weeks"),
            (62 * 24 * HOUR, "2 months"),
            (365 * 24 * HOUR, "12 months"),
            (3 * 365 * 24 * HOUR, "3 years"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(ellipsis("\"/bin/sh -c 'sleep 100'\"", 20), "\"/bin/sh -c 'sleep …");
        assert_eq!(ellipsis("short", 20), "short");
        assert_eq!(ellipsis("äöü", 2), "ä…");
    }
}
