//! Owns how a demo is told, a line each with the time since its start, and how it hears
//! that it shall end.
//!
//! Never: decides what is worth telling, but that many sandboxes that changed alike are one
//! line. Called by `play`.

use crate::cli::clock;
use crate::cli::events::what_happened;
use crate::cli::output::{Failure, Out};
use crate::model::event::Event;
use crate::model::time::Mono;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Stdout;
use std::time::Duration;

/// The lines on stdout.
pub(super) struct Show {
    out: Out<Stdout>,
    began: Mono,
}

impl Show {
    /// Begins to count.
    pub(super) fn new() -> Show {
        Show { out: Out::stdout(), began: clock().now().mono }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        clock().now().mono.since(self.began)
    }

    /// One line: who says what.
    pub(super) fn say(&mut self, who: &str, what: &str) -> Result<(), Failure> {
        self.out.line(&format!("{:>7}  {who:<8}  {what}", tenths(self.elapsed())))?;
        self.out.flush()
    }

    /// Lines that have no time.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.out.lines(text)?;
        self.out.flush()
    }

    /// What Roost noticed and did, in its own words.
    pub(super) fn events(&mut self, events: &[Event]) -> Result<(), Failure> {
        for alike in events.chunk_by(are_alike) {
            match alike {
                [] => {}
                [event] => self.say("roost", &what_happened(event))?,
                [event, ..] => self.say("roost", &many(event, alike.len()))?,
            }
        }
        Ok(())
    }
}

fn are_alike(a: &Event, b: &Event) -> bool {
    a.sandbox_id.is_some()
        && b.sandbox_id.is_some()
        && (a.host_id, a.kind, &a.from, &a.reason) == (b.host_id, b.kind, &b.from, &b.reason)
}

fn many(event: &Event, count: usize) -> String {
    let word = |status: &Option<String>| status.clone().unwrap_or_else(|| "nothing".to_owned());
    let (from, to) = (word(&event.from), word(&event.to));
    format!("{count} sandboxes  {from} → {to} ({}) on {}", event.reason, event.host_id)
}

/// A span for people who wait: `3.2s`.
pub(super) fn tenths(span: Duration) -> String {
    format!("{:.1}s", span.as_secs_f64())
}

/// SIGINT and SIGTERM: the first ends the demo, another one does not wait for its end.
pub(super) struct Interrupts {
    signals: Signals,
    asked: bool,
}

impl Interrupts {
    /// From now on a signal is a request.
    pub(super) fn watch() -> Result<Interrupts, Failure> {
        let signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|e| Failure::new("could not watch for signals").because(e))?;
        Ok(Interrupts { signals, asked: false })
    }

    /// Whether somebody wants an end to what is going on.
    pub(super) fn asked(&mut self) -> bool {
        self.asked |= self.signals.pending().count() > 0;
        self.asked
    }

    /// What goes on has ended; the next request is about what follows.
    pub(super) fn obeyed(&mut self) {
        self.asked = false;
    }
}
