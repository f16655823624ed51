//! Owns what the events of the last day add up to: how many sandboxes were in each status,
//! and how every host fared.
//!
//! Never: reads an event twice. The first look reads the day, every later one what came
//! since, so that a busy fleet with a page open costs no more than its news. Kept by `api`.

use super::StoreError;
use super::read;
use super::rows;
use crate::model::event::EventKind;
use crate::model::host::{Host, HostStatus};
use crate::model::id::HostId;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Wall;
use rusqlite::{Connection, Row};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How far back it goes, in milliseconds. Larger: the first look reads longer; smaller:
/// nobody sees in the morning what happened at night.
pub const WINDOW_MS: i64 = 24 * 3600 * 1000;

/// Time between two counts, in milliseconds. Larger: short outages do not show in the
/// counts; smaller: more points than a screen has.
pub const STEP_MS: i64 = 15 * 60 * 1000;

/// Events that the first look reads at most; beyond that the timeline begins later.
/// Larger: the first page after a start waits for longer; smaller: less than a day is known
/// of a large and busy fleet.
const EVENTS_MAX: u64 = 2_000_000;

/// News from which on a look takes its time. Larger: whoever asks meanwhile waits for longer
/// (this many take 60 ms, unoptimised); smaller: they are sent away for little.
const NEWS_LONG: u64 = 20_000;

/// Changes of hosts that are kept; the oldest give way. Larger: memory; smaller: a fleet
/// that flaps all day loses its morning.
const HOST_CHANGES_MAX: usize = 100_000;

const STATUSES: usize = SandboxStatus::ALL.len();

/// Counts by status, in the order of [`SandboxStatus::ALL`].
pub type Counts = [i64; STATUSES];

/// How a host fares, as far as a timeline shows it: its public status, or `degraded`.
pub type Fare = &'static str;

/// What a page draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Day {
    /// The newest revision that is in it.
    pub revision: u64,
    /// Where it begins.
    pub from: Wall,
    /// Where it ends: now.
    pub until: Wall,
    /// Counts at the end of every step, the last of them now.
    pub counts: Vec<Counts>,
    /// How every host fared, each span until the next one begins.
    pub hosts: Vec<(HostId, Vec<(Wall, Fare)>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// The public status before and after.
    Status(Option<HostStatus>, HostStatus),
    /// Probes began to fail, or to succeed again.
    Degraded(bool),
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Up to which revision events were read; 0: none yet.
    read_until: u64,
    /// Since when everything is known, when that is less than the window.
    complete_from: Option<Wall>,
    changes: VecDeque<(Wall, HostId, Change)>,
    /// By step, how the counts changed in it.
    moves: BTreeMap<i64, Counts>,
}

impl Timeline {
    /// The day up to now. Reads the events since the last call, or of a whole day.
    pub fn day(&mut self, conn: &Connection, now: Wall) -> Result<Day, StoreError> {
        // One snapshot: counts and events must be of the same moment.
        let snapshot = conn.unchecked_transaction()?;
        let since = Wall((now.0 - WINDOW_MS).div_euclid(STEP_MS) * STEP_MS + STEP_MS);
        if self.read_until == 0 || self.is_far_behind(read::revision(&snapshot)?) {
            // What nobody looked at for long is not read from there: only the day is shown.
            self.begin(&snapshot, since)?;
        }
        self.read_news(&snapshot)?;
        self.forget_before(since);
        let from = self.complete_from.unwrap_or(since).max(since);
        let mut current = [0; STATUSES];
        for (status, count) in read::counts(&snapshot)?.into_values().flatten() {
            current[status as usize] += i64::try_from(count).unwrap_or(i64::MAX);
        }
        let hosts = read::hosts(&snapshot)?;
        Ok(Day {
            revision: self.read_until,
            from,
            until: now,
            counts: self.counts(current, from, now),
            hosts: self.fares(&hosts, from),
        })
    }

    /// Whether there is so much news up to this revision that a look takes its time.
    pub fn is_far_behind(&self, newest: u64) -> bool {
        newest.saturating_sub(self.read_until) > NEWS_LONG
    }

    /// Finds where the window begins; goes on where it stopped when that is within.
    fn begin(&mut self, conn: &Connection, since: Wall) -> Result<(), StoreError> {
        let Some(oldest) = read::oldest_event(conn)? else {
            self.read_until = read::revision(conn)?;
            return Ok(());
        };
        // Of an event: the revision itself may be far ahead of the last of them.
        let newest =
            conn.query_row("SELECT max(revision) FROM events", [], |row| rows::unsigned(row, 0))?;
        let floor = oldest.max(newest.saturating_sub(EVENTS_MAX));
        let first = first_since(conn, since, floor, newest)?;
        if first <= self.read_until {
            return Ok(());
        }
        *self = Timeline::default();
        // Whether something before it was given up, or is not read for being too much.
        if first == floor && floor > 1 {
            self.complete_from = at_or_after(conn, floor)?.map(|(_, at)| at);
        }
        self.read_until = first.saturating_sub(1);
        Ok(())
    }

    fn read_news(&mut self, conn: &Connection) -> Result<(), StoreError> {
        let mut select = conn.prepare_cached(
            "SELECT revision, at, kind, host_id, sandbox_id IS NULL, from_status, to_status \
             FROM events WHERE revision > ?1 ORDER BY revision",
        )?;
        let mut news = select.query([i64::try_from(self.read_until).unwrap_or(i64::MAX)])?;
        while let Some(row) = news.next()? {
            let at = rows::wall(row, 1)?;
            if row.get(4)? {
                if let Some(change) = host_change(row)? {
                    self.changes.push_back((at, rows::id(row, 3)?, change));
                }
            } else if let Some(to) = rows::parsed_opt::<SandboxStatus>(row, 6)? {
                let step = self.moves.entry(at.0.div_euclid(STEP_MS)).or_default();
                step[to as usize] += 1;
                if let Some(from) = rows::parsed_opt::<SandboxStatus>(row, 5)? {
                    step[from as usize] -= 1;
                }
            }
            self.read_until = rows::unsigned(row, 0)?;
        }
        Ok(())
    }

    fn forget_before(&mut self, since: Wall) {
        let old = self.changes.iter().take_while(|(at, ..)| *at < since).count();
        let much = self.changes.len().saturating_sub(HOST_CHANGES_MAX);
        self.changes.drain(..old.max(much));
        self.moves = self.moves.split_off(&since.0.div_euclid(STEP_MS));
    }

    /// From what is now back to `from`, undoing step by step.
    fn counts(&self, current: Counts, from: Wall, now: Wall) -> Vec<Counts> {
        let (first, last) = (from.0.div_euclid(STEP_MS), now.0.div_euclid(STEP_MS));
        let mut counts = current;
        // What a clock that was ahead has dated later is undone first.
        let mut undone = self.moves.range(last + 1..).map(|(_, moved)| moved).collect::<Vec<_>>();
        let mut points = vec![current];
        for step in (first + 1..=last).rev() {
            undone.extend(self.moves.get(&step));
            for moved in undone.drain(..) {
                // Rows that were forgotten since are missing from what is now.
                counts.iter_mut().zip(moved).for_each(|(n, moved)| *n = (*n - moved).max(0));
            }
            points.push(counts);
        }
        points.reverse();
        points
    }

    fn fares(&self, hosts: &[Host], from: Wall) -> Vec<(HostId, Vec<(Wall, Fare)>)> {
        let mut of: HashMap<HostId, Vec<(Wall, Change)>> = HashMap::new();
        for (at, host, change) in &self.changes {
            of.entry(*host).or_default().push((*at, *change));
        }
        let spans = |host: &Host| {
            let changes = of.remove(&host.id).unwrap_or_default();
            (host.id, spans(host, &changes, from.max(host.created_at)))
        };
        hosts.iter().map(spans).collect()
    }
}

/// The spans of one host from `from` on. What it was before its first change follows from
/// that change; a host without one was always as it is now.
fn spans(host: &Host, changes: &[(Wall, Change)], from: Wall) -> Vec<(Wall, Fare)> {
    let before = changes.iter().find_map(|(_, change)| match change {
        Change::Status(from, _) => Some(from.unwrap_or(HostStatus::Pending)),
        Change::Degraded(_) => None,
    });
    let was_degraded = changes.iter().find_map(|(_, change)| match change {
        Change::Degraded(now) => Some(!now),
        Change::Status(..) => None,
    });
    let mut status = before.unwrap_or_else(|| host.status());
    let mut degraded = was_degraded.unwrap_or(host.degraded);
    let mut spans = vec![(from, fare(status, degraded))];
    for (at, change) in changes {
        match *change {
            Change::Status(_, to) => status = to,
            Change::Degraded(now) => degraded = now,
        }
        let fare = fare(status, degraded);
        if spans.last().is_some_and(|(_, last)| *last != fare) {
            spans.push(((*at).max(from), fare));
        }
    }
    spans
}

fn fare(status: HostStatus, degraded: bool) -> Fare {
    match status {
        HostStatus::Online | HostStatus::Draining if degraded => "degraded",
        HostStatus::Online
        | HostStatus::Draining
        | HostStatus::Pending
        | HostStatus::Unreachable
        | HostStatus::Offline => status.as_str(),
    }
}

/// What an event about a host changes, if anything.
fn host_change(row: &Row<'_>) -> rusqlite::Result<Option<Change>> {
    let kind: EventKind = rows::parsed(row, 2)?;
    // It became `deleted`, which is no status; nobody draws a host that is gone.
    if kind == EventKind::HostDeleted {
        return Ok(None);
    }
    if kind == EventKind::HostDegraded || kind == EventKind::HostRecovered {
        return Ok(Some(Change::Degraded(kind == EventKind::HostDegraded)));
    }
    // Who is gone fares no more, and `deleted` is no status.
    if kind == EventKind::HostDeleted {
        return Ok(None);
    }
    let from = rows::parsed_opt(row, 5)?;
    Ok(rows::parsed_opt(row, 6)?.map(|to| Change::Status(from, to)))
}

/// Revision of the first event at `since` or later, between two revisions; one beyond the
/// last when there is none. Revisions are in order of time, so halving finds it.
fn first_since(conn: &Connection, since: Wall, low: u64, high: u64) -> Result<u64, StoreError> {
    let (mut low, mut high) = (low, high + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match at_or_after(conn, middle)? {
            Some((revision, at)) if at < since => low = revision + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

/// The first event that is not before this revision.
fn at_or_after(conn: &Connection, revision: u64) -> Result<Option<(u64, Wall)>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT revision, at FROM events WHERE revision >= ?1 ORDER BY revision LIMIT 1",
    )?;
    let mut found = select.query([i64::try_from(revision).unwrap_or(i64::MAX)])?;
    match found.next()? {
        Some(row) => Ok(Some((rows::unsigned(row, 0)?, rows::wall(row, 1)?))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::SCHEMA;
    use rusqlite::params;

    const NOW: i64 = 1_779_000_000_000;

    /// Adds so many events up to a moment, one a second; the first says what nobody reads.
    fn add(conn: &Connection, count: i64, until: i64) {
        let first: i64 = conn
            .query_row("SELECT ifnull(max(revision), 0) + 1 FROM events", [], |r| r.get(0))
            .unwrap();
        conn.execute_batch("BEGIN").unwrap();
        for nth in 0..count {
            let kind = if nth == 0 { "unreadable" } else { "host.intent" };
            let (from, to) =
                if nth % 2 == 0 { ("online", "draining") } else { ("draining", "online") };
            let host = HostId::from_u128(1).to_string();
            conn.prepare_cached(
                "INSERT INTO events \
                 (revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, reason, actor) \
                 VALUES (?1, ?2, ?3, ?4, NULL, 'team', ?5, ?6, 'requested', 'user')",
            )
            .unwrap()
            .execute(params![first + nth, until - (count - nth) * 1000, kind, host, from, to])
            .unwrap();
        }
        conn.execute("UPDATE state SET revision = ?1", [first + count - 1]).unwrap();
        conn.execute_batch("COMMIT").unwrap();
    }

    #[test]
    fn what_nobody_looked_at_for_long_is_not_read_from_there() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        conn.execute("INSERT INTO state (id, revision, created_at) VALUES (1, 0, 0)", []).unwrap();
        let mut timeline = Timeline::default();
        assert_eq!(timeline.day(&conn, Wall(NOW)).unwrap().revision, 0);

        let news = i64::try_from(NEWS_LONG).unwrap() + 2;
        let later = NOW + 3 * WINDOW_MS;
        add(&conn, news, later - WINDOW_MS);
        assert!(timeline.is_far_behind(news as u64));
        let day = timeline.day(&conn, Wall(later)).unwrap();
        assert_eq!(day.revision, news as u64);
        assert_eq!(timeline.changes.len(), 0, "all of it is older than the day");
        assert!(!timeline.is_far_behind(news as u64));

        // Revisions that were left out hide nothing.
        conn.execute("UPDATE state SET revision = revision + 1000000000", []).unwrap();
        let mut fresh = Timeline::default();
        fresh.day(&conn, Wall(later - 3 * 3_600_000)).unwrap();
        assert!(fresh.changes.len() > news as usize / 3, "{}", fresh.changes.len());

        // What is within the day is read on from where the last look stopped.
        timeline.read_until = 1;
        let halfway = timeline.day(&conn, Wall(later - WINDOW_MS)).unwrap();
        assert_eq!(halfway.revision, news as u64);
        assert_eq!(timeline.changes.len(), news as usize - 1);
    }
}
