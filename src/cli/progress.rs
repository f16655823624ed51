//! Owns the line that shows that long work goes on: on a terminal only, gone when done.
//!
//! Never: writes to stdout, or anything where nobody looks; delays the work. Called by the
//! commands that may take long.

use super::output::{age, truncate};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::io::{IsTerminal, Write};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Work that ends before this shows nothing. Larger: people wonder; smaller: a line flickers.
const SHOW_AFTER: Duration = Duration::from_millis(400);

/// How often the line is renewed.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// A line on stderr for as long as this lives.
pub(super) struct Progress {
    line: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// `what` is done now; how long it has taken is shown with it.
    pub(super) fn of(what: &str) -> Progress {
        let what = what.to_owned();
        Progress::saying(move || what.clone())
    }

    /// The same with words that change.
    pub(super) fn saying(words: impl Fn() -> String + Send + 'static) -> Progress {
        let Some(width) = width() else { return Progress { line: None } };
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let show = move || {
            let began = Instant::now();
            let mut wait = SHOW_AFTER;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let text = format!("{}, {}", words(), age(began.elapsed()));
                say(&truncate(&text, width.saturating_sub(1)));
                wait = SHOW_EVERY;
            }
            say("");
        };
        // Work goes on without a line.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(show);
        Progress { line: thread.ok().map(|thread| (end, thread)) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.line.take() {
            drop(end);
            drop(thread.join());
        }
    }
}

/// Columns of stderr; `None` where a line could not be taken back.
fn width() -> Option<usize> {
    let stderr = std::io::stderr();
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if is_dumb || !stderr.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stderr).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// The cursor returns to the begin, so that a line of the log writes over this one.
fn say(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "\r\x1b[K{text}\r").and_then(|()| stderr.flush());
}
