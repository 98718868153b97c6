//! A table for people: on the terminal and in RESULTS.md alike, so it is written as Markdown with
//! its columns aligned.

use std::fmt;

/// Rows of cells below a row of titles.
#[derive(Clone, Debug)]
pub struct Table {
    titles: Vec<String>,
    /// Where the columns of figures begin, which are aligned to the right.
    figures_from: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with no rows. The first `words` columns hold words, the others figures.
    #[must_use]
    pub fn new<T: Into<String>>(words: usize, titles: impl IntoIterator<Item = T>) -> Self {
        Self {
            titles: titles.into_iter().map(Into::into).collect(),
            figures_from: words,
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing at its end are empty.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.titles.len(), String::new());
        self.rows.push(cells);
    }

    fn write_row(
        &self,
        f: &mut fmt::Formatter<'_>,
        cells: &[String],
        widths: &[usize],
    ) -> fmt::Result {
        for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
            if column < self.figures_from {
                write!(f, "| {cell:<width$} ")?;
            } else {
                write!(f, "| {cell:>width$} ")?;
            }
        }
        writeln!(f, "|")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.titles.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| &row[column]);
                let cells = cells.chain([&self.titles[column]]);
                cells
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        self.write_row(f, &self.titles, &widths)?;
        for (column, &width) in widths.iter().enumerate() {
            if column < self.figures_from {
                write!(f, "|{:-<width$}--", "")?;
            } else {
                write!(f, "|{:-<width$}-:", "")?;
            }
        }
        writeln!(f, "|")?;
        for row in &self.rows {
            self.write_row(f, row, &widths)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_aligned_to_the_left_and_figures_to_the_right() {
        let mut table = Table::new(1, ["what", "ns"]);
        table.row(["bare", "40"]);
        table.row(["hash map", "112"]);
        table.row(["none"]);
        let expected = "\
| what     |  ns |
|----------|----:|
| bare     |  40 |
| hash map | 112 |
| none     |     |
";
        assert_eq!(table.to_string(), expected);
    }
}
