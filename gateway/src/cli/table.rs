//! Tables for users: each column is as wide as its widest cell, numbers are aligned right.

use std::borrow::Cow;
use std::io::{self, Write};

use portcullis::printable::printable;

/// A table with its headings.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table of headings alone.
    pub(super) fn new(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned)],
        }
    }

    /// Adds a row. Control characters are escaped.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| match printable(&cell) {
            Cow::Owned(shown) => shown,
            Cow::Borrowed(_) => cell,
        }));
    }

    /// Writes the table; nothing if it has no row.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let [_, rows @ ..] = self.rows.as_slice() else {
            return Ok(());
        };
        if rows.is_empty() {
            return Ok(());
        }
        let number = |column: usize| {
            let mut cells = rows.iter().map(|row| row[column].as_str());
            cells.all(is_number)
        };
        let columns: Vec<(usize, bool)> = (0..N)
            .map(|column| {
                let widths = self.rows.iter().map(|row| row[column].chars().count());
                (widths.max().unwrap_or(0), number(column))
            })
            .collect();
        for row in &self.rows {
            let cells = row.iter().zip(&columns);
            let cells: Vec<String> = cells
                .map(|(cell, &(width, is_number))| {
                    if is_number {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// `12`, or `12 (+3/s)`.
fn is_number(cell: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let rate = cell
        .split_once(" (+")
        .map(|(total, rate)| (total, rate.strip_suffix("/s)")));
    match rate {
        Some((total, Some(rate))) => digits(total) && digits(rate),
        Some((_, None)) => false,
        None => digits(cell),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_headings() {
        let mut table = Table::new(["name", "packets", "mode"]);
        let mut written = Vec::new();
        table.write(&mut written).unwrap();
        assert!(written.is_empty(), "headings without rows");
        for (name, packets) in [("eth0", "7"), ("a-long-name", "12345678")] {
            table.row([name.to_owned(), packets.to_owned(), "driver".to_owned()]);
        }
        table.write(&mut written).unwrap();
        let expected = "name          packets  mode\n\
                        eth0                7  driver\n\
                        a-long-name  12345678  driver\n";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }

    #[test]
    fn control_characters_in_a_cell_are_escaped() {
        let mut table = Table::new(["name", "note"]);
        table.row(["\u{1b}]0;x\u{7}".to_owned(), "a\nb".to_owned()]);
        let mut written = Vec::new();
        table.write(&mut written).unwrap();
        let expected = "name             note\n\\u{1b}]0;x\\u{7}  a\\nb\n";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }
}
