//! Owns what is to be announced, as durable rows: problems, the outbox, maintenance.
//!
//! Never: decides what is announced (`plan::notify` does), sends anything. What is wrong is
//! read from what other commands wrote, in the same order: whoever is killed in between
//! finds it again at the next look.

use super::StoreError;
use super::rows;
use super::writer::{After, Writer};
use crate::model::host::{Host, Intent, Liveness};
use crate::model::id::HostId;
use crate::model::notify::{NotifyKind, Phase};
use crate::model::order;
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::{Now, Wall};
use crate::plan::history::is_failure;
use crate::plan::notify::{Key, Message, Problem, Rules, Sight, decide};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Messages that wait for one target at most. Larger: a target that comes back after a day
/// is flooded; smaller: it misses more of the day. Reminders give way first, the oldest of
/// them before the others; then the oldest message.
pub const OUTBOX_MAX: usize = 500;

/// How long a message is kept for a target. Longer: whoever comes back hears of what nobody
/// remembers; shorter: a target that is down over a night misses it.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Events that one look reads at most; the next one goes on. Larger: other commands wait;
/// smaller: more looks after a storm.
const EVENTS_PER_LOOK: u32 = 5000;

/// Events without a failure after which the place is noted nevertheless. Larger: a start
/// reads more of them again; smaller: more writes.
const CURSOR_LAG: u64 = 10_000;

/// Longest maintenance. Longer and a window that nobody remembers hides a dead host.
pub const MAINTENANCE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is known of the guard that holds verdicts on most of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// It has not judged since the start.
    Unknown,
    /// It holds nothing.
    Free,
    /// It holds the verdict on so many hosts.
    Holding(u64),
}

/// Somebody who is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Of what.
    pub kinds: BTreeSet<NotifyKind>,
}

/// One look for what to announce.
#[derive(Debug, Clone)]
pub struct Lookout {
    /// How it is announced.
    pub rules: Rules,
    /// To whom.
    pub listeners: Vec<Listener>,
    /// What the guard holds.
    pub guard: Guard,
    /// Something is expected to be announced.
    pub is_due: bool,
}

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noticed {
    /// When to look again, if nothing happens before.
    pub next_at: Option<Wall>,
    /// Problems that are open.
    pub open: usize,
    /// Something new is in the outbox.
    pub queued: bool,
    /// Messages that gave way or were too old.
    pub dropped: u64,
    /// There are more events to look at.
    pub more: bool,
}

/// An operator's wish.
#[derive(Debug, Clone)]
pub struct Maintenance {
    /// Which host.
    pub host: HostId,
    /// Until when; `None` ends it.
    pub until: Option<Wall>,
    /// What for.
    pub reason: Option<String>,
}

/// One message on its way to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its place in the outbox.
    pub seq: i64,
    /// When it was decided.
    pub at: Wall,
    /// What it says: a JSON object.
    pub body: Value,
}

fn key(problem: &Problem) -> Key {
    (problem.kind, problem.host)
}

impl Writer {
    /// Looks for what is wrong and decides what is announced of it.
    pub(super) fn notice(&mut self, look: &Lookout, now: Now) -> Result<Noticed, StoreError> {
        self.in_savepoint(|w| {
            let known = problems(&w.conn)?;
            let hosts: BTreeMap<HostId, Host> =
                order::map_of(super::read::hosts(&w.conn)?.into_iter().map(|host| (host.id, host)));
            let (mut seen, cursor, more) = w.sights(&known, &hosts, look.guard)?;
            let failed = seen.values().any(|sight| matches!(sight, Sight::Happened(_)));
            let maintained = maintenance(&w.conn, now.wall)?;
            let rules = Rules { mute: look.rules.mute || look.listeners.is_empty(), ..look.rules };
            let random = &mut w.random;
            let mut fresh = || {
                let bytes: [u8; 12] = random.bytes();
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("ntf-{hex}")
            };
            // Nothing was sent while nobody listened: what failed then is no news later.
            if rules.mute {
                seen.retain(|_, sight| !matches!(sight, Sight::Happened(_)));
            }
            let names = order::map_of(hosts.values().map(|host| (host.id, host.named())));
            let decided = decide(&known, &seen, &maintained, &names, now.wall, &rules, &mut fresh);
            w.keep_problems(&known, &decided.problems)?;
            w.note_cursor(cursor, failed)?;
            for message in &decided.messages {
                w.put_out(message, &hosts, &look.listeners, now.wall)?;
            }
            let dropped = w.make_room(&look.listeners, now.wall)?;
            w.after.push(After::Noticed(cursor));
            Ok(Noticed {
                next_at: decided.next_at,
                open: decided.problems.len(),
                queued: !decided.messages.is_empty(),
                dropped,
                more,
            })
        })
    }

    fn sights(
        &self,
        known: &[Problem],
        hosts: &BTreeMap<HostId, Host>,
        guard: Guard,
    ) -> Result<(BTreeMap<Key, Sight>, u64, bool), StoreError> {
        let mut seen = BTreeMap::new();
        let guarded = (NotifyKind::MassGuard, None);
        match guard {
            Guard::Unknown => drop(seen.insert(guarded, Sight::Unknown)),
            Guard::Holding(hosts) => drop(seen.insert(guarded, Sight::Wrong(hosts))),
            Guard::Free => {}
        }
        let open: BTreeSet<Key> = known.iter().map(key).collect();
        for host in hosts.values() {
            self.see_host(host, &open, &mut seen);
        }
        for problem in known.iter().filter(|p| !p.kind.is_passing()) {
            let Some(host) = problem.host else { continue };
            let watched = hosts.get(&host).is_some_and(|host| host.intent != Intent::Offline);
            if !watched {
                seen.insert((problem.kind, Some(host)), Sight::Unwatched);
            }
        }
        let (cursor, more) = self.see_failures(&mut seen)?;
        Ok((seen, cursor, more))
    }

    fn see_host(&self, host: &Host, open: &BTreeSet<Key>, seen: &mut BTreeMap<Key, Sight>) {
        if host.intent == Intent::Offline || !host.is_active() {
            return;
        }
        let id = Some(host.id);
        let silent = host.liveness == Liveness::Unreachable;
        if silent {
            let missing = self.usage.on(host.id).by_status[SandboxStatus::Missing as usize];
            let missing = u64::try_from(missing).unwrap_or_default();
            seen.insert((NotifyKind::HostDown, id), Sight::Wrong(missing));
        }
        let degraded = (NotifyKind::HostDegraded, id);
        match (host.degraded, silent) {
            (true, false) => drop(seen.insert(degraded, Sight::Wrong(0))),
            // It was announced; whether it still is so shows when the host is back.
            (true, true) => drop(seen.insert(degraded, Sight::Unknown)),
            (false, _) => {}
        }
        // What looks tell is known only after one since the start.
        let record = self.records.get(&host.id).filter(|r| r.successes > 0 && !silent);
        for kind in [NotifyKind::MassVanish, NotifyKind::Zombies] {
            let Some(record) = record else {
                if open.contains(&(kind, id)) {
                    seen.insert((kind, id), Sight::Unknown);
                }
                continue;
            };
            let count = match kind == NotifyKind::Zombies {
                true => record.strangers,
                false => record.looks.held(),
            };
            if count > 0 {
                seen.insert((kind, id), Sight::Wrong(count as u64));
            }
        }
    }

    /// Counts what failed since the last look, by host.
    fn see_failures(&self, seen: &mut BTreeMap<Key, Sight>) -> Result<(u64, bool), StoreError> {
        let from = match self.noticed {
            Some(cursor) => cursor,
            None => stored_cursor(&self.conn)?,
        };
        let mut cursor = from;
        let mut select = self.conn.prepare_cached(
            "SELECT revision, host_id, to_status, reason FROM events WHERE revision > ?1 \
             AND sandbox_id IS NOT NULL ORDER BY revision LIMIT ?2",
        )?;
        let mut events = select.query(params![from as i64, EVENTS_PER_LOOK])?;
        let mut read = 0;
        while let Some(row) = events.next()? {
            read += 1;
            cursor = rows::unsigned(row, 0)?;
            let to: Option<SandboxStatus> = rows::parsed_opt(row, 2)?;
            let reason = Reason::from(row.get::<_, String>(3)?.as_str());
            if is_failure(to, &reason) {
                let key = (NotifyKind::OperationFailed, Some(rows::id(row, 1)?));
                let times = match seen.get(&key) {
                    Some(Sight::Happened(times)) => *times,
                    Some(Sight::Wrong(_) | Sight::Unknown | Sight::Unwatched) | None => 0,
                };
                seen.insert(key, Sight::Happened(times + 1));
            }
        }
        let more = read == EVENTS_PER_LOOK;
        // Events of hosts are passed over with the rest.
        Ok((if more { cursor } else { self.revision }, more))
    }

    fn note_cursor(&self, cursor: u64, failed: bool) -> Result<(), StoreError> {
        let stored = stored_cursor(&self.conn)?;
        if failed || cursor.saturating_sub(stored) > CURSOR_LAG {
            self.conn
                .prepare_cached(
                    "INSERT INTO notify_state (id, cursor) VALUES (1, ?1) \
                     ON CONFLICT DO UPDATE SET cursor = excluded.cursor",
                )?
                .execute([cursor as i64])?;
        }
        Ok(())
    }

    fn keep_problems(&self, before: &[Problem], after: &[Problem]) -> Result<(), StoreError> {
        let known: BTreeMap<Key, &Problem> = before.iter().map(|p| (key(p), p)).collect();
        let kept: BTreeSet<Key> = after.iter().map(key).collect();
        let mut delete = self
            .conn
            .prepare_cached("DELETE FROM notify_problems WHERE kind = ?1 AND host_id = ?2")?;
        for old in before.iter().filter(|old| !kept.contains(&key(old))) {
            delete.execute(params![old.kind.as_str(), host_text(old.host)])?;
        }
        let mut put = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO notify_problems (kind, host_id, opened_at, sandboxes, \
             announced, told_at, gone_at, unwatched) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for p in after.iter().filter(|p| known.get(&key(p)) != Some(p)) {
            put.execute(params![
                p.kind.as_str(),
                host_text(p.host),
                p.opened_at.0,
                i64::try_from(p.sandboxes).unwrap_or(i64::MAX),
                p.announced,
                p.told_at.map(|at| at.0),
                p.gone_at.map(|at| at.0),
                p.unwatched,
            ])?;
        }
        Ok(())
    }

    fn put_out(
        &self,
        message: &Message,
        hosts: &BTreeMap<HostId, Host>,
        listeners: &[Listener],
        now: Wall,
    ) -> Result<(), StoreError> {
        let who: Vec<&Listener> =
            listeners.iter().filter(|l| l.kinds.contains(&message.kind)).collect();
        if who.is_empty() {
            return Ok(());
        }
        self.conn
            .prepare_cached("INSERT INTO notify_messages (at, phase, body) VALUES (?1, ?2, ?3)")?
            .execute(params![
                now.0,
                message.phase.as_str(),
                body(message, hosts, now).to_string()
            ])?;
        let seq = self.conn.last_insert_rowid();
        let mut put =
            self.conn.prepare_cached("INSERT INTO notify_outbox (target, seq) VALUES (?1, ?2)")?;
        for listener in who {
            put.execute(params![listener.name, seq])?;
        }
        Ok(())
    }

    /// Drops what is too much or too old; gives how many deliveries that were.
    fn make_room(&self, listeners: &[Listener], now: Wall) -> Result<u64, StoreError> {
        // An hour more: whoever is there gives up by itself and says so.
        let oldest = now.before(GIVE_UP_AFTER + Duration::from_secs(3600));
        let mut old = self.conn.prepare_cached(
            "DELETE FROM notify_outbox WHERE seq IN (SELECT seq FROM notify_messages WHERE at < ?1)",
        )?;
        let mut dropped = old.execute([oldest.0])?;
        let mut count =
            self.conn.prepare_cached("SELECT count(*) FROM notify_outbox WHERE target = ?1")?;
        let mut drop_first = self.conn.prepare_cached(
            "DELETE FROM notify_outbox WHERE target = ?1 AND seq IN (SELECT o.seq \
             FROM notify_outbox o JOIN notify_messages m ON m.seq = o.seq WHERE o.target = ?1 \
             ORDER BY m.phase <> 'reminder', o.seq LIMIT ?2)",
        )?;
        for listener in listeners {
            let waiting: i64 = count.query_row([&listener.name], |row| row.get(0))?;
            let surplus = waiting - OUTBOX_MAX as i64;
            if surplus > 0 {
                dropped += drop_first.execute(params![listener.name, surplus])?;
            }
        }
        if dropped > 0 {
            self.forget_messages()?;
        }
        Ok(dropped as u64)
    }

    fn forget_messages(&self) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM notify_messages WHERE seq NOT IN (SELECT seq FROM notify_outbox)",
            )?
            .execute([])?;
        Ok(())
    }

    /// Notes that a target needs a message no more.
    pub(super) fn delivered(&mut self, target: &str, seq: i64) -> Result<(), StoreError> {
        self.in_savepoint(|w| {
            w.conn
                .prepare_cached("DELETE FROM notify_outbox WHERE target = ?1 AND seq = ?2")?
                .execute(params![target, seq])?;
            w.forget_messages()
        })
    }

    /// Begins or ends work on a host. False: no such host.
    pub(super) fn maintain(&mut self, wanted: &Maintenance, now: Now) -> Result<bool, StoreError> {
        if self.host(wanted.host)?.is_none() {
            return Ok(false);
        }
        let host = wanted.host.to_string();
        self.in_savepoint(|w| {
            w.conn
                .prepare_cached("DELETE FROM host_maintenance WHERE host_id = ?1 OR until <= ?2")?
                .execute(params![host, now.wall.0])?;
            if let Some(until) = wanted.until {
                w.conn
                    .prepare_cached(
                        "INSERT INTO host_maintenance (host_id, until, reason) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![host, until.0, wanted.reason])?;
            }
            Ok(true)
        })
    }
}

/// A message as generic targets get it.
fn body(message: &Message, hosts: &BTreeMap<HostId, Host>, now: Wall) -> Value {
    let mut body = json!({
        "id": message.id,
        "problem": message.problem,
        "kind": message.kind,
        "state": message.phase,
        "severity": message.severity,
        "at": now,
        "since": message.since,
        "title": message.title,
        "message": message.text,
    });
    if let [host] = message.hosts.as_slice() {
        body["host_id"] = json!(host);
    }
    if !message.hosts.is_empty() {
        body["hosts"] = json!(message.hosts.iter().map(ToString::to_string).collect::<Vec<_>>());
        let address = |id: &HostId| Some((id.to_string(), hosts.get(id)?.address.clone()?));
        let addresses = order::map_of(message.hosts.iter().filter_map(address));
        body["addresses"] = json!(addresses);
        body["sandboxes"] = json!(message.sandboxes);
    }
    body
}

fn host_text(host: Option<HostId>) -> String {
    host.map(|host| host.to_string()).unwrap_or_default()
}

fn stored_cursor(conn: &Connection) -> Result<u64, StoreError> {
    let mut select = conn.prepare_cached("SELECT cursor FROM notify_state")?;
    Ok(select.query_row([], |row| rows::unsigned(row, 0)).optional()?.unwrap_or(0))
}

/// Every problem that is open or whose end nobody heard of, in order of key.
pub fn problems(conn: &Connection) -> Result<Vec<Problem>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT kind, host_id, opened_at, sandboxes, announced, told_at, gone_at, unwatched \
         FROM notify_problems",
    )?;
    let mut problems =
        select.query_map([], problem)?.collect::<Result<Vec<Problem>, rusqlite::Error>>()?;
    order::sort_by_key(&mut problems, |p| (p.kind, p.host));
    Ok(problems)
}

fn problem(row: &Row<'_>) -> rusqlite::Result<Problem> {
    let host = if row.get_ref(1)?.as_str()?.is_empty() { None } else { Some(rows::id(row, 1)?) };
    let time = |at| row.get::<_, Option<i64>>(at).map(|at| at.map(Wall));
    Ok(Problem {
        kind: rows::parsed(row, 0)?,
        host,
        opened_at: rows::wall(row, 2)?,
        sandboxes: rows::unsigned(row, 3)?,
        announced: row.get(4)?,
        told_at: time(5)?,
        gone_at: time(6)?,
        unwatched: row.get(7)?,
    })
}

/// Until when somebody works on each host, as far as that is not over.
pub fn maintenance(conn: &Connection, now: Wall) -> Result<BTreeMap<HostId, Wall>, StoreError> {
    let mut select =
        conn.prepare_cached("SELECT host_id, until FROM host_maintenance WHERE until > ?1")?;
    let rows = select.query_map([now.0], |row| Ok((rows::id(row, 0)?, rows::wall(row, 1)?)))?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(order::map_of(rows))
}

/// The oldest message that a target has not got.
pub fn next_delivery(conn: &Connection, target: &str) -> Result<Option<Delivery>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT m.seq, m.at, m.body FROM notify_outbox o JOIN notify_messages m ON m.seq = o.seq \
         WHERE o.target = ?1 ORDER BY o.seq LIMIT 1",
    )?;
    let found = select.query_row([target], |row| {
        Ok((row.get(0)?, rows::wall(row, 1)?, row.get::<_, String>(2)?))
    });
    let Some((seq, at, text)) = found.optional()? else { return Ok(None) };
    let bad = |e| StoreError::BadRow(format!("notify_messages.body of {seq}: {e}"));
    Ok(Some(Delivery { seq, at, body: serde_json::from_str(&text).map_err(bad)? }))
}

/// How many messages wait for each target.
pub fn waiting(conn: &Connection) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut select =
        conn.prepare_cached("SELECT target, count(*) FROM notify_outbox GROUP BY target")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, rows::unsigned(row, 1)?)))?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(order::map_of(rows))
}

/// A message that says only that messages arrive.
pub fn test_body(id: &str, now: Wall) -> Value {
    json!({
        "id": id, "problem": id, "kind": "test", "state": Phase::Open, "severity": "info",
        "at": now, "since": now, "title": "roost: a test",
        "message": "this target gets what roost announces",
    })
}

#[cfg(test)]
mod tests;
