//! The one place that writes: data to stdout, everything else to stderr.

use std::io::{self, IsTerminal as _};

use serde::Serialize;

use super::error::{CliError, Exit};

/// How data is shown.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct Format {
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

impl Format {
    /// Writes `data` as JSON, or what `text` makes of it.
    pub(super) fn print<T: Serialize>(
        self,
        data: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json {
            return line(&json(data)?);
        }
        let text = text(data);
        if text.is_empty() {
            Ok(())
        } else {
            line(text.trim_end_matches('\n'))
        }
    }
}

/// A value as one line of JSON.
pub(super) fn json<T: Serialize>(data: &T) -> Result<String, CliError> {
    serde_json::to_string(data)
        .map_err(|error| CliError::failed("cannot write JSON").because(&error))
}

/// Writes a line of data.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    Ok(sink::data(&format!("{text}\n"))?)
}

/// Writes data that is no text.
pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    sink::bytes(bytes)
}

/// Tells a person something. Whether that works does not matter.
pub(super) fn note(text: &str) {
    sink::remark(format!("{text}\n").as_bytes());
}

/// Asks a person at a terminal; anything but `y` is no.
pub(super) fn agreed(question: &str) -> bool {
    sink::remark(question.as_bytes());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Passes on what another program wrote to its stderr.
pub(super) fn pass_on(bytes: &[u8]) {
    sink::remark(bytes);
}

/// Tells why the command failed.
pub(super) fn fail(error: &CliError) {
    if error.exit == Exit::Ok {
        return;
    }
    let text = error.to_string();
    match text.strip_prefix("error:") {
        Some(rest) if colour() => note(&format!("\x1b[1;31merror:\x1b[0m{rest}")),
        Some(_) | None => note(&text),
    }
}

/// Whether stderr is a terminal whose user has nothing against colours.
fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    !refused && io::stderr().is_terminal()
}

/// Whether a person watches stderr.
pub(super) fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Whether a person watches stdout.
pub(super) fn data_watched() -> bool {
    io::stdout().is_terminal()
}

/// Whether a column is text or figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// An aligned table; an empty one has no rows but its head.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub(super) fn render(&self) -> String {
        let head = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let cells = cells.map(|((cell, (_, align)), width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values, one a line.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let rows = rows.iter().map(|(name, value)| {
        format!(
            "{name:<width$}  {}
",
            printable(value)
        )
    });
    rows.collect()
}

/// A text from elsewhere without characters that would steer a terminal.
pub(super) fn printable(text: &str) -> String {
    let safe = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(safe).collect()
}

/// Where lines end up: in the streams of the process.
#[cfg(not(test))]
mod sink {
    use std::io::{self, Write as _};

    pub(super) fn data(text: &str) -> io::Result<()> {
        io::stdout().lock().write_all(text.as_bytes())
    }

    pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
        io::stdout().lock().write_all(bytes)
    }

    pub(super) fn remark(bytes: &[u8]) {
        let _ = io::stderr().lock().write_all(bytes);
    }
}

/// In tests: in the memory of the test's thread.
#[cfg(test)]
pub(super) mod sink {
    use std::{cell::RefCell, io};

    thread_local! {
        static DATA: RefCell<String> = const { RefCell::new(String::new()) };
        static REMARKS: RefCell<String> = const { RefCell::new(String::new()) };
    }

    pub(super) fn data(text: &str) -> io::Result<()> {
        DATA.with_borrow_mut(|all| all.push_str(text));
        Ok(())
    }

    pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
        data(&String::from_utf8_lossy(bytes))
    }

    pub(super) fn remark(bytes: &[u8]) {
        REMARKS.with_borrow_mut(|all| all.push_str(&String::from_utf8_lossy(bytes)));
    }

    /// What was written to stdout and to stderr since the last call.
    pub(in crate::cli) fn take() -> (String, String) {
        (DATA.take(), REMARKS.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_text_left_and_figures_right() {
        let mut table = Table::new(&[("QUEUE", Align::Left), ("READY", Align::Right)]);
        table.row(["mail".to_owned(), "12".to_owned()]);
        table.row(["a.longer.name".to_owned(), "1234567".to_owned()]);
        assert_eq!(
            table.render(),
            "QUEUE            READY\n\
             mail                12\n\
             a.longer.name  1234567\n"
        );
    }

    #[test]
    fn what_a_stranger_wrote_does_not_steer_the_terminal() {
        let text = pairs(&[("error", "a\x1b[2Jb".to_owned())]);
        assert_eq!(text, "error  a\u{fffd}[2Jb\n");
    }
}
