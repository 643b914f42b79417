//! Prints rows of text in aligned columns.

use std::io::{self, Write};

/// Writes rows. Each column is as wide as its widest cell. The first row is the header.
pub(super) fn write(rows: &[impl AsRef<[String]>], out: &mut (dyn Write + Send)) -> io::Result<()> {
    let columns = rows.first().map_or(0, |head| head.as_ref().len());
    let cells_of = |column: usize| rows.iter().filter_map(move |row| row.as_ref().get(column));
    let width = |column: usize| cells_of(column).map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
