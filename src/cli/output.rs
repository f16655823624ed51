//! Owns how answers reach people: tables, ages, the error line, exit codes, and a stdout
//! whose reader may have left.
//!
//! Never: mixes data and messages (data on stdout, the rest on stderr), lets foreign text
//! move the cursor, panics because a pipe is closed. Called by the commands and by `main`.

use crate::config::ConfigError;
use crate::logging::{error_prefix, one_line};
use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::time::Duration;

/// How a command ended, as scripts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage: arguments or configuration.
    Usage = 2,
    /// With `--exit-code`: `check` made, or would make, changes.
    Changed = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended early. Shown as one line: what failed, why, what to do.
#[derive(Debug)]
pub struct Failure {
    what: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    advice: Option<String>,
    exit: Exit,
    silent: bool,
}

impl Failure {
    /// Something failed; `what` starts with "could not".
    pub fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), cause: None, advice: None, exit: Exit::Failed, silent: false }
    }

    /// Adds why; the causes of `cause` are shown too.
    pub fn because(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { cause: Some(cause.into()), ..self }
    }

    /// Adds what to do about it.
    pub fn advise(self, advice: impl Into<String>) -> Failure {
        Failure { advice: Some(advice.into()), ..self }
    }

    /// Ends the process with this code instead of `Failed`.
    pub fn exit_with(self, exit: Exit) -> Failure {
        Failure { exit, ..self }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Writing to stdout failed. When the reader has left (`roost events | head`) it has
    /// what it wanted: that is a quiet success, reported as a failure only so that
    /// everything on the way out is cleaned up.
    pub fn of_stdout(error: io::Error) -> Failure {
        let failure = Failure::new("could not write to stdout");
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { exit: Exit::Done, silent: true, ..failure };
        }
        failure.because(error)
    }

    /// Prints the line on stderr and returns the code to end with.
    pub fn report(&self) -> ExitCode {
        if !self.silent {
            // When stderr is gone as well there is nobody left to tell.
            let (prefix, line) = (error_prefix(), one_line(&self.to_string()));
            let _ = writeln!(io::stderr(), "{prefix}roost: {line}");
        }
        self.exit.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.what.clone();
        let mut next: Option<&(dyn Error + 'static)> = match &self.cause {
            Some(cause) => Some(cause.as_ref()),
            None => None,
        };
        while let Some(cause) = next {
            let words = cause.to_string();
            // Some errors of other crates repeat their cause in their own text.
            if !text.ends_with(&words) {
                text = format!("{text}: {words}");
            }
            next = cause.source();
        }
        if let Some(advice) = &self.advice {
            text = format!("{text}; {advice}");
        }
        f.write_str(&text)
    }
}

impl Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new("could not read the configuration").because(error).exit_with(Exit::Usage)
    }
}

/// Where data goes. Buffered: `flush` after what somebody waits for, `finish` at the end.
#[derive(Debug)]
pub struct Out<W: Write> {
    to: BufWriter<W>,
}

impl Out<Stdout> {
    /// The stdout of this process.
    pub fn stdout() -> Out<Stdout> {
        Out::to(io::stdout())
    }
}

impl<W: Write> Out<W> {
    /// Any other place.
    pub fn to(writer: W) -> Out<W> {
        Out { to: BufWriter::new(writer) }
    }

    /// Writes `text` as it is.
    ///
    /// # Errors
    /// When the reader is gone or the disk full; pass it on, `Failure::report` knows which.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.to.write_all(text.as_bytes()).map_err(Failure::of_stdout)
    }

    /// Writes `text` and ends the line.
    ///
    /// # Errors
    /// As `text`.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.text(text)?;
        self.text("\n")
    }

    /// Writes one JSON value and ends the line.
    ///
    /// # Errors
    /// As `text`.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.to, value);
        written.map_err(|error| Failure::of_stdout(error.into()))?;
        self.text("\n")
    }

    /// Sends what is buffered.
    ///
    /// # Errors
    /// As `text`.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(Failure::of_stdout)
    }

    /// Sends what is buffered, for the last time.
    ///
    /// # Errors
    /// As `text`.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush()
    }
}

/// What the reader of stdout can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screen {
    /// Columns of the terminal; `None` when stdout is none, and nothing is cut.
    pub width: Option<usize>,
    /// Whether colour is welcome.
    pub colour: bool,
}

impl Screen {
    /// What stdout is now.
    pub fn of_stdout() -> Screen {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Screen::default();
        }
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Screen { width, colour: !is_set("NO_COLOR") && !is_dumb }
    }
}

/// How serious a cell is; a colour on a terminal, nothing elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Needs somebody.
    Bad,
    /// Of little interest.
    Dim,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Good => Some("32"),
            Tone::Warn => Some("33"),
            Tone::Bad => Some("31"),
            Tone::Dim => Some("2"),
        }
    }
}

/// One cell of a table. Characters that would move the cursor are shown escaped.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub fn toned(text: impl AsRef<str>, tone: Tone) -> Cell {
        Cell { text: one_line(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::toned(text, Tone::Plain)
    }
}

/// How a column is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    right: bool,
    flexible: bool,
}

impl Column {
    /// Words: to the left, never cut.
    pub const fn left(title: &'static str) -> Column {
        Column { title, right: false, flexible: false }
    }

    /// Numbers: to the right, never cut.
    pub const fn right(title: &'static str) -> Column {
        Column { title, right: true, flexible: false }
    }

    /// Prose: to the left, cut when the terminal is narrow.
    pub const fn flexible(title: &'static str) -> Column {
        Column { title, right: false, flexible: true }
    }
}

/// An aligned table.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Spaces between two columns.
const GAP: usize = 2;

/// A flexible column is never cut below this. Larger: narrow terminals wrap lines; smaller:
/// what is left of a cell says nothing.
const FLEXIBLE_WIDTH_MIN: usize = 8;

impl Table {
    /// A table without rows.
    pub fn new(columns: &[Column]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing stay empty, cells beyond the columns are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().take(self.columns.len()).collect());
    }

    /// Whether there is nothing to show but titles.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Titles and rows, one line each.
    pub fn render(&self, screen: Screen) -> String {
        let widths = self.widths(screen.width);
        let titles: Vec<Cell> = self.columns.iter().map(|c| Cell::from(c.title)).collect();
        let titles = titles.into_iter().map(|cell| Cell { tone: Tone::Dim, ..cell }).collect();
        let mut out = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            self.render_row(&mut out, row, &widths, screen.colour);
        }
        out
    }

    fn render_row(&self, out: &mut String, row: &[Cell], widths: &[usize], colour: bool) {
        let start = out.len();
        for ((column, width), cell) in self.columns.iter().zip(widths).zip(row) {
            if out.len() > start {
                pad(out, GAP);
            }
            let text = truncate(&cell.text, *width);
            let rest = width.saturating_sub(display_width(&text));
            pad(out, if column.right { rest } else { 0 });
            paint(out, &text, if colour { cell.tone } else { Tone::Plain });
            pad(out, if column.right { 0 } else { rest });
        }
        out.truncate(start + out[start..].trim_end().len());
        out.push('\n');
    }

    fn widths(&self, screen_width: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| display_width(c.title)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = display_width(&cell.text).max(*width);
            }
        }
        if let Some(screen_width) = screen_width {
            self.fit(&mut widths, screen_width);
        }
        widths
    }

    /// Takes what is too much from the widest flexible column, until it all fits or nothing
    /// more can be taken.
    fn fit(&self, widths: &mut [usize], screen_width: usize) {
        let gaps = GAP * widths.len().saturating_sub(1);
        loop {
            let total = widths.iter().sum::<usize>() + gaps;
            let flexible = self.columns.iter().zip(&mut *widths).filter(|(c, _)| c.flexible);
            let widest = flexible.map(|(_, width)| width).max();
            match widest {
                Some(width) if total > screen_width && *width > FLEXIBLE_WIDTH_MIN => *width -= 1,
                Some(_) | None => return,
            }
        }
    }
}

fn pad(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

fn paint(out: &mut String, text: &str, tone: Tone) {
    match tone.code() {
        // Writing into a String cannot fail.
        Some(code) if !text.is_empty() => {
            let _ = write!(out, "\x1b[{code}m{text}\x1b[0m");
        }
        Some(_) | None => out.push_str(text),
    }
}

/// Cuts to `width` columns; the last of them then shows that something is missing.
fn truncate(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let mut used = 0;
    let fits = |c: &char| {
        used += char_width(*c);
        used <= room
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('…');
    cut
}

fn display_width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Columns a terminal gives a character. Close enough for names people give to machines;
/// an exact table would be a crate of its own.
fn char_width(c: char) -> usize {
    match u32::from(c) {
        // Combining marks, joiners, variation selectors.
        0x0300..=0x036F | 0x200B..=0x200F | 0x20D0..=0x20FF | 0xFE00..=0xFE0F => 0,
        // Hangul, CJK, full-width forms, emoji.
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1F64F
        | 0x1F680..=0x1F6FF
        | 0x1F900..=0x1F9FF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// A span for people, in its largest unit: `12s`, `3m`, `2h`, `5d`; rounded down.
pub fn age(span: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match span.as_secs() {
        secs if secs < MINUTE => format!("{secs}s"),
        secs if secs < HOUR => format!("{}m", secs / MINUTE),
        secs if secs < DAY => format!("{}h", secs / HOUR),
        secs => format!("{}d", secs / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn hosts() -> Table {
        let columns = [
            Column::left("host"),
            Column::left("status"),
            Column::right("sandboxes"),
            Column::flexible("last probe"),
        ];
        let mut table = Table::new(&columns);
        table.row([
            Cell::from("host-1"),
            Cell::toned("online", Tone::Good),
            Cell::from("7"),
            Cell::from("listed 7 sandboxes in 12 ms"),
        ]);
        table.row([
            Cell::from("host-22"),
            Cell::toned("unreachable", Tone::Bad),
            Cell::from("1200"),
            Cell::from("机器 refused\nthe connection"),
        ]);
        table.row([Cell::from("host-3"), Cell::from("pending")]);
        table
    }

    fn check(screen: Screen, expected: &Expect) {
        expected.assert_eq(&hosts().render(screen));
    }

    #[test]
    fn columns_are_aligned() {
        check(
            Screen::default(),
            &expect![[r#"
            host     status       sandboxes  last probe
            host-1   online               7  listed 7 sandboxes in 12 ms
            host-22  unreachable       1200  机器 refused\nthe connection
            host-3   pending
        "#]],
        );
    }

    #[test]
    fn flexible_columns_give_way_to_a_narrow_terminal() {
        check(
            Screen { width: Some(50), colour: false },
            &expect![[r#"
            host     status       sandboxes  last probe
            host-1   online               7  listed 7 sandbox…
            host-22  unreachable       1200  机器 refused\nth…
            host-3   pending
        "#]],
        );
        check(
            Screen { width: Some(10), colour: false },
            &expect![[r#"
            host     status       sandboxes  last pr…
            host-1   online               7  listed …
            host-22  unreachable       1200  机器 re…
            host-3   pending
        "#]],
        );
    }

    #[test]
    fn colour_changes_no_width() {
        let coloured = hosts().render(Screen { width: None, colour: true });
        assert!(coloured.contains("\x1b[32monline\x1b[0m"));
        let mut plain = coloured;
        for code in ["\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        let trimmed: Vec<&str> = plain.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n") + "\n", hosts().render(Screen::default()));
    }

    #[test]
    fn titles_alone() {
        let table = Table::new(&[Column::left("a"), Column::right("b")]);
        assert!(table.is_empty());
        assert_eq!(table.render(Screen::default()), "a  b\n");
    }

    #[test]
    fn ages() {
        let ages = [0, 12, 59, 60, 3599, 3600, 86_399, 86_400, 5 * 86_400 + 1];
        let ages = ages.map(|secs| age(Duration::from_secs(secs)));
        assert_eq!(ages, ["0s", "12s", "59s", "1m", "59m", "1h", "23h", "1d", "5d"]);
    }

    #[test]
    fn one_line_says_what_why_and_what_to_do() {
        let cause = io::Error::new(io::ErrorKind::PermissionDenied, "permission denied");
        let failure =
            Failure::new("could not open the database").because(cause).advise("is it yours?");
        expect!["could not open the database: permission denied; is it yours?"]
            .assert_eq(&failure.to_string());
        assert_eq!(failure.exit(), Exit::Failed);

        // A cause that repeats its own cause is not shown twice.
        let nested = Failure::new("could not start")
            .because(io::Error::other(Failure::new("could not listen").because("address in use")));
        expect!["could not start: could not listen: address in use"].assert_eq(&nested.to_string());
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_left_is_no_failure() {
        let mut out = Out::to(Gone);
        out.line("buffered").unwrap();
        let failure = out.finish().unwrap_err();
        assert!(failure.silent);
        assert_eq!(failure.exit(), Exit::Done);

        let mut out = Out::to(Gone);
        let long = "x".repeat(100_000);
        assert_eq!(out.json(&long).unwrap_err().exit(), Exit::Done);

        let full = Failure::of_stdout(io::ErrorKind::StorageFull.into());
        assert_eq!(full.exit(), Exit::Failed);
    }

    #[test]
    fn data_is_written_as_given() {
        let mut written = Vec::new();
        let mut out = Out::to(&mut written);
        out.line("a").unwrap();
        out.json(&[1, 2]).unwrap();
        out.finish().unwrap();
        assert_eq!(written, b"a\n[1,2]\n");
    }
}
