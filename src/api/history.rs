//! Owns `GET /v1/history`: the last day in a few kilobytes, for who draws it.
//!
//! Never: adds anything up itself (`store::timeline` does), reads a day of events more than
//! once. Replaying the stream instead would send a client every event of the day.

use super::{Problem, Ready, json};
use crate::http::Response;
use crate::model::id::HostId;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Wall;
use crate::store::timeline::{Counts, Day, Fare, STEP_MS, Timeline};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// What is known of the day; one request at a time brings it up to date.
#[derive(Debug, Default)]
pub struct History {
    timeline: Mutex<Timeline>,
    /// Whether that one has much to read: then nobody waits for it.
    is_long: AtomicBool,
}

/// The answer. `counts` has, for every status that occurs, how many sandboxes were in it at
/// the end of each step; the last number is now.
#[derive(Serialize)]
struct HistoryView {
    revision: u64,
    from: Wall,
    until: Wall,
    step_s: i64,
    counts: BTreeMap<&'static str, Vec<i64>>,
    hosts: Vec<HostFares>,
}

#[derive(Serialize)]
struct HostFares {
    host_id: HostId,
    spans: Vec<Span>,
}

/// A state that lasts until the next span begins.
#[derive(Serialize)]
struct Span {
    from: Wall,
    state: Fare,
}

/// `GET /v1/history`
pub(super) fn history(ready: &Ready) -> Result<Response, Problem> {
    // The lock first: whoever waits must not hold a connection.
    let history = &ready.history;
    let mut timeline = lock(history)?;
    history.is_long.store(timeline.is_far_behind(ready.revision.newest()), Ordering::Relaxed);
    let day = timeline.day(&*ready.read()?, ready.now().wall)?;
    drop(timeline);
    json(200, &HistoryView::from(day))
}

/// Waits for whoever is at it, unless that takes long: agents need the threads that would
/// wait. A panic leaves a timeline that reads on where it stopped.
fn lock(history: &History) -> Result<MutexGuard<'_, Timeline>, Problem> {
    match history.timeline.try_lock() {
        Ok(timeline) => Ok(timeline),
        Err(TryLockError::Poisoned(left)) => Ok(left.into_inner()),
        Err(TryLockError::WouldBlock) if history.is_long.load(Ordering::Relaxed) => {
            Err(Problem::unavailable("the last day is being added up; try again"))
        }
        Err(TryLockError::WouldBlock) => {
            Ok(history.timeline.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

impl From<Day> for HistoryView {
    fn from(day: Day) -> HistoryView {
        let fares = |(host_id, spans): (HostId, Vec<(Wall, Fare)>)| HostFares {
            host_id,
            spans: spans.into_iter().map(|(from, state)| Span { from, state }).collect(),
        };
        HistoryView {
            revision: day.revision,
            from: day.from,
            until: day.until,
            step_s: STEP_MS / 1000,
            counts: by_status(&day.counts),
            hosts: day.hosts.into_iter().map(fares).collect(),
        }
    }
}

fn by_status(points: &[Counts]) -> BTreeMap<&'static str, Vec<i64>> {
    let line = |at: usize| points.iter().map(|counts| counts[at]).collect::<Vec<_>>();
    let lines = SandboxStatus::ALL.iter().enumerate();
    let lines = lines.map(|(at, status)| (status.as_str(), line(at)));
    lines.filter(|(_, line)| line.iter().any(|count| *count != 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_long_look() {
        let history = History::default();
        let long = lock(&history).unwrap();
        history.is_long.store(true, Ordering::Relaxed);
        assert_eq!(lock(&history).err().map(|problem| problem.status), Some(503));
        drop(long);
        assert!(lock(&history).is_ok());
    }
}
