//! Owns how log records are written: format, colour, time, and what becomes of a panic.
//!
//! Never: writes to stdout, which belongs to data; fails a caller because stderr is gone.
//! Called by `cli` once at the start, and by `engine` when SIGHUP brings another filter.

use crate::config::LogFormat;
use crate::model::limit::{Allowance, Limiter, More, Verdict};
use crate::model::time::{Mono, Wall};
use env_logger::Logger;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The logger in use. A lock stands before it so that SIGHUP can bring another filter.
static CURRENT: OnceLock<RwLock<Logger>> = OnceLock::new();

/// Starts logging to stderr and routes panics into the log. `filter` is in the syntax of
/// env_logger, already validated by `config`.
///
/// # Errors
/// When a logger is already set, for example by an earlier call.
pub fn start(filter: &str, format: LogFormat) -> Result<(), log::SetLoggerError> {
    let logger = build(filter, format);
    log::set_max_level(logger.filter());
    CURRENT.get_or_init(|| RwLock::new(logger));
    log::set_logger(&Forward)?;
    log_panics();
    Ok(())
}

/// Replaces filter and format of a started logger; does nothing before `start`.
pub fn restart(filter: &str, format: LogFormat) {
    if let Some(current) = CURRENT.get() {
        let logger = build(filter, format);
        log::set_max_level(logger.filter());
        *current.write().unwrap_or_else(PoisonError::into_inner) = logger;
    }
}

/// Threads of this name ask URLs that are secret, with tokens. Libraries log both in detail;
/// of these threads only our own records are written, whatever the filter.
pub const SECRET_THREAD: &str = "deliver";

fn tells_secrets(target: &str, thread: Option<&str>) -> bool {
    !target.starts_with("roost") && thread == Some(SECRET_THREAD)
}

/// What the `log` crate holds; it hands every record to the current logger.
struct Forward;

impl Forward {
    fn with<T>(&self, ask: impl FnOnce(&Logger) -> T) -> Option<T> {
        let current = CURRENT.get()?;
        Some(ask(&current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.with(|logger| logger.enabled(metadata)).unwrap_or(false)
    }

    fn log(&self, record: &Record<'_>) {
        if tells_secrets(record.target(), std::thread::current().name()) {
            return;
        }
        self.with(|logger| logger.log(record));
    }

    fn flush(&self) {
        self.with(|logger| logger.flush());
    }
}

fn build(filter: &str, format: LogFormat) -> Logger {
    let mut builder = env_logger::Builder::new();
    // Without a filter env_logger would show errors only.
    builder.filter_level(LevelFilter::Info).parse_filters(filter);
    builder.target(env_logger::Target::Stderr).write_style(env_logger::WriteStyle::Never);
    let style = match format {
        LogFormat::Text => Style::of_stderr(),
        LogFormat::Json => Style::Json,
    };
    builder.format(move |out, record| writeln!(out, "{}", line(record, style, wall_now())));
    builder.build()
}

/// Not for decisions, only for the people who read the log; so not through `clock`, which
/// in a simulation stands still.
fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How one line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Time, level, target, message.
    Plain,
    /// The same with a coloured level.
    Coloured,
    /// The journal knows the time and takes the level as a prefix.
    Journal,
    /// One object.
    Json,
}

impl Style {
    fn of_stderr() -> Style {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if stderr_is_journal() {
            Style::Journal
        } else if std::io::stderr().is_terminal() && !no_colour && !is_dumb {
            Style::Coloured
        } else {
            Style::Plain
        }
    }
}

/// The variable is inherited by children whose stderr goes elsewhere; it counts only when it
/// names the very file that stderr is, as device and inode.
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// What an error line of ours begins with, so that the journal files it as an error.
pub fn error_prefix() -> String {
    if stderr_is_journal() { format!("<{}>", priority(Level::Error)) } else { String::new() }
}

/// One record as one line, without its end.
fn line(record: &Record<'_>, style: Style, at: Wall) -> String {
    let (level, target) = (record.level(), record.target());
    let message = record.args().to_string();
    match style {
        Style::Json => json_line(level, target, &message, at),
        Style::Plain => format!("{at} {level:<5} {target}: {}", one_line(&message)),
        Style::Coloured => {
            let colour = colour(level);
            format!("{at} \x1b[{colour}m{level:<5}\x1b[0m {target}: {}", one_line(&message))
        }
        Style::Journal => format!("<{}>{target}: {}", priority(level), one_line(&message)),
    }
}

fn json_line(level: Level, target: &str, message: &str, at: Wall) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        ts: Wall,
        level: &'a str,
        target: &'a str,
        message: &'a str,
    }
    let line = Line { ts: at, level: level.as_str(), target, message };
    // Text and a time always serialize.
    serde_json::to_string(&line).unwrap_or_default()
}

/// The text with everything escaped that could end a line, move the cursor or turn the
/// direction of reading: agents and clients write parts of what we print, and none of them
/// may forge a line of its own.
pub fn one_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// Characters of a text of others that a log line shows. Larger: a client or an agent fills
/// the log with few requests; smaller: an id or an address does not fit.
const FOREIGN_CHARS_MAX: usize = 64;

/// A text of others as it may stand in a log line: cut off, and on one line.
pub fn foreign(text: &str) -> String {
    match text.char_indices().nth(FOREIGN_CHARS_MAX) {
        Some((at, _)) => format!("{}\u{2026}", one_line(&text[..at])),
        None => one_line(text),
    }
}

/// Lines that others cause: one a second for each cause and author.
const SELDOM: Allowance = Allowance { burst: 1, per: Duration::from_secs(1) };

/// Authors of log lines that are remembered, over all causes. Larger: a flood from made-up
/// authors writes so many lines a second; smaller: the hosts of a fleet in trouble hide each
/// other.
const AUTHORS_MAX: usize = 64;

/// What causes a line, and whose doing it is.
type Cause = (&'static str, String);

static SAID: LazyLock<Mutex<Limiter<Cause>>> =
    LazyLock::new(|| Mutex::new(Limiter::new(AUTHORS_MAX)));

fn said() -> MutexGuard<'static, Limiter<Cause>> {
    SAID.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For the pace of log lines only, like `wall_now`.
fn mono_now() -> Mono {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Mono(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Whether a line of this cause and author may be written now, and how many were left out.
/// For [`seldom!`].
pub fn may_say(cause: &'static str, author: &dyn Display) -> Option<More> {
    match said().take(&(cause, foreign(&author.to_string())), 1, SELDOM, mono_now()) {
        Verdict::Pass(more) => Some(more),
        Verdict::Over(_) => None,
    }
}

/// Writes how many lines were left out of floods that are over. Call now and then.
pub fn say_what_was_left_out() {
    let left = said().left_out(SELDOM, mono_now());
    for (cause, more) in left {
        match cause {
            Some((cause, author)) => log::warn!("{cause} ({author}): {} more", more.count()),
            None => log::warn!("other log lines that were left out: {}", more.count()),
        }
    }
}

/// Logs a line that others can cause: at most one a second for each cause and author, the
/// next of which counts what was left out. `seldom!(Warn, "cause", author => "words")`; the
/// cause names what happened, in the plural. What of the words is not ours goes through
/// [`foreign`].
macro_rules! seldom {
    ($level:ident, $cause:literal, $author:expr => $($words:tt)+) => {
        if log::log_enabled!(log::Level::$level)
            && let Some(more) = $crate::logging::may_say($cause, &$author)
        {
            log::log!(log::Level::$level, "{}{more}", format_args!($($words)+));
        }
    };
}
pub(crate) use seldom;

/// Whether a character ends a line, moves the cursor, turns the direction of reading, or
/// cannot be seen and is part of no script.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn colour(level: Level) -> u8 {
    match level {
        Level::Error => 31,
        Level::Warn => 33,
        Level::Info => 32,
        Level::Debug => 36,
        Level::Trace => 90,
    }
}

/// Priorities of syslog, as sd-daemon(3) reads them from the start of a line.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A panic is a bug; it goes where the operator looks. With the log switched off the usual
/// message stays.
fn log_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !log::log_enabled!(target: "panic", Level::Error) {
            return usual(panic);
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        let what = panic.payload_as_str().unwrap_or("no message");
        let at = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        log::error!(target: "panic", "thread {name} panicked at {at}: {what}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(style: Style, message: &str, expected: &Expect) {
        let args = format_args!("{message}");
        let record =
            Record::builder().level(Level::Warn).target("roost::engine").args(args).build();
        expected.assert_eq(&line(&record, style, Wall(1_779_000_000_123)));
    }

    #[test]
    fn lines() {
        check(
            Style::Plain,
            "host is late",
            &expect!["2026-05-17T06:40:00.123Z WARN  roost::engine: host is late"],
        );
        check(Style::Journal, "host is late", &expect!["<4>roost::engine: host is late"]);
        check(
            Style::Json,
            "say \"hello\"\nbye",
            &expect![[
                r#"{"ts":"2026-05-17T06:40:00.123Z","level":"WARN","target":"roost::engine","message":"say \"hello\"\nbye"}"#
            ]],
        );
    }

    #[test]
    fn nobody_forges_a_line() {
        check(
            Style::Journal,
            "bad answer: a\n<0>b\x1b[2J",
            &expect![[r"<4>roost::engine: bad answer: a\n<0>b\u{1b}[2J"]],
        );
    }

    #[test]
    fn what_others_write_is_short_and_on_one_line() {
        assert_eq!(foreign("cl-1"), "cl-1");
        assert_eq!(foreign("a\n\u{202e}b"), r"a\n\u{202e}b");
        let long = foreign(&"\u{1}".repeat(1000));
        assert_eq!(long, format!("{}\u{2026}", r"\u{1}".repeat(FOREIGN_CHARS_MAX)));
    }

    #[test]
    fn a_cause_is_said_once_and_its_repetitions_are_counted() {
        let cause = "repetitions in a test";
        assert_eq!(may_say(cause, &"a"), Some(More(0)));
        assert_eq!(may_say(cause, &"b"), Some(More(0)), "another author");
        let said = (0..5000).filter(|_| may_say(cause, &"a").is_some()).count();
        assert!(said < 1000, "{said}");
    }

    #[test]
    fn only_the_level_is_coloured() {
        let args = format_args!("x");
        let record = Record::builder().level(Level::Error).target("t").args(args).build();
        let coloured = line(&record, Style::Coloured, Wall(0));
        assert_eq!(coloured, "1970-01-01T00:00:00.000Z \x1b[31mERROR\x1b[0m t: x");
    }
}
