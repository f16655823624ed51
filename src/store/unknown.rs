//! Owns the hosts that send heartbeats and are not in this database: a data directory that
//! was lost, a wrong database, a host that was pointed at the wrong server.
//!
//! Never: holds more than a fixed number of them; lets those whose token is not ours push out
//! those whose is; writes more than once in ten minutes for each.

use super::StoreError;
use super::rows;
use super::writer::Writer;
use crate::model::id::HostId;
use crate::model::time::{Now, Wall};
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Unknown hosts that are remembered. Larger: a client that makes ids up fills the page;
/// smaller: a lost fleet is not shown whole.
pub const UNKNOWN_MAX: usize = 64;

/// How long one is remembered after its last heartbeat.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How exactly the database knows when one was last heard. Larger: `status` of a server that
/// does not run shows older times; smaller: each costs a write with every flush.
const SEEN_STEP: Duration = Duration::from_secs(600);

/// A host that is not in this database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownHost {
    /// The id that its token names.
    pub id: HostId,
    /// Whether we signed that token.
    pub genuine: bool,
    /// When its first heartbeat came.
    pub first_seen_at: Wall,
    /// When its last one came.
    pub last_seen_at: Wall,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    host: UnknownHost,
    /// The last heartbeat that the database knows of.
    flushed: Option<Wall>,
}

impl Entry {
    fn must_be_flushed(&self) -> bool {
        let near =
            |at: Wall| self.host.last_seen_at >= at && self.host.last_seen_at.since(at) < SEEN_STEP;
        !self.flushed.is_some_and(near)
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct UnknownHosts {
    entries: Mutex<HashMap<HostId, Entry>>,
    /// Rows to delete with the next flush.
    gone: Mutex<Vec<HostId>>,
}

/// What one flush has to write.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    write: Vec<UnknownHost>,
    delete: Vec<HostId>,
}

impl UnknownHosts {
    fn lock(&self) -> MutexGuard<'_, HashMap<HostId, Entry>> {
        // Every critical section leaves the map whole, so a panic elsewhere is no reason to stop.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> MutexGuard<'_, Vec<HostId>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the database remembers. The next flush deletes what is not to be
    /// remembered any more.
    pub fn remember(&self, conn: &Connection) -> Result<(), StoreError> {
        let hosts = rows_of(conn)?;
        let entry = |host: UnknownHost| (host.id, Entry { host, flushed: Some(host.last_seen_at) });
        self.lock().extend(hosts.into_iter().map(entry));
        Ok(())
    }

    /// Takes in a heartbeat of one. True when it is a new one and there was room: those that
    /// replace each other are not worth a line in the log each.
    pub fn heard(&self, id: HostId, genuine: bool, now: Wall) -> bool {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&id) {
            // Without a token of ours any id can be named: that does not undo a genuine one.
            entry.host.genuine |= genuine;
            entry.host.last_seen_at = now;
            return false;
        }
        let is_full = entries.len() >= UNKNOWN_MAX;
        if is_full {
            let worst = entries.values().min_by_key(|e| (e.host.genuine, e.host.last_seen_at));
            let Some(worst) = worst.filter(|worst| genuine || !worst.host.genuine) else {
                return false;
            };
            let worst = worst.host.id;
            entries.remove(&worst);
            self.gone().push(worst);
        }
        let host = UnknownHost { id, genuine, first_seen_at: now, last_seen_at: now };
        entries.insert(id, Entry { host, flushed: None });
        !is_full
    }

    /// Those heard within a day, the last heard first.
    pub fn list(&self, is_known: impl Fn(HostId) -> bool, now: Wall) -> Vec<UnknownHost> {
        let entries = self.lock();
        let hosts = entries.values().map(|entry| entry.host);
        let mut hosts: Vec<UnknownHost> =
            hosts.filter(|host| is_recent(host, now) && !is_known(host.id)).collect();
        sort(&mut hosts);
        hosts
    }

    /// What has to be written; marks it as written. Those that were not heard for a day, and
    /// those that are known by now, are forgotten.
    fn take_due(&self, is_known: impl Fn(HostId) -> bool, now: Wall) -> Due {
        let mut entries = self.lock();
        let mut delete = std::mem::take(&mut *self.gone());
        entries.retain(|id, entry| {
            let stays = is_recent(&entry.host, now) && !is_known(*id);
            if !stays {
                delete.push(*id);
            }
            stays
        });
        delete.retain(|id| !entries.contains_key(id));
        let due = entries.values_mut().filter(|entry| entry.must_be_flushed());
        let write = due.map(|entry| {
            entry.flushed = Some(entry.host.last_seen_at);
            entry.host
        });
        Due { write: write.collect(), delete }
    }

    /// The last flush failed: everything has to be written again.
    pub(super) fn unflushed(&self) {
        self.lock().values_mut().for_each(|entry| entry.flushed = None);
    }
}

fn is_recent(host: &UnknownHost, now: Wall) -> bool {
    now.since(host.last_seen_at) < FORGET_AFTER
}

fn sort(hosts: &mut [UnknownHost]) {
    crate::model::order::sort_by_key(hosts, |host| (std::cmp::Reverse(host.last_seen_at), host.id));
}

/// Unknown hosts as the database remembers them at `now`, the last heard first.
pub fn unknown_hosts(conn: &Connection, now: Wall) -> Result<Vec<UnknownHost>, StoreError> {
    let mut known = conn.prepare_cached("SELECT 1 FROM hosts WHERE id = ?1")?;
    let mut hosts = Vec::new();
    for host in rows_of(conn)? {
        if is_recent(&host, now) && !known.exists([host.id.to_string()])? {
            hosts.push(host);
        }
    }
    sort(&mut hosts);
    Ok(hosts)
}

/// Every row, also of those that are to be forgotten.
fn rows_of(conn: &Connection) -> Result<Vec<UnknownHost>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT host_id, genuine, first_seen_at, last_seen_at FROM unknown_hosts",
    )?;
    let hosts = select.query_map([], |row| {
        Ok(UnknownHost {
            id: rows::id(row, 0)?,
            genuine: row.get(1)?,
            first_seen_at: rows::wall(row, 2)?,
            last_seen_at: rows::wall(row, 3)?,
        })
    })?;
    Ok(hosts.collect::<Result<_, _>>()?)
}

impl Writer {
    /// Writes which unknown hosts were heard, in the transaction that writes heartbeats.
    pub(super) fn flush_unknown(&mut self, now: Now) -> Result<(), StoreError> {
        let presence = &self.presence;
        let due = presence.unknown.take_due(|id| presence.is_recorded(id), now.wall);
        let mut delete =
            self.conn.prepare_cached("DELETE FROM unknown_hosts WHERE host_id = ?1")?;
        for id in due.delete {
            delete.execute([id.to_string()])?;
        }
        let mut write = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO unknown_hosts \
             (host_id, genuine, first_seen_at, last_seen_at) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for host in due.write {
            let (first, last) = (host.first_seen_at.0, host.last_seen_at.0);
            write.execute(params![host.id.to_string(), host.genuine, first, last])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> HostId {
        HostId::from_u128(n)
    }

    fn listed(unknown: &UnknownHosts, now: i64) -> Vec<u128> {
        let hosts = unknown.list(|_| false, Wall(now));
        (0..200).filter(|n| hosts.iter().any(|host| host.id == id(*n))).collect()
    }

    #[test]
    fn the_newest_replace_the_oldest_and_genuine_ones_come_first() {
        let unknown = UnknownHosts::default();
        let all = UNKNOWN_MAX as u128;
        for n in 0..all {
            assert!(unknown.heard(id(n), n % 2 == 0, Wall(n as i64)));
        }
        assert!(!unknown.heard(id(3), false, Wall(100)), "heard again, so it is not the oldest");
        assert!(!unknown.heard(id(100), false, Wall(101)), "there is no room");
        let now = listed(&unknown, 101);
        assert!(now.contains(&100) && !now.contains(&1), "the oldest that is not genuine");
        unknown.heard(id(101), true, Wall(102));
        let now = listed(&unknown, 102);
        assert!(now.contains(&101) && !now.contains(&5), "before any genuine one");
        for n in 110..170 {
            unknown.heard(id(n), true, Wall(n as i64));
        }
        let genuine = listed(&unknown, 170);
        assert_eq!(genuine.len(), UNKNOWN_MAX);
        unknown.heard(id(199), false, Wall(171));
        assert_eq!(listed(&unknown, 171), genuine, "all others are genuine");
        unknown.heard(id(198), true, Wall(172));
        let now = listed(&unknown, 172);
        assert!(now.contains(&198) && now.len() == UNKNOWN_MAX);
    }

    #[test]
    fn each_is_written_once_in_ten_minutes_and_forgotten_after_a_day() {
        let unknown = UnknownHosts::default();
        let due = |now: i64| {
            let due = unknown.take_due(|_| false, Wall(now));
            (due.write.len(), due.delete.len())
        };
        unknown.heard(id(1), true, Wall(0));
        assert_eq!(due(0), (1, 0));
        for now in [10_000, 599_999] {
            unknown.heard(id(1), true, Wall(now));
            assert_eq!(due(now), (0, 0), "{now}");
        }
        unknown.heard(id(1), false, Wall(600_000));
        assert!(unknown.take_due(|_| false, Wall(600_000)).write[0].genuine, "once is enough");
        unknown.unflushed();
        assert_eq!(due(600_001), (1, 0), "what failed is written again");
        let day = 24 * 3_600_000;
        assert_eq!(listed(&unknown, 600_000 + day - 1), [1]);
        assert_eq!(listed(&unknown, 600_000 + day), [0; 0]);
        assert_eq!(due(600_000 + day), (0, 1));
        assert_eq!(due(600_000 + day), (0, 0));
    }

    #[test]
    fn one_that_becomes_known_is_none_any_more() {
        let unknown = UnknownHosts::default();
        unknown.heard(id(1), true, Wall(0));
        unknown.heard(id(2), true, Wall(0));
        let is_known = |host| host == id(1);
        assert_eq!(unknown.list(is_known, Wall(0)).len(), 1);
        let due = unknown.take_due(is_known, Wall(0));
        assert_eq!((due.write.len(), due.delete), (1, vec![id(1)]));
    }
}
