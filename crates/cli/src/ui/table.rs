//! Tables with a fixed layout: columns as wide as their widest cell, three spaces between, no borders, so that
//! `awk`, `cut` and tests can rely on them.

use anstyle::Style;

use super::{BOLD, Ui, tame};

/// Spaces between columns, as docker prints them.
const GAP: usize = 3;

/// Rows of cells under headings.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// Text in a style.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Style,
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: tame(&text.to_string()),
            style: Style::new(),
        }
    }
}

impl Cell {
    /// A cell in a style.
    pub fn styled(text: impl ToString, style: Style) -> Self {
        Self {
            style,
            ..Self::from(text)
        }
    }
}

impl Table {
    /// An empty table.
    pub fn new(headings: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            headings: headings.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Headings and rows as lines, without an end of line after the last.
    pub fn render(&self, ui: &Ui) -> String {
        let head: Vec<Cell> = self
            .headings
            .iter()
            .map(|text| Cell::styled(text, BOLD))
            .collect();
        let rows: Vec<&Vec<Cell>> = std::iter::once(&head).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                rows.iter()
                    .filter_map(|row| row.get(column))
                    .map(width)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let lines = rows.iter().map(|row| line(ui, row, &widths));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn width(cell: &Cell) -> usize {
    cell.text.chars().count()
}

fn line(ui: &Ui, row: &[Cell], widths: &[usize]) -> String {
    let mut line = String::new();
    for (index, cell) in row.iter().enumerate() {
        let painted = if cell.style == Style::new() {
            cell.text.clone()
        } else {
            ui.paint(cell.style, &cell.text)
        };
        line.push_str(&painted);
        // Nothing after the last cell, so that no line ends in spaces.
        let rest_is_empty = row[index + 1..].iter().all(|cell| cell.text.is_empty());
        if rest_is_empty {
            break;
        }
        let wanted = widths.get(index).copied().unwrap_or(0) + GAP;
        line.extend(std::iter::repeat_n(' ', wanted.saturating_sub(width(cell))));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ColorChoice;

    fn table() -> Table {
        let mut table = Table::new(["AGENT", "STATE", "REASON"]);
        table.row([
            "indexer".into(),
            Cell::styled("running", super::super::GOOD),
            "".into(),
        ]);
        table.row(["a".into(), "crash_loop".into(), "exit\n1".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let ui = Ui::new(false, ColorChoice::Never);
        assert_eq!(
            table().render(&ui),
            "AGENT     STATE        REASON\nindexer   running\na         crash_loop   exit\u{fffd}1"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let ui = Ui::new(false, ColorChoice::Always);
        let stripped = anstream::adapter::strip_str(&table().render(&ui)).to_string();
        assert_eq!(
            stripped,
            table().render(&Ui::new(false, ColorChoice::Never))
        );
    }
}
