//! Owns what of the past is given up, when, and in which portions.
//!
//! Never: gives up the newest entry of a history, an entry before an older one of the same author, or what an
//! unfinished operation or an announcement still needs; writes when nothing is due. The
//! writer calls it when the monitor says that it is time.

use super::StoreError;
use super::idempotency::KEY_LIFE;
use super::writer::Writer;
use crate::model::time::{Now, Wall};
use rusqlite::params;
use std::time::Duration;

/// Rows that one transaction gives up at most. Larger: heartbeat flushes and answers of
/// agents wait behind it on a slow card; smaller: a busy fleet's history is given up more
/// slowly than it grows.
pub const PRUNE_ROWS_MAX: usize = 500;

/// Events beyond their number from which they are given up at once. Larger: a flood takes more
/// of the disk; smaller: flushes of heartbeats do what one look an hour can do.
const OVERGROWN: u64 = 10_000;

/// Events that a flush gives up then. Larger: heartbeats wait for the flush; smaller: a flood
/// grows faster than it goes.
const OVERGROWN_ROWS_MAX: usize = 5_000;

/// A history: its entries are given up from the oldest on.
struct History {
    table: &'static str,
    key: &'static str,
    written_at: &'static str,
}

const EVENTS: History = History { table: "events", key: "revision", written_at: "at" };
const AUDIT: History = History { table: "audit_logs", key: "seq", written_at: "created_at" };

/// What is over: whatever became so before `?1`, at most `?2` rows of each.
const OVER: &[&str] = &[
    "DELETE FROM sandboxes WHERE (host_id, id) IN (SELECT host_id, id FROM sandboxes s \
     INDEXED BY sandboxes_by_age WHERE s.ended = 1 AND s.created_at < ?1 AND s.status_changed_at < ?1 \
     AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.host_id = s.host_id \
         AND o.sandbox_id = s.id AND o.finished_at IS NULL) \
     AND NOT EXISTS (SELECT 1 FROM auto_pause_inbox i WHERE i.host_id = s.host_id \
         AND i.sandbox_id = s.id) LIMIT ?2) RETURNING host_id, status",
    "DELETE FROM operations WHERE id IN \
     (SELECT id FROM operations WHERE finished_at < ?1 LIMIT ?2)",
    "DELETE FROM registration_tokens WHERE hash IN \
     (SELECT hash FROM registration_tokens WHERE expires_at < ?1 LIMIT ?2)",
    "DELETE FROM refresh_tokens WHERE hash IN \
     (SELECT hash FROM refresh_tokens WHERE expires_at < ?1 LIMIT ?2)",
    "DELETE FROM templates WHERE id IN \
     (SELECT id FROM templates t WHERE t.deleted_at < ?1 AND NOT EXISTS \
         (SELECT 1 FROM template_hosts h WHERE h.template_id = t.id) LIMIT ?2)",
];

/// Creates that can no longer be repeated.
const KEYS: &str = "DELETE FROM idempotency_keys WHERE (scope, key) IN \
    (SELECT scope, key FROM idempotency_keys WHERE created_at < ?1 LIMIT ?2)";

impl Writer {
    /// Gives up what the policy does not keep any longer, at most [`PRUNE_ROWS_MAX`] rows.
    /// True when it stopped there and more may be due.
    pub(super) fn prune(&mut self, now: Now) -> Result<bool, StoreError> {
        self.in_savepoint(|w| {
            let (rows, is_counting) = w.prune_rows(now, PRUNE_ROWS_MAX)?;
            Ok(rows == PRUNE_ROWS_MAX || is_counting)
        })
    }

    /// Gives events up between two looks when there are far more than are kept.
    pub(super) fn prune_overgrown(&mut self, now: Now) -> Result<(), StoreError> {
        let oldest = super::read::oldest_event(&self.conn)?.unwrap_or(self.revision);
        let kept = (self.policy.keep.events_count as u64).saturating_add(OVERGROWN);
        if self.revision.saturating_sub(oldest) > kept {
            self.prune_rows(now, OVERGROWN_ROWS_MAX)?;
        }
        Ok(())
    }

    /// How many rows went, and whether the events are still being counted.
    fn prune_rows(&mut self, now: Now, rows_max: usize) -> Result<(usize, bool), StoreError> {
        let keep = self.policy.keep;
        let is_dated = self.is_dated(now);
        let before = |age: Duration| is_dated.then(|| now.wall.before(age));
        let older = |at: Wall, than: Option<Wall>| than.is_some_and(|than| at < than);

        let events_from = before(keep.events_age);
        let mut rows = self.prune_history(&EVENTS, rows_max, |_, at| older(at, events_from))?;
        if rows > 0 {
            self.shares.count_anew();
        }
        let (given_up, is_counting) =
            self.give_up_shares(rows_max - rows, keep.events_count as u64)?;
        rows += given_up;
        let audit_from = before(keep.audit_age).filter(|_| !keep.audit_age.is_zero());
        rows += self.prune_history(&AUDIT, rows_max - rows, |_, at| older(at, audit_from))?;
        let (over, keys_until) = (before(keep.stopped_age), before(KEY_LIFE));
        if let Some(until) = keys_until {
            rows += self.forget(KEYS, until, (rows_max - rows) as i64)?;
        }
        if let Some(over) = over {
            for sql in OVER {
                let left = (rows_max - rows) as i64;
                rows += self.forget(sql, over, left)?;
            }
        }
        Ok((rows, is_counting))
    }

    /// Deletes what is over; what says a host and a status as it goes was a sandbox.
    fn forget(&mut self, sql: &str, over: Wall, rows_max: i64) -> Result<usize, StoreError> {
        let mut delete = self.conn.prepare_cached(sql)?;
        if delete.column_count() == 0 {
            return Ok(delete.execute(params![over.0, rows_max])?);
        }
        let mut gone = delete.query(params![over.0, rows_max])?;
        let mut rows = 0;
        while let Some(row) = gone.next()? {
            self.usage.forgotten(super::rows::id(row, 0)?, super::rows::parsed(row, 1)?);
            rows += 1;
        }
        Ok(rows)
    }

    /// Whether ages can be told.
    fn is_dated(&self, now: Now) -> bool {
        !self.presence.clock_is_suspect(now.mono)
    }

    /// Gives up the oldest entries of a history up to the first that is not due. Without
    /// the newest: it says where the history stands.
    fn prune_history(
        &self,
        history: &History,
        rows_max: usize,
        is_due: impl Fn(u64, Wall) -> bool,
    ) -> Result<usize, StoreError> {
        let History { table, key, written_at } = history;
        let mut select = self.conn.prepare_cached(&format!(
            "SELECT {key}, {written_at} FROM {table} \
             WHERE {key} < (SELECT max({key}) FROM {table}) ORDER BY {key} LIMIT ?1"
        ))?;
        let mut oldest = select.query([rows_max as i64])?;
        let mut last = None;
        while let Some(row) = oldest.next()? {
            let key = super::rows::unsigned(row, 0)?;
            if !is_due(key, super::rows::wall(row, 1)?) {
                break;
            }
            last = Some(key as i64);
        }
        let Some(last) = last else { return Ok(0) };
        let sql = format!("DELETE FROM {table} WHERE {key} <= ?1");
        Ok(self.conn.prepare_cached(&sql)?.execute([last])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::{Keep, Policy};
    use crate::model::time::Mono;
    use crate::store::open::open_writer;
    use crate::store::presence::Presence;
    use crate::store::verify::verify;
    use crate::store::writer::{Command, Envelope};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use tempfile::TempDir;

    const HOST: &str = "host-0000000000000000000000001";
    const TEAM: &str = "team-0000000000000000000000001";
    const DAY_S: i64 = 24 * 3600;
    /// When the tests take place.
    const NOW_S: i64 = 1000 * DAY_S;
    const KEEP: Keep = Keep {
        events_age: days(30),
        events_count: 1_000_000,
        audit_age: Duration::ZERO,
        stopped_age: days(30),
    };

    const fn days(n: u64) -> Duration {
        Duration::from_secs(n * 24 * 3600)
    }

    struct World {
        writer: Writer,
        _dir: TempDir,
    }

    impl World {
        /// A database with one host. `listened_until_s`: when a server last listened.
        fn new(keep: Keep, listened_until_s: i64) -> World {
            let dir = tempfile::tempdir().unwrap();
            let conn = open_writer(&dir.path().join("roost.db"), true, Wall(0)).unwrap();
            let until = Some(Wall(listened_until_s * 1000));
            let presence = Arc::new(Presence::load(&[], [], until, false, at(0)));
            let policy = Policy { keep, ..Policy::default() };
            let writer = Writer::new(conn, policy, presence).unwrap();
            let world = World { writer, _dir: dir };
            world.sql(&format!(
                "INSERT INTO hosts (id,team_id,type,intent,liveness,revision,created_at,updated_at) \
                 VALUES ('{HOST}','{TEAM}','regular','active','alive',0,0,0)",
            ));
            world
        }

        fn sql(&self, sql: &str) {
            self.writer.conn.execute_batch(sql).unwrap();
        }

        /// Writes events of these ages; the newest last.
        fn events(&mut self, ages_days: &[i64]) {
            for age in ages_days {
                self.writer.revision += 1;
                let (revision, at) = (self.writer.revision, (NOW_S - age * DAY_S) * 1000);
                self.sql(&format!(
                    "INSERT INTO events \
                 (revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, reason, actor) \
                 VALUES \
                     ({revision},{at},'host.up','h',NULL,'t',NULL,NULL,'r','system'); \
                     UPDATE state SET revision = {revision}"
                ));
            }
        }

        fn sandbox(&mut self, id: &str, status: &str, age_days: i64) {
            let at = (NOW_S - age_days * DAY_S) * 1000;
            self.sql(&format!(
                "INSERT INTO sandboxes \
                 (host_id,id,team_id,status,status_changed_at,revision,created_at,ended) \
                 VALUES ('{HOST}','{id}','{TEAM}','{status}',{at},0,0,'{status}' IN ('stopped','error'))"
            ));
            self.writer.count_anew();
        }

        fn operation(&self, id: &str, sandbox: &str, finished_days: Option<i64>) {
            let at = finished_days
                .map_or("NULL".to_owned(), |d| ((NOW_S - d * DAY_S) * 1000).to_string());
            self.sql(&format!(
                "INSERT INTO operations \
                 (id,sandbox_id,host_id,kind,created_at,deadline_at,finished_at) \
                 VALUES ('{id}','{sandbox}','{HOST}','destroy',0,0,{at})"
            ));
        }

        /// One portion, as the writer's thread does it. True: there may be more.
        fn prune(&mut self, now: Now) -> bool {
            let (tell, told) = crossbeam_channel::unbounded();
            let command = Command::Prune(Box::new(move |result| tell.send(result).unwrap()));
            self.writer.execute(vec![Envelope { now, command }]);
            assert_eq!(verify(&self.writer.conn).unwrap(), [] as [&str; 0]);
            told.recv().unwrap().unwrap()
        }

        fn rows(&self) -> u64 {
            self.writer.figures().rows.load(Ordering::Relaxed)
        }

        fn list(&self, sql: &str) -> Vec<String> {
            let mut select = self.writer.conn.prepare(sql).unwrap();
            let rows = select.query_map([], |row| row.get(0)).unwrap();
            rows.collect::<Result<_, _>>().unwrap()
        }

        fn revisions(&self) -> Vec<String> {
            self.list("SELECT CAST(revision AS TEXT) FROM events ORDER BY revision")
        }
    }

    fn at(s: i64) -> Now {
        Now { mono: Mono(1_000_000 + (s as u64) * 1000), wall: Wall((NOW_S + s) * 1000) }
    }

    #[test]
    fn events_go_from_the_oldest_on_and_the_newest_stays() {
        let mut world = World::new(KEEP, NOW_S);
        // Written while the clock was wrong: what is behind it waits for its turn.
        world.events(&[50, 31, 3, 40, 30]);
        assert!(!world.prune(at(0)));
        assert_eq!(world.revisions(), ["3", "4", "5"]);
        let later = |days: i64| at(days * DAY_S);
        world.prune(later(28));
        assert_eq!(world.revisions(), ["5"], "thirty days and more, but the newest");
        world.prune(later(300));
        assert_eq!(world.revisions(), ["5"]);
    }

    #[test]
    fn no_more_events_are_kept_than_allowed() {
        let mut world = World::new(Keep { events_count: 3, ..KEEP }, NOW_S);
        world.events(&[0; 10]);
        world.prune(at(0));
        assert_eq!(world.revisions(), ["8", "9", "10"]);
        world.events(&[0]);
        world.prune(at(0));
        assert_eq!(world.revisions(), ["9", "10", "11"]);
    }

    #[test]
    fn the_past_goes_in_portions() {
        let mut world = World::new(Keep { events_count: 1, ..KEEP }, NOW_S);
        world.events(&[0; 2 * PRUNE_ROWS_MAX + 8]);
        for n in 0..5 {
            world.sandbox(&format!("s{n}"), "stopped", 31);
        }
        let mut portions = Vec::new();
        let mut more = true;
        while more {
            let before = world.rows();
            more = world.prune(at(0));
            portions.push((world.rows() - before) as usize);
        }
        // And the host's sums.
        assert_eq!(portions, [PRUNE_ROWS_MAX, PRUNE_ROWS_MAX, 7 + 5 + 1]);
        assert_eq!(world.revisions().len(), 1);
    }

    #[test]
    fn a_flood_of_events_goes_with_the_next_flushes() {
        let mut world = World::new(Keep { events_count: 10, ..KEEP }, NOW_S);
        let flush = |world: &mut World| {
            let command = Command::Flush(Box::new(|result| result.unwrap()));
            world.writer.execute(vec![Envelope { now: at(0), command }]);
            world.revisions().len()
        };
        world.events(&[0; 200]);
        assert_eq!(flush(&mut world), 200, "that can wait");
        world.writer.conn.execute_batch("BEGIN").unwrap();
        world.events(&[0; OVERGROWN as usize]);
        world.writer.conn.execute_batch("COMMIT").unwrap();
        let left = 200 + OVERGROWN as usize;
        assert_eq!(flush(&mut world), left - OVERGROWN_ROWS_MAX);
        assert_eq!(flush(&mut world), left - OVERGROWN_ROWS_MAX, "the look does the rest");
        while world.prune(at(0)) {}
        assert_eq!(world.revisions().len(), 10);
    }

    #[test]
    fn creates_can_be_repeated_for_a_day_whatever_is_kept() {
        let mut world = World::new(Keep { stopped_age: days(3650), ..KEEP }, NOW_S);
        for (key, age_s) in [("old", DAY_S + 1), ("new", DAY_S - 1), ("ahead", -5)] {
            let at = (NOW_S - age_s) * 1000;
            world.sql(&format!(
                "INSERT INTO idempotency_keys (scope,key,body_hash,sandbox_id,created_at) \
                 VALUES ('admin','{key}',x'00','s',{at})"
            ));
        }
        world.prune(at(0));
        let sql =
            "SELECT group_concat(key, ' ') FROM (SELECT key FROM idempotency_keys ORDER BY key)";
        let left: String = world.writer.conn.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, "ahead new");
    }

    #[test]
    fn nothing_is_written_when_nothing_is_due() {
        let mut world = World::new(KEEP, NOW_S);
        world.events(&[29, 5, 0]);
        world.sandbox("s", "stopped", 29);
        world.operation("o", "s", Some(29));
        assert!(!world.prune(at(0)));
        let figures = world.writer.figures();
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        assert_eq!((count(&figures.commits), count(&figures.idle), world.rows()), (0, 1, 0));
    }

    #[test]
    fn what_is_over_goes_unless_something_still_needs_it() {
        let mut world = World::new(KEEP, NOW_S);
        for (id, status, age) in [
            ("a", "stopped", 31),
            ("b", "error", 31),
            ("c", "stopped", 29),
            ("d", "running", 500),
            ("e", "paused", 500),
            ("f", "missing", 500),
            ("g", "hibernated", 500),
            ("h", "stopped", 31),
            ("i", "error", 31),
        ] {
            world.sandbox(id, status, age);
        }
        world.operation("done", "a", Some(31));
        world.operation("fresh", "a", Some(29));
        world.operation("open", "h", None);
        world.sql(&format!("INSERT INTO auto_pause_inbox VALUES ('{HOST}','i',0,0)"));
        for (hash, age) in [("old", 31), ("new", 29), ("valid", -1)] {
            let at = (NOW_S - age * DAY_S) * 1000;
            for table in ["registration_tokens", "refresh_tokens"] {
                world.sql(&format!(
                    "INSERT INTO {table} (hash,id,host_id,created_at,expires_at) \
                     VALUES (CAST('{hash}' AS BLOB),'{hash}','{HOST}',0,{at})"
                ));
            }
        }
        assert!(!world.prune(at(0)));
        let ids = |table: &str| world.list(&format!("SELECT id FROM {table} ORDER BY id"));
        assert_eq!(ids("sandboxes"), ["c", "d", "e", "f", "g", "h", "i"]);
        assert_eq!(ids("operations"), ["fresh", "open"]);
        assert_eq!(ids("registration_tokens"), ["new", "valid"]);
        assert_eq!(ids("refresh_tokens"), ["new", "valid"]);
    }

    #[test]
    fn the_audit_log_is_kept_unless_somebody_says_otherwise() {
        let mut world = World::new(KEEP, NOW_S);
        for (seq, age) in [(1, 900), (2, 400), (3, 10), (4, 400)] {
            let at = (NOW_S - age * DAY_S) * 1000;
            world.sql(&format!(
                "INSERT INTO audit_logs VALUES ({seq},'l{seq}','t','system',NULL,NULL,'host','h',\
                 'marked_up','team','success','{{}}',{at})"
            ));
        }
        let ids = |world: &World| world.list("SELECT id FROM audit_logs ORDER BY seq");
        world.prune(at(0));
        assert_eq!(ids(&world).len(), 4);
        world.writer.policy.keep.audit_age = days(365);
        world.prune(at(0));
        assert_eq!(ids(&world), ["l3", "l4"]);
    }

    /// A clock that is wrong by years must not cost the history; its number is bounded
    /// all the same.
    #[test]
    fn a_clock_that_is_not_believed_ages_nothing() {
        let mut world = World::new(Keep { events_count: 3, ..KEEP }, NOW_S - 2 * DAY_S);
        world.events(&[400; 5]);
        world.sandbox("s", "stopped", 400);
        let of =
            |world: &World| (world.revisions().len(), world.list("SELECT id FROM sandboxes").len());
        world.prune(at(0));
        assert_eq!(of(&world), (3, 1));
        world.prune(at(DAY_S));
        assert_eq!(of(&world), (3, 1));
        world.prune(at(DAY_S + 1));
        assert_eq!(of(&world), (1, 0), "a day without another jump");
    }
}
