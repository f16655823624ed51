//! Owns how rows fit the terminal: alignment, what is shortened, what is left out, colour.
//!
//! Never: cuts anything when stdout is no terminal; lets foreign text move the cursor; lets
//! the terminal break a line. Called by the commands that print tables.

use crate::logging::one_line;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};

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

/// Everything that a tone puts around a cell.
pub(super) const COLOURS: [&str; 5] = ["\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"];

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

/// How a cell that is too wide is shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The end goes: prose.
    End,
    /// The middle goes: both ends of an id tell it from others.
    Middle,
    /// A time loses year, fractions and zone.
    Time,
}

/// When a column gives way to a narrow terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gives {
    /// Not by itself.
    Never,
    /// Before any column is left out.
    First,
    /// After every column that may be left out was.
    Last,
}

/// How a column is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    right: bool,
    cut: Cut,
    gives: Gives,
    width_min: usize,
    /// In which order columns are left out; 0: this one stays.
    leaves: u8,
}

impl Column {
    const fn new(title: &'static str) -> Column {
        let (cut, gives) = (Cut::End, Gives::Never);
        Column { title, right: false, cut, gives, width_min: FLEXIBLE_WIDTH_MIN, leaves: 0 }
    }

    /// Words: to the left, never cut.
    pub const fn left(title: &'static str) -> Column {
        Column::new(title)
    }

    /// Numbers: to the right, never cut.
    pub const fn right(title: &'static str) -> Column {
        Column { right: true, ..Column::new(title) }
    }

    /// Prose: to the left, cut when the terminal is narrow.
    pub const fn flexible(title: &'static str) -> Column {
        Column { gives: Gives::First, ..Column::new(title) }
    }

    /// The id of what a row is about: cut only when nothing else can be done.
    pub const fn id(title: &'static str) -> Column {
        Column { cut: Cut::Middle, gives: Gives::Last, ..Column::new(title) }
    }

    /// The id of something else: cut as prose is, but in the middle.
    pub const fn other_id(title: &'static str) -> Column {
        let (cut, gives, width_min) = (Cut::Middle, Gives::First, ID_WIDTH_MIN);
        Column { cut, gives, width_min, ..Column::new(title) }
    }

    /// A moment as RFC 3339 has it.
    pub const fn time(title: &'static str) -> Column {
        let (cut, gives, width_min) = (Cut::Time, Gives::First, SHORT_TIME_WIDTH);
        Column { cut, gives, width_min, ..Column::new(title) }
    }

    /// Left out when the terminal is too narrow for it; 1 goes first.
    pub const fn leaves(self, order: u8) -> Column {
        Column { leaves: order, ..self }
    }

    /// Rather left out than cut below this.
    pub const fn at_least(self, width_min: usize) -> Column {
        Column { width_min, ..self }
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

/// Prose is never cut below this. Larger: more columns are left out; smaller: what is left
/// of a cell says nothing.
const FLEXIBLE_WIDTH_MIN: usize = 8;

/// An id is never cut below this: a few characters of either end.
const ID_WIDTH_MIN: usize = 12;

/// `05-17 06:40:00`.
const SHORT_TIME_WIDTH: usize = 14;

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
            self.render_row(&mut out, row, &widths, screen);
        }
        out
    }

    fn render_row(&self, out: &mut String, row: &[Cell], widths: &[usize], screen: Screen) {
        let start = out.len();
        // Where even the least does not fit, the line ends at the edge.
        let mut room = screen.width.unwrap_or(usize::MAX);
        let shown = self.columns.iter().zip(widths).zip(row).filter(|((_, width), _)| **width > 0);
        for ((column, width), cell) in shown {
            let gap = if out.len() > start { GAP } else { 0 };
            let width = (*width).min(room.saturating_sub(gap));
            if width == 0 {
                break;
            }
            room -= gap + width;
            pad(out, gap);
            let text = column.shorten(&cell.text, width);
            let rest = width.saturating_sub(display_width(&text));
            pad(out, if column.right { rest } else { 0 });
            paint(out, &text, if screen.colour { cell.tone } else { Tone::Plain });
            pad(out, if column.right { 0 } else { rest });
        }
        out.truncate(start + out[start..].trim_end().len());
        out.push('\n');
    }

    /// Columns for each column of the table; 0 for one that is left out.
    fn widths(&self, screen_width: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| display_width(c.title)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = display_width(&cell.text).max(*width);
            }
        }
        match screen_width {
            Some(screen_width) => self.fit(widths, screen_width),
            None => widths,
        }
    }

    /// Shortens what may be shortened; leaves out one column after the other until that is
    /// enough; then shortens the rest.
    fn fit(&self, mut natural: Vec<usize>, screen_width: usize) -> Vec<usize> {
        let may_leave = (0..self.columns.len()).filter(|at| self.columns[*at].leaves > 0);
        let mut leaving: Vec<usize> = may_leave.collect();
        crate::model::order::sort_by_key(&mut leaving, |at| (self.columns[*at].leaves, *at));
        let mut leaving = leaving.into_iter();
        loop {
            let mut widths = natural.clone();
            if self.squeeze(&mut widths, screen_width, Gives::First) {
                return widths;
            }
            let Some(leaver) = leaving.next() else {
                self.squeeze(&mut widths, screen_width, Gives::Last);
                return widths;
            };
            natural[leaver] = 0;
        }
    }

    /// Takes what is too much from the widest of these columns; true when it all fits.
    fn squeeze(&self, widths: &mut [usize], screen_width: usize, gives: Gives) -> bool {
        loop {
            if total(widths) <= screen_width {
                return true;
            }
            let may = |(column, width): &(&Column, &mut usize)| {
                column.gives == gives && **width > column.width_min
            };
            let columns = self.columns.iter().zip(&mut *widths).filter(may);
            match columns.max_by_key(|(column, width)| (column.cut == Cut::Time, **width)) {
                // Half a short time is none.
                Some((column, width)) if column.cut == Cut::Time => *width = column.width_min,
                Some((_, width)) => *width -= 1,
                None => return false,
            }
        }
    }
}

/// With the gaps between those that are not left out.
fn total(widths: &[usize]) -> usize {
    let shown = widths.iter().filter(|width| **width > 0).count();
    widths.iter().sum::<usize>() + GAP * shown.saturating_sub(1)
}

impl Column {
    fn shorten(&self, text: &str, width: usize) -> String {
        match self.cut {
            Cut::Middle => cut_middle(text, width),
            Cut::Time if display_width(text) > width => truncate(&short_time(text), width),
            Cut::End | Cut::Time => truncate(text, width),
        }
    }
}

/// `2026-05-17T06:40:00.123Z` as `05-17 06:40:00`; anything else as it is.
pub fn short_time(text: &str) -> String {
    match (text.get(5..10), text.get(10..11), text.get(11..19)) {
        (Some(day), Some("T"), Some(time)) => format!("{day} {time}"),
        _ => text.to_owned(),
    }
}

/// Cuts to `width` columns and keeps both ends.
pub fn cut_middle(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if display_width(text) <= width {
        return text.to_owned();
    }
    if !text.is_ascii() || width < 3 {
        return truncate(text, width);
    }
    let tail = (width - 1) / 2;
    let head = width - 1 - tail;
    let chars = || text.chars();
    chars().take(head).chain(['…']).chain(chars().skip(count - tail)).collect()
}

/// Text after a title, broken between words where the terminal ends, and indented there.
pub fn wrapped(title: &str, title_width: usize, text: &str, width: Option<usize>) -> String {
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(title_width).max(1));
    let mut out = format!("{title:<title_width$}");
    let mut used = 0;
    for word in text.split(' ') {
        let mut word = word.to_owned();
        if used > 0 && used + 1 + display_width(&word) > room {
            out.push('\n');
            pad(&mut out, title_width);
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        // A word that no line holds is broken where it must be.
        while display_width(&word) > room - used {
            let fits = word.chars().scan(used, |sum, c| {
                *sum += char_width(c);
                (*sum <= room).then_some(c.len_utf8())
            });
            let at = fits.sum::<usize>().max(word.chars().next().map_or(0, char::len_utf8));
            out.push_str(&word[..at]);
            word.drain(..at);
            if word.is_empty() {
                break;
            }
            out.push('\n');
            pad(&mut out, title_width);
            used = 0;
        }
        used += display_width(&word);
        out.push_str(&word);
    }
    out.push('\n');
    out
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
pub fn truncate(text: &str, width: usize) -> String {
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

/// Columns that the text takes on a terminal.
pub fn display_width(text: &str) -> usize {
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
                host     …
                host-1   …
                host-22  …
                host-3   …
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
    fn columns_leave_in_their_order_and_ids_keep_both_ends() {
        let mut table = Table::new(&[
            Column::id("ID"),
            Column::left("STATUS"),
            Column::right("COUNT").leaves(1),
            Column::time("TIME").leaves(2),
            Column::other_id("OTHER").leaves(3),
        ]);
        let (id, other) = ("host-0000000000000000000000001", "host-0000000000000000000000002");
        let cells = [id, "online", "7", "2026-05-17T06:40:00.123Z", other];
        table.row(cells.map(Cell::from));
        let mut all = String::new();
        for width in [200, 100, 90, 60, 50, 40, 20, 5, 1] {
            let lines = table.render(Screen { width: Some(width), colour: false });
            let fits = lines.lines().all(|line| display_width(line) <= width);
            assert!(fits, "{width}\n{lines}");
            let line = lines.lines().last().unwrap();
            all += &format!("{width:>3} {line}\n");
        }
        expect![[r#"
            200 host-0000000000000000000000001  online      7  2026-05-17T06:40:00.123Z  host-0000000000000000000000002
            100 host-0000000000000000000000001  online      7  05-17 06:40:00  host-0000000000000000000000002
             90 host-0000000000000000000000001  online      7  05-17 06:40:00  host-00000000…0000000000002
             60 host-0000000000000000000000001  online  host-00000…000000002
             50 host-0000000000000000000000001  online
             40 host-0000000000000000000000001  online
             20 host-0…00001  online
              5 ho…01
              1 …
        "#]].assert_eq(&all);
    }

    #[test]
    fn sentences_are_broken_between_words() {
        let broken = |width| wrapped("server", 8, "ready at http://[::1]:8000; a word", width);
        expect![[r#"
            server  ready at http://[::1]:8000; a word
            server  ready at
                    http://[::1]:8000; a
                    word
            server  ready at
                    http://[::1]
                    :8000; a
                    word
        "#]]
        .assert_eq(&[None, Some(30), Some(20)].map(broken).concat());
    }

    #[test]
    fn titles_alone() {
        let table = Table::new(&[Column::left("a"), Column::right("b")]);
        assert!(table.is_empty());
        assert_eq!(table.render(Screen::default()), "a  b\n");
    }
}
