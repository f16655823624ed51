//! Owns `roost events`: what happened, in order, and with `--follow` what happens from now
//! on. It reads the database directly, so it outlives the server.
//!
//! Never: leaves an event out or shows one twice; goes on when nobody reads any more.

use super::args::{Events, Format};
use super::look::connect;
use super::output::{
    Exit, Failure, Out, Screen, cut_middle, display_width, short_time, truncate, with_detail,
};
use super::unreadable;
use crate::api::view::EventView;
use crate::config::Config;
use crate::logging::one_line;
use crate::model::event::Event;
use crate::store::read::{self, HistoryFilter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Stdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How often `--follow` looks: 200 ms. Larger and people wait; smaller and it costs more
/// than it shows.
const FOLLOW_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// What is left of an id where there is no room for it.
const SHORT_ID_WIDTH: usize = 12;

/// Shows events, and follows them when asked to.
pub(super) fn events(config: &Config, options: &Events) -> Result<Exit, Failure> {
    let interrupted = if options.follow { Some(interruption()?) } else { None };
    let conn = connect(config, &options.database)?;
    let filter = HistoryFilter {
        team: None,
        host: options.host,
        sandbox: options.sandbox,
        limit: options.limit,
    };
    // Read before the events: what is written in between is among them or follows them.
    let newest = read::revision(&conn).map_err(unreadable)?;
    let first = match options.after {
        Some(after) => read::events_after(&conn, after, &filter),
        None => read::events_latest(&conn, &filter),
    };
    let first = first.map_err(unreadable)?;
    let format = options.printing.format;
    let mut out = Out::stdout();
    if !options.follow && format == Format::Json {
        let views: Vec<EventView> = first.into_iter().map(EventView::from).collect();
        out.json(&views)?;
        return out.finish().map(|()| Exit::Done);
    }
    let last = first.last().map(|event| event.revision);
    let seen = match options.after {
        // The limit may have cut; following goes on from there.
        Some(after) => last.unwrap_or(after),
        None => newest.max(last.unwrap_or(0)),
    };
    show(&mut out, format, first)?;
    if let Some(interrupted) = interrupted {
        let filter = HistoryFilter { limit: read::ROWS_MAX, ..filter };
        let news = |seen| read::events_after(&conn, seen, &filter).map_err(unreadable);
        follow(&mut out, format, seen, &interrupted, news)?;
    }
    out.finish().map(|()| Exit::Done)
}

/// Shows what comes after `seen`, until somebody interrupts or leaves.
fn follow(
    out: &mut Out<Stdout>,
    format: Format,
    mut seen: u64,
    interrupted: &AtomicBool,
    after: impl Fn(u64) -> Result<Vec<Event>, Failure>,
) -> Result<(), Failure> {
    while !interrupted.load(Ordering::Relaxed) {
        let news = after(seen)?;
        match news.last() {
            Some(last) => seen = last.revision,
            None if wait()? => continue,
            None => break,
        }
        show(out, format, news)?;
    }
    Ok(())
}

/// Set by SIGINT and SIGTERM from now on: the usual way to end.
fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|e| Failure::new("could not watch for signals").because(e))?;
    }
    Ok(interrupted)
}

/// Waits until it is time to look again; false when nobody reads stdout any more.
fn wait() -> Result<bool, Failure> {
    let stdout = std::io::stdout();
    // Asks for nothing: that the reader left is said anyway.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut fds, Some(&FOLLOW_EVERY)) {
        Ok(_) => Ok(fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(Failure::new("could not wait for events").because(error)),
    }
}

/// A line of JSON, or a sentence, for each event.
fn show(out: &mut Out<Stdout>, format: Format, events: Vec<Event>) -> Result<(), Failure> {
    let width = Screen::of_stdout().width;
    for event in events {
        match format {
            Format::Text => {
                out.line(&fitting(&event, width))?;
            }
            Format::Json => out.json(&EventView::from(event))?,
        }
    }
    out.flush()
}

/// The line of an event, as much of it as the terminal has room for: first the host goes,
/// then the year, the middle of the id, the reason, the day, and what was before.
fn fitting(event: &Event, width: Option<usize>) -> String {
    let (revision, at) = (event.revision, event.at.to_string());
    let full = format!("{revision}  {at}  {}", what_happened(event));
    let Some(width) = width else { return full };
    let (who, change, reason, _) = parts(event);
    let (time, id) = (short_time(&at), cut_middle(&who, SHORT_ID_WIDTH));
    let clock = time.split(' ').next_back().unwrap_or_default();
    let to = change.rsplit(" → ").next().unwrap_or_default();
    let shorter = [
        full,
        format!("{revision}  {at}  {who}  {change}{reason}"),
        format!("{revision}  {time}  {who}  {change}{reason}"),
        format!("{revision}  {time}  {id}  {change}{reason}"),
        format!("{revision}  {time}  {id}  {change}"),
        format!("{revision}  {clock}  {id}  {change}"),
        format!("{revision}  {clock}  {id}  {to}"),
    ];
    let last = truncate(&shorter[shorter.len() - 1], width);
    shorter.into_iter().find(|line| display_width(line) <= width).unwrap_or(last)
}

/// One event for people: to whom, what, why and where.
pub(super) fn what_happened(event: &Event) -> String {
    let (who, change, reason, place) = parts(event);
    format!("{who}  {change}{reason}{place}")
}

/// To whom, what, why and where.
fn parts(event: &Event) -> (String, String, String, String) {
    let who = event.sandbox_id.map_or_else(|| event.host_id.to_string(), |id| id.to_string());
    let change = match (&event.from, &event.to) {
        (Some(from), Some(to)) => format!("{from} → {to}"),
        (None, Some(to)) => to.clone(),
        (Some(_), None) | (None, None) => event.kind.to_string(),
    };
    let reason = format!(" ({})", with_detail(event.reason.as_str(), event.detail.as_deref()));
    let place = event.sandbox_id.map_or_else(String::new, |_| format!(" on {}", event.host_id));
    (who, one_line(&change), one_line(&reason), place)
}
