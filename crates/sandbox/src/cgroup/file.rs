//! Small reads and writes of cgroup files, each an error that prints as the call.

use std::collections::BTreeMap;
use std::path::Path;

use moat_linux::{Errno, Error, Result};
use rustix::fs::OFlags;

/// Writes a value with one write(2), as cgroup files want it.
pub(super) fn write(file: &Path, value: &str) -> Result<()> {
    let fd = moat_linux::fs::open(file, OFlags::WRONLY)?;
    match rustix::io::write(&fd, value.as_bytes()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::new("write", format!("{}, {value:?}", file.display()), errno)),
    }
}

/// The content without the line end.
pub(super) fn read(file: &Path) -> Result<String> {
    Ok(moat_linux::fs::read_text(file)?.trim_end().to_owned())
}

/// The content, `None` when there is no such file, or it has no answer in this kind of group.
pub(super) fn read_optional(file: &Path) -> Result<Option<String>> {
    match read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A number; `max` and `-1` are the largest, 0 when the file is missing.
pub(super) fn number(file: &Path) -> Result<u64> {
    Ok(read_optional(file)?.map_or(0, |text| parse_number(&text)))
}

/// As [`number`], of text.
pub(super) fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" | "-1" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// Lines of `name number`; nothing when the file is missing.
pub(super) fn table(file: &Path) -> Result<BTreeMap<String, u64>> {
    Ok(parse_table(&read_optional(file)?.unwrap_or_default()))
}

/// As [`table`], of text.
pub(super) fn parse_table(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, value)| (name.to_owned(), parse_number(value))).collect()
}

/// The one number behind `name` in lines of `name number`.
pub(super) fn entry(file: &Path, name: &str) -> Result<Option<u64>> {
    Ok(table(file)?.get(name).copied())
}
