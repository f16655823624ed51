//! Owns who loses events when there are too many: the author with the most gives up its
//! oldest, so that no host and no team pushes the others' out. An author is a team or, of the
//! platform's events, a host.
//!
//! Never: gives up the newest event of all; reads more than a portion of the events at a time.

use super::StoreError;
use super::acceptance::skipped;
use super::rows;
use super::writer::Writer;
use rusqlite::params;
use std::collections::HashMap;

/// Events that are counted in one transaction. Larger: writes of agents wait behind it;
/// smaller: it takes longer after a start until a full history is pruned.
const COUNTED_AT_ONCE: u64 = 20_000;

/// Whose an event is.
const AUTHOR: &str =
    "CASE team_id WHEN 'team-0000000000000000000000000' THEN host_id ELSE team_id END";

/// How many events each author has, up to a revision. Losing it only costs another count.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_author: HashMap<String, u64>,
    counted_to: u64,
}

impl Shares {
    /// What was counted may not be true any more.
    pub(super) fn count_anew(&mut self) {
        *self = Shares::default();
    }

    fn total(&self) -> u64 {
        self.by_author.values().sum()
    }

    /// The author with the most events; of several the first by name.
    fn largest(&self) -> Option<(&str, u64)> {
        let all = self.by_author.iter().map(|(author, count)| (author.as_str(), *count));
        all.max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)))
    }
}

impl Writer {
    /// Gives up events beyond `count_max`, at most `rows_max` rows. Says how many went, and
    /// whether counting has to go on first.
    pub(super) fn give_up_shares(
        &mut self,
        rows_max: usize,
        count_max: u64,
    ) -> Result<(usize, bool), StoreError> {
        if rows_max == 0 || !self.may_have_more_events_than(count_max)? {
            return Ok((0, false));
        }
        if !self.count_events()? {
            return Ok((0, true));
        }
        let mut gone = 0;
        while let Some(excess) = self.shares.total().checked_sub(count_max).filter(|n| *n > 0) {
            let left = excess.min((rows_max - gone) as u64);
            let Some((author, count)) = self.shares.largest().filter(|_| left > 0) else { break };
            // As far as to the level of the next; then they take turns.
            let author = author.to_owned();
            let others = self.shares.by_author.iter().filter(|(other, _)| **other != author);
            let next = others.map(|(_, count)| *count).max().unwrap_or_default();
            let given_up = self.give_up(&author, left.min((count - next).max(1)))?;
            if given_up == 0 {
                // Only the newest is left, or the count is wrong.
                self.shares.count_anew();
                break;
            }
            gone += given_up as usize;
        }
        Ok((gone, false))
    }

    /// Without counting: revisions are given out one after the other, but for restores.
    fn may_have_more_events_than(&self, count_max: u64) -> Result<bool, StoreError> {
        let sql = "SELECT coalesce(min(revision), 0) FROM events";
        let oldest = self.conn.query_row(sql, [], |row| rows::unsigned(row, 0))?;
        let skipped = skipped(&self.conn)?;
        let later = skipped.iter().filter(|(last, _)| *last >= oldest);
        let never_used: u64 = later.map(|(last, next)| next - last).sum();
        Ok(oldest + never_used + count_max <= self.revision)
    }

    /// Counts what was not counted; false when there is more.
    fn count_events(&mut self) -> Result<bool, StoreError> {
        let mut select = self.conn.prepare_cached(&format!(
            "SELECT {AUTHOR}, count(*), max(revision) FROM (SELECT team_id, host_id, revision \
             FROM events WHERE revision > ?1 ORDER BY revision LIMIT ?2) GROUP BY 1"
        ))?;
        let from = self.shares.counted_to as i64;
        let mut counts = select.query(params![from, COUNTED_AT_ONCE as i64])?;
        let mut counted = 0;
        while let Some(row) = counts.next()? {
            let (author, count) = (row.get(0)?, rows::unsigned(row, 1)?);
            counted += count;
            self.shares.counted_to = self.shares.counted_to.max(rows::unsigned(row, 2)?);
            *self.shares.by_author.entry(author).or_default() += count;
        }
        Ok(counted < COUNTED_AT_ONCE)
    }

    /// Deletes the oldest events of an author and records that they are missing.
    fn give_up(&mut self, author: &str, count: u64) -> Result<u64, StoreError> {
        let known = "SELECT coalesce(max(up_to), 0) FROM event_shares WHERE author = ?1";
        let from: i64 = self.conn.prepare_cached(known)?.query_row([author], |row| row.get(0))?;
        let mut delete = self.conn.prepare_cached(&format!(
            "DELETE FROM events WHERE revision IN (SELECT revision FROM events \
             WHERE revision > ?2 AND revision < (SELECT max(revision) FROM events) \
             AND {AUTHOR} = ?1 ORDER BY revision LIMIT ?3) RETURNING revision"
        ))?;
        let mut rows_of = delete.query(params![author, from, count as i64])?;
        let (mut given_up, mut up_to): (u64, i64) = (0, from);
        while let Some(row) = rows_of.next()? {
            up_to = up_to.max(row.get(0)?);
            given_up += 1;
        }
        drop(rows_of);
        drop(delete);
        let oldest = self.conn.query_row("SELECT min(revision) FROM events", [], |r| r.get(0))?;
        if given_up > 0 && up_to > oldest {
            let mut note = self.conn.prepare_cached(
                "INSERT INTO event_shares (author, given_up, up_to) VALUES (?1, ?2, ?3) \
                 ON CONFLICT DO UPDATE SET given_up = given_up + excluded.given_up, \
                 up_to = excluded.up_to",
            )?;
            note.execute(params![author, given_up as i64, up_to])?;
        }
        // What was given up before the oldest event that is kept tells nothing.
        let over = "DELETE FROM event_shares WHERE up_to < ?1";
        self.conn.prepare_cached(over)?.execute([oldest])?;
        let left = self.shares.by_author.get_mut(author);
        left.into_iter().for_each(|left| *left = left.saturating_sub(given_up));
        Ok(given_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::{Keep, Policy};
    use crate::model::time::{Mono, Now, Wall};
    use crate::store::open::open_writer;
    use crate::store::presence::Presence;
    use crate::store::read;
    use crate::store::verify::verify;
    use crate::store::writer::{Command, Envelope};
    use std::sync::Arc;
    use tempfile::TempDir;

    const PLATFORM: &str = "team-0000000000000000000000000";
    const TEAM: &str = "team-0000000000000000000000007";
    const NOW: Now = Now { mono: Mono(1_000_000), wall: Wall(1_790_000_000_000) };

    fn writer(count_max: usize) -> (Writer, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let conn = open_writer(&dir.path().join("roost.db"), true, NOW.wall).unwrap();
        let presence = Arc::new(Presence::load(&[], [], Some(NOW.wall), false, NOW));
        let keep = Keep { events_count: count_max, ..Keep::default() };
        let policy = Policy { keep, ..Policy::default() };
        (Writer::new(conn, policy, presence).unwrap(), dir)
    }

    fn write(writer: &mut Writer, host: &str, team: &str, times: u64) {
        let first = writer.revision + 1;
        writer.revision += times;
        let last = writer.revision;
        let sql = format!(
            "WITH RECURSIVE n(r) AS (SELECT {first} UNION ALL SELECT r + 1 FROM n WHERE r < {last}) \
             INSERT INTO events (revision, at, kind, host_id, team_id, reason, actor) \
             SELECT r, {}, 'host.up', '{host}', '{team}', 'r', 'system' FROM n; \
             UPDATE state SET revision = {last}",
            NOW.wall.0
        );
        writer.conn.execute_batch(&sql).unwrap();
    }

    /// Gives up what is due, portion by portion; how many portions that took.
    fn prune(writer: &mut Writer) -> usize {
        for portion in 1.. {
            let (tell, told) = crossbeam_channel::unbounded();
            let command = Command::Prune(Box::new(move |result| tell.send(result).unwrap()));
            writer.execute(vec![Envelope { now: NOW, command }]);
            assert_eq!(verify(&writer.conn).unwrap(), [] as [&str; 0]);
            if !told.recv().unwrap().unwrap() {
                return portion;
            }
        }
        unreachable!()
    }

    fn left(writer: &Writer) -> Vec<(String, u64, u64)> {
        let sql = "SELECT host_id, count(*), min(revision) FROM events GROUP BY 1 ORDER BY 1";
        let mut select = writer.conn.prepare(sql).unwrap();
        let rows = select.query_map([], |row| {
            Ok((row.get(0)?, rows::unsigned(row, 1)?, rows::unsigned(row, 2)?))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn who_floods_the_history_loses_its_own_events_only() {
        let (mut writer, _dir) = writer(1000);
        write(&mut writer, "a", PLATFORM, 200);
        write(&mut writer, "b", PLATFORM, 100);
        write(&mut writer, "flood", PLATFORM, 50_000);
        write(&mut writer, "c", TEAM, 50);
        prune(&mut writer);
        let (a, b, c) = (("a".into(), 200, 1), ("b".into(), 100, 201), ("c".into(), 50, 50_301));
        let flood = ("flood".into(), 650, 49_651);
        assert_eq!(left(&writer), [a, b, c, flood]);
        // Streams and timelines know from where on nothing is missing.
        assert_eq!(read::oldest_event(&writer.conn).unwrap(), Some(49_651));

        // A team's hosts are one author; the largest take turns.
        write(&mut writer, "c", TEAM, 3000);
        write(&mut writer, "d", TEAM, 3000);
        prune(&mut writer);
        let all = left(&writer);
        let of = |host: &str| all.iter().find(|(h, ..)| h == host).map_or(0, |(_, n, _)| *n);
        assert_eq!((of("a"), of("b")), (200, 100));
        assert_eq!((of("flood"), of("c") + of("d")), (350, 350), "{all:?}");
    }

    #[test]
    fn one_author_alone_loses_its_oldest() {
        let (mut writer, _dir) = writer(3);
        write(&mut writer, "a", PLATFORM, 10);
        assert_eq!(prune(&mut writer), 1);
        assert_eq!(left(&writer), [("a".to_owned(), 3, 8)]);
        assert_eq!(read::oldest_event(&writer.conn).unwrap(), Some(8));
        let shares = "SELECT count(*) FROM event_shares";
        let shares: i64 = writer.conn.query_row(shares, [], |row| row.get(0)).unwrap();
        assert_eq!(shares, 0, "nothing is kept of what the oldest event tells");
        write(&mut writer, "b", PLATFORM, 1);
        prune(&mut writer);
        assert_eq!(left(&writer), [("a".to_owned(), 2, 9), ("b".to_owned(), 1, 11)]);
    }
}
