//! Columns as Go's tabwriter sets them: at least ten characters wide, three spaces between.

const MIN_WIDTH: usize = 10;
const GAP: usize = 3;

/// Lines of cells with their columns aligned. The last cell of a line is not padded.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter(|row| column + 1 < row.len()).filter_map(|row| row.get(column));
            cells.map(|cell| width(cell) + GAP).max().unwrap_or(0).max(MIN_WIDTH)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (at, (cell, column)) in row.iter().zip(&widths).enumerate() {
            text.push_str(cell);
            if at + 1 < row.len() {
                text.push_str(&" ".repeat(column.saturating_sub(width(cell))));
            }
        }
        text.push('\n');
    }
    text
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::align;

    #[test]
    fn columns() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let rows = [
            row(&["CONTAINER ID", "IMAGE", "NAMES"]),
            row(&["4c01db0b339c", "a-long-image-name", "web"]),
            row(&["97ae", "ü", ""]),
        ];
        assert_eq!(
            align(&rows),
            "CONTAINER ID   IMAGE               NAMES\n\
             4c01db0b339c   a-long-image-name   web\n\
             97ae           ü                   \n"
        );
        assert_eq!(align(&[]), "");
    }
}
