//! `--ulimit`, `--device-*-bps` and the like: limits that are given as pairs.

use moat_linux::credentials::limit_names;
use moat_model::workload::{DeviceLimit, UlimitSpec};

/// `NAME=SOFT[:HARD]`; -1 is no limit.
pub(crate) fn ulimit(text: &str) -> Result<UlimitSpec, String> {
    let (name, values) =
        text.split_once('=').ok_or_else(|| format!("{text:?} should be NAME=SOFT[:HARD]"))?;
    if !limit_names().any(|known| known == name) {
        let known: Vec<String> = limit_names().collect();
        return Err(format!("{name:?} is no resource limit; there are {}", known.join(", ")));
    }
    let one = |value: &str| match value.parse::<i64>() {
        Ok(-1) => Ok(u64::MAX),
        Ok(number) if number >= 0 => Ok(number.unsigned_abs()),
        _ => Err(format!("{value:?} is no limit; write a number, or -1 for none")),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (one(soft)?, one(hard)?),
        None => (one(values)?, one(values)?),
    };
    if soft > hard {
        return Err(format!("the soft limit of {text:?} is above the hard one"));
    }
    Ok(UlimitSpec { name: name.to_owned(), soft, hard })
}

/// `DEVICE:SIZE`, bytes a second.
pub(crate) fn rate(text: &str) -> Result<DeviceLimit, String> {
    let (path, value) = device(text)?;
    Ok(DeviceLimit { path, value: super::size::parse(value)? })
}

/// `DEVICE:NUMBER`, operations a second.
pub(crate) fn operations(text: &str) -> Result<DeviceLimit, String> {
    let (path, value) = device(text)?;
    let value = value.parse().map_err(|_| format!("{value:?} is no number of operations"))?;
    Ok(DeviceLimit { path, value })
}

/// `DEVICE:WEIGHT`.
pub(crate) fn device_weight(text: &str) -> Result<DeviceLimit, String> {
    let (path, value) = device(text)?;
    Ok(DeviceLimit { path, value: weight(value)?.into() })
}

/// A weight of block I/O: 10 to 1000, or 0 for none.
pub(crate) fn weight(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(weight) if weight == 0 || (10..=1000).contains(&weight) => Ok(weight),
        _ => Err(format!("{text:?} is no weight; weights are 10 to 1000, and 0 is none")),
    }
}

fn device(text: &str) -> Result<(String, &str), String> {
    let (path, value) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} should be DEVICE:VALUE, as in /dev/sda:1mb"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("{path:?} is no device; it should begin with /dev/"));
    }
    Ok((path.to_owned(), value))
}

/// Processors, as `1.5`, in billionths.
pub(crate) fn nano_cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no number of processors, such as 1.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || whole.len() > 6 {
        return Err(bad());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 {
        return Err(format!("{text} is more precise than a billionth of a processor"));
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let part: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    Ok(whole * 1_000_000_000 + part)
}

#[cfg(test)]
mod tests {
    use super::{nano_cpus, operations, rate, ulimit, weight};

    #[test]
    fn resource_limits() {
        for (text, soft, hard) in [
            ("nofile=1024", 1024, 1024),
            ("nofile=512:1024", 512, 1024),
            ("core=0", 0, 0),
            ("memlock=-1", u64::MAX, u64::MAX),
            ("memlock=-1:-1", u64::MAX, u64::MAX),
            ("nproc=1:-1", 1, u64::MAX),
            ("as=1", 1, 1),
        ] {
            let found = ulimit(text).unwrap();
            assert_eq!((found.soft, found.hard), (soft, hard), "{text}");
        }
        for text in [
            "nofile",
            "nofile=",
            "nofile=x",
            "nofile=1024:512",
            "nofile=-1:512",
            "files=1",
            "NOFILE=1",
            "nofile=1:",
            "nofile=1:2:3",
            "nofile=-2",
            "=1",
            "nofile=1.5",
        ] {
            assert!(ulimit(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn limits_of_devices() {
        assert_eq!(rate("/dev/sda:1mb").unwrap().value, 1 << 20);
        assert_eq!(operations("/dev/sda:1000").unwrap().value, 1000);
        assert_eq!(weight("0"), Ok(0));
        for text in ["sda:1mb", "/dev/sda", "/dev/sda:", "/dev/sda:-1"] {
            assert!(rate(text).is_err(), "{text:?}");
        }
        assert!(operations("/dev/sda:1k").is_err());
        assert!(weight("9").is_err() && weight("1001").is_err() && weight("x").is_err());
    }

    #[test]
    fn processors() {
        for (text, nano) in [
            ("1", 1_000_000_000),
            ("0.5", 500_000_000),
            (".5", 500_000_000),
            ("1.", 1_000_000_000),
            ("0.123456789", 123_456_789),
            ("1.50000000000000", 1_500_000_000),
        ] {
            assert_eq!(nano_cpus(text), Ok(nano), "{text}");
        }
        for text in ["", ".", "-1", "1/2", "1e3", "0.1234567891", "x", "1.5.5"] {
            assert!(nano_cpus(text).is_err(), "{text:?}");
        }
    }
}
