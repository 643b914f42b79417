//! Rows of text in columns.

use std::io::{self, Write};

/// Writes rows with each column as wide as its widest cell; the first row is the head.
pub(super) fn write<const N: usize>(rows: &[[String; N]], out: &mut (dyn Write + Send)) -> io::Result<()> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or_default());
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
