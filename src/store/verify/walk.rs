//! Owns what one walk over all sandboxes finds: whether each has the event of its status, and
//! whether what is kept of hosts and teams is what their rows come to.
//!
//! Never: reads a row twice; a join from events to rows reads the database in no order.

use super::StoreError;
use crate::model::sandbox::SandboxStatus;
use crate::store::usage::{self, OnHost};
use crate::store::{read, rows};
use rusqlite::{Connection, Row};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// A sandbox's status has no event of its own.
pub(super) const NO_EVENT: &str = "a sandbox changed without its event";
/// An event tells of a later status than the sandbox has.
pub(super) const NEWER_EVENT: &str = "an event is newer than the status it announced";
/// See `usage`.
pub(super) const HOST_SUMS: &str = "the sums of a host are not those of its sandboxes";
/// See `usage`.
pub(super) const TEAM_COUNT: &str = "the count of a team is not that of its sandboxes";

/// What is wrong, an example of each.
pub(super) fn walk(conn: &Connection) -> Result<Vec<(&'static str, String)>, StoreError> {
    let mut walk = Walk {
        events: Events::read(conn)?,
        hosts: usage::stored_hosts(conn)?,
        teams: usage::stored_teams(conn)?,
        wrong: Vec::new(),
    };
    let mut select = conn.prepare(
        "SELECT host_id, id, team_id, status, revision, coalesce(vcpus, 0), \
         coalesce(memory_mb, 0) FROM sandboxes \
         INDEXED BY sqlite_autoindex_sandboxes_1",
    )?;
    let mut cursor = select.query([])?;
    let (mut host, mut on_host) = (String::new(), OnHost::default());
    while let Some(row) = cursor.next()? {
        let of = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        if of != host {
            walk.close(&host, &on_host);
            (host, on_host) = (of.to_owned(), OnHost::default());
        }
        walk.row(row, &mut on_host)?;
    }
    walk.close(&host, &on_host);
    Ok(walk.finish())
}

/// What the newest event of each sandbox says.
struct Events {
    hasher: RandomState,
    newest: HashMap<u64, (u64, SandboxStatus)>,
    /// Revision from which on all events are kept.
    oldest: Option<u64>,
}

impl Events {
    fn read(conn: &Connection) -> Result<Events, StoreError> {
        let oldest = read::oldest_event(conn)?;
        let mut events = Events { hasher: RandomState::new(), newest: HashMap::new(), oldest };
        let mut select = conn.prepare(
            "SELECT sandbox_id, revision, to_status FROM events \
             WHERE sandbox_id IS NOT NULL AND to_status IS NOT NULL ORDER BY revision",
        )?;
        let mut cursor = select.query([])?;
        while let Some(row) = cursor.next()? {
            let key = events.key(row, 0)?;
            events.newest.insert(key, (rows::unsigned(row, 1)?, rows::parsed(row, 2)?));
        }
        Ok(events)
    }

    /// Ids are as random as they are long: two with one key are less likely than a disk that
    /// lies.
    fn key(&self, row: &Row<'_>, at: usize) -> Result<u64, StoreError> {
        Ok(self.hasher.hash_one(row.get_ref(at)?.as_bytes().map_err(rusqlite::Error::from)?))
    }
}

struct Walk {
    events: Events,
    /// As stored; what is found right is taken out.
    hosts: HashMap<String, OnHost>,
    /// As stored, less what was found.
    teams: HashMap<String, i64>,
    wrong: Vec<(&'static str, String)>,
}

impl Walk {
    fn row(&mut self, row: &Row<'_>, on_host: &mut OnHost) -> Result<(), StoreError> {
        let (status, revision): (SandboxStatus, u64) =
            (rows::parsed(row, 3)?, rows::unsigned(row, 4)?);
        on_host.add(status, (row.get(5)?, row.get(6)?), 1);
        if !status.is_over() {
            let team = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            match self.teams.get_mut(team) {
                Some(count) => *count -= 1,
                None => self.say(TEAM_COUNT, team),
            }
        }
        let newest = self.events.newest.get(&self.events.key(row, 1)?);
        let kept = revision > 0 && self.events.oldest.is_some_and(|oldest| revision >= oldest);
        let wrong = match newest {
            Some((of_event, _)) if *of_event > revision => Some(NEWER_EVENT),
            newest if kept && newest != Some(&(revision, status)) => Some(NO_EVENT),
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.say(wrong, &row.get::<_, String>(1)?);
        }
        Ok(())
    }

    fn close(&mut self, host: &str, found: &OnHost) {
        if *found != OnHost::default() && self.hosts.remove(host) != Some(*found) {
            self.say(HOST_SUMS, host);
        }
    }

    fn finish(mut self) -> Vec<(&'static str, String)> {
        if let Some(host) = self.hosts.keys().next().cloned() {
            self.say(HOST_SUMS, &host);
        }
        let left = self.teams.iter().find(|(_, left)| **left != 0).map(|(team, _)| team.clone());
        if let Some(team) = left {
            self.say(TEAM_COUNT, &team);
        }
        self.wrong
    }

    fn say(&mut self, meaning: &'static str, example: &str) {
        if !self.wrong.iter().any(|(said, _)| *said == meaning) {
            self.wrong.push((meaning, example.to_owned()));
        }
    }
}
