//! Answers on standard output.

use std::io::Write;

use moat_sandbox::{Context, Error, Result};
use serde::Serialize;

/// Prints an answer; whoever reads it may have gone, which is an error and no panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(|| "standard output")
}

/// A value as one line of JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|error| Error::new(error.to_string()))?;
    Ok(text + "\n")
}

/// Columns as runc prints them: at least 12 wide, three spaces between.
pub(crate) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count() + 3).max().unwrap_or(0).max(12)
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let last = index + 1 == COLUMNS;
            text += &if last { format!("{cell}\n") } else { format!("{cell:<width$}") };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_those_of_runc() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = table(&[row(["ID", "BUNDLE", "OWNER"]), row(["cmp", "/a/rather/long/path", "root"])]);
        let expected = "ID          BUNDLE                OWNER\ncmp         /a/rather/long/path   root\n";
        assert_eq!(text, expected);
    }
}
