//! Owns how answers reach people: ages, the error line, exit codes, and a stdout
//! whose reader may have left.
//!
//! Never: mixes data and messages (data on stdout, the rest on stderr), lets foreign text
//! move the cursor, panics because a pipe is closed. Called by the commands and by `main`.

pub mod table;

pub use table::{
    Cell, Column, Screen, Table, Tone, cut_middle, display_width, short_time, truncate, wrapped,
};

use crate::config::ConfigError;
use crate::logging::{error_prefix, is_unsafe, one_line};
use serde_json::ser::Formatter;
use std::error::Error;
use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};
use std::process::ExitCode;
use std::time::Duration;
use table::COLOURS;

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

/// A reason, with the agent's words where there are any.
pub(super) fn with_detail(reason: &str, detail: Option<&str>) -> String {
    detail.map_or_else(|| reason.to_owned(), |detail| format!("{reason}: {}", one_line(detail)))
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
        let failure = Failure::new("could not read the configuration");
        // What the system keeps from us now it may give later; a service is started again.
        let exit = if error.may_pass() { Exit::Failed } else { Exit::Usage };
        failure.because(error).exit_with(exit)
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

    /// Writes `text` as it is: only what is ours, word for word.
    ///
    /// # Errors
    /// When the reader is gone or the disk full; pass it on, `Failure::report` knows which.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.to.write_all(text.as_bytes()).map_err(Failure::of_stdout)
    }

    /// Writes what was laid out in lines, with the colours of tables; of what others wrote
    /// into it nothing moves the cursor.
    ///
    /// # Errors
    /// As `text`.
    pub fn lines(&mut self, text: &str) -> Result<(), Failure> {
        self.text(&laid_out(text))
    }

    /// Writes `text` as one line, whatever is in it.
    ///
    /// # Errors
    /// As `text`.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.text(&one_line(text))?;
        self.text("\n")
    }

    /// Writes one JSON value and ends the line. What a terminal would obey is escaped, which
    /// is the same JSON.
    ///
    /// # Errors
    /// As `text`.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        self.json_in_line(value)?;
        self.text("\n")
    }

    /// Writes JSON without the end of the line, as a part of more.
    ///
    /// # Errors
    /// As `text`.
    pub fn json_in_line(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let mut serializer = serde_json::Serializer::with_formatter(&mut self.to, Visible);
        let written = value.serialize(&mut serializer);
        written.map_err(|error| Failure::of_stdout(error.into()))
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

/// The text with everything escaped that could move the cursor, but for the ends of lines
/// and the colours of tables.
fn laid_out(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = COLOURS.iter().find(|colour| rest.starts_with(**colour));
        let taken = colour.map_or(c.len_utf8(), |colour| colour.len());
        match (colour, c) {
            (None, c) if c != '\n' && is_unsafe(c) => safe.extend(c.escape_default()),
            (_, _) => safe.push_str(&rest[..taken]),
        }
        rest = &rest[taken..];
    }
    safe
}

/// JSON in which every character that a terminal would obey is written as its number.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut written = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| is_unsafe(*c)) {
            writer.write_all(&fragment.as_bytes()[written..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            written = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[written..])
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
    use expect_test::expect;

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
    fn nothing_that_is_shown_moves_the_cursor() {
        let foreign = "a\u{1b}[2J\u{7f}\u{9b}\u{200f}\u{61c}\u{202e}\u{2066}\u{e0041}\r\tü\"";
        let mut written = Vec::new();
        let mut out = Out::to(&mut written);
        out.json(&serde_json::json!({ foreign: [foreign] })).unwrap();
        out.line(&format!("{foreign}\nforged")).unwrap();
        out.lines(&format!("\u{1b}[31m{foreign}\u{1b}[0m\nnext\n")).unwrap();
        out.finish().unwrap();
        let text = String::from_utf8(written).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let read: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(read[foreign][0], foreign, "the same JSON");
        assert_eq!(lines.len(), 4, "{text:?}");
        let seen = lines[2].strip_prefix("\u{1b}[31m").unwrap();
        let seen = seen.strip_suffix("\u{1b}[0m").unwrap();
        for line in [lines[0], lines[1], seen, lines[3]] {
            assert!(!line.contains(is_unsafe), "{line:?}");
            assert!(line.contains('ü') || line == "next");
        }
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
